"""A folder of runs in place of a run: `chat` lists its language models, other verbs name what is in it."""

import json
import shutil
from pathlib import Path

import pytest

from tutelage import cli
from tutelage.errors import InputError
from tutelage.model.gpt import GPT
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy, load_tokenizer, save_policy
from tutelage.runs.identity import hash_input
from tutelage.text.tokenizer import Tokenizer


@pytest.fixture
def runs(tmp_path: Path, make_gpt, tokenizer: Tokenizer) -> Path:
    """A demo's folder in small: data, a tokenizer, two language models, one adapter, one reward model, a record."""
    folder = tmp_path / "demo"
    model: GPT = make_gpt("llama")
    for name in ("base", "sft", "reward"):
        save_policy(folder / name, model, tokenizer)
    made = {"stage": "sft", "finished": "2026-08-01T12:30:59+00:00"}
    (folder / "sft" / "run.json").write_text(json.dumps(made))
    config = json.loads((folder / "reward" / "config.json").read_text())
    (folder / "reward" / "config.json").write_text(json.dumps(config | {"reward_mean": 0.0}))
    (folder / "lora" / "adapter").mkdir(parents=True)
    (folder / "lora" / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "data").mkdir()
    (folder / "data" / "corpus.jsonl").write_text('{"text": "hi"}\n')
    tokenizer.save(folder / "tokenizer")
    (folder / "demo.json").write_text("{}")
    (folder / "comparisons.jsonl").write_text("{}\n")
    return folder


def test_chat_lists_what_one_can_chat_with(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.parent)
    for folder in ("demo", "."):  # the folder of runs, and the folder that it is in
        cli.main(["chat", folder])
        told = capsys.readouterr().out.splitlines()
        assert told[0].startswith(f"{folder} is a folder of runs")
        assert [" ".join(line.split()) for line in told[1:]] == [
            "tutelage chat demo/base",
            "tutelage chat demo/lora",
            "tutelage chat demo/sft sft, finished 2026-08-01 12:30 UTC",
        ]


@pytest.mark.parametrize(
    "line",
    [
        "sft --base DEMO --demos DEMO/comparisons.jsonl --out OUT",
        "pretrain --tokenizer DEMO --corpus DEMO/comparisons.jsonl --out OUT",
        "ppo --policy DEMO/sft --reward DEMO --prompts DEMO/comparisons.jsonl --no-ptx --out OUT",
        "tasks DEMO --out OUT",
        "serve DEMO --port 0 --data OUT",
        "export DEMO --out OUT",
        "score DEMO DEMO/responses.jsonl",
    ],
)
def test_other_verbs_name_the_runs(line: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "responses.jsonl").write_text('{"prompt": [{"role": "user", "content": "hi"}], "response": "yes"}\n')
    words = line.replace("DEMO", str(runs)).replace("OUT", str(tmp_path / "out")).split()
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    told = capsys.readouterr().err
    names = ", ".join(f"{runs}/{name}" for name in ("base", "lora", "reward", "sft"))
    assert end.value.code == 2 and told == f"{runs}: a folder of runs, not a run; give one of {names}\n"


def test_a_run_is_no_folder_of_runs(runs: Path) -> None:
    """Snapshots and value networks inside a run do not make it one; a tokenizer or an empty folder neither."""
    shutil.copytree(runs / "base", runs / "sft" / "snapshots" / "00010")
    assert len(hash_input(runs / "sft")) == len(hash_input(runs / "tokenizer")) == 64
    load_policy(runs / "sft", choose_device("cpu", "fp32"))
    (runs / "empty").mkdir()
    with pytest.raises(InputError, match="holds no model, tokenizer or data"):
        hash_input(runs / "empty")


def test_the_base_of_an_adapter_is_never_looked_for_elsewhere(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is relative to the adapter; from the current folder the same name leads to another model."""
    adapter = runs / "lora" / "adapter"
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../../gone"}))
    (adapter / "base.json").write_text(json.dumps({"path": "../../gone", "sha256": "0" * 64}))
    (tmp_path / "a" / "b").mkdir(parents=True)
    shutil.copytree(runs / "base", tmp_path / "gone")
    monkeypatch.chdir(tmp_path / "a" / "b")
    for load in (
        lambda: load_policy(runs / "lora", choose_device("cpu", "fp32")),
        lambda: load_tokenizer(runs / "lora"),
    ):
        with pytest.raises(InputError, match="its base .*demo/gone: no such folder or file; move it back"):
            load()
