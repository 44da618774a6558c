"""lm-eval's command line: log-likelihoods of 100 items through local-completions, answers through both models.

The command line has a fourth argument, the model's context. The script prints what it was told for each item, so that
the caller can compare it with its own scoring.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import KEY, MODEL, URL, run, scenario

ITEMS = 100
CONTEXT = sys.argv[4] if len(sys.argv) > 4 else "0"
FOLDER = Path(tempfile.mkdtemp())
SCORED: list[dict[str, Any]] = []
# Each task without its name and its file.
TASKS = {
    "choose": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
""",
    "write": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "cat"
generation_kwargs: {until: ["\\n\\n", "Q:", "###", "</s>", "END"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
""",
    "perplexity": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
""",
}


def lm_eval(task: str, model: str, address: str, *more: str, limit: int = ITEMS) -> list[dict[str, Any]]:
    """Run a task. Returns the logged samples."""
    arguments = f"model={MODEL},base_url={URL}/{address},auth_token={KEY},max_length={CONTEXT},num_concurrent=8"
    out = Path(tempfile.mkdtemp(dir=FOLDER))
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments, "--tasks", task]
    command += ["--include_path", str(FOLDER), "--log_samples", "--output_path", str(out), "--limit", str(limit)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(FOLDER / "cache")}
    done = subprocess.run([*command, *more], capture_output=True, text=True, env=os.environ | offline, timeout=600)
    assert done.returncode == 0, done.stderr[-500:]
    (file,) = out.rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(samples) == limit
    return samples


@scenario
def likelihoods_of_choices() -> None:
    for sample in lm_eval("choose", "local-completions", "completions"):
        for given, (told,) in zip(sample["arguments"].values(), sample["resps"], strict=True):
            row = {"context": given["arg_0"], "continuation": given["arg_1"]}
            SCORED.append(row | {"logprob": float(told[0]), "greedy": str(told[1]) == "True"})


@scenario
def rolling_likelihoods() -> None:
    lm_eval("perplexity", "local-completions", "completions", limit=10)


@scenario
def answers_through_completions() -> None:
    for sample in lm_eval("write", "local-completions", "completions", limit=10):
        assert isinstance(sample["resps"][0][0], str)


@scenario
def answers_through_chat_completions() -> None:
    chat = lm_eval("write", "local-chat-completions", "chat/completions", "--apply_chat_template", limit=10)
    for sample in chat:
        assert isinstance(sample["resps"][0][0], str)


def items(path: Path) -> None:
    """100 items with two choices each, short enough for a context of 64 tokens."""
    things, places = "cat dog hat cup book fish bird kite tree moon".split(), "mat box tree wall roof".split()
    with open(path, "w", encoding="utf-8") as file:
        for number in range(ITEMS):
            thing, place = things[number % 10], places[number // 10 % 5]
            question = f"{'是' * (number // 50)}where is the {thing}?"
            choices = [
                f" it is on the {place}.",
                f" I like{' the' * (number % 2)} {thing}s" if number % 3 else " 不知道",
            ]
            file.write(json.dumps({"question": question, "choices": choices, "answer": number % 2}) + "\n")


if __name__ == "__main__":
    items(FOLDER / "items.jsonl")
    for name, task in TASKS.items():
        data = (
            f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {FOLDER / 'items.jsonl'}}}}}\ntest_split: test"
        )
        (FOLDER / f"{name}.yaml").write_text(f"task: {name}\n{data}{task}", encoding="utf-8")
    run("lm_eval", scored=SCORED)
