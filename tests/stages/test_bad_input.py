"""What people get wrong: exit code 2, one line that says what and where, nothing half-written.

Each case is a real command line in a separate process, or in this one where the process is not the point.
"""

import errno
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from world import World, assistant, files_in, metrics, same_files, stop_at, user, write_lines, write_texts

from tutelage import cli
from tutelage.runs.run import Interrupted

FLAGS = {
    "pretrain": "--width 32 --layers 1 --heads 2 --kv-heads 1 --head-width 16 --hidden 48 --context 64 --tokens 1024 "
    "--batch 4",
    "sft": "--tokens 2048 --batch 4",
    "reward": "--batch 4",
    "ppo": "--iterations 2 --batch 4 --minibatch 4 --max-tokens 10 --max-prompt 32 --ptx-windows 2",
}


def command(world: World, verb: str, out: Path, **given: Path) -> list[str]:
    """A command line that works, with some of its inputs exchanged."""
    inputs = {
        "pretrain": {"tokenizer": world.tokenizer, "corpus": world.corpus},
        "sft": {"base": world.base, "demos": world.demos},
        "reward": {"base": world.sft, "comparisons": world.comparisons, "demos": world.demos},
        "ppo": {"policy": world.sft, "reward": world.reward, "prompts": world.prompts, "corpus": world.corpus},
        "tokenizer": {"corpus": world.corpus},
    }[verb] | given
    words = [verb, "--out", str(out), *FLAGS.get(verb, "").split()]
    if verb != "tokenizer":
        words += ["--dtype", "fp32"]
    for name, path in inputs.items():
        words += [f"--{name}", str(path)]
    return words


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run in this process; it must end with 2 and one line, which is returned."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    said = capsys.readouterr()
    assert end.value.code == 2
    lines = [line for line in said.err.splitlines() if "left" not in line]  # a progress line may stand before it
    assert len(lines) == 1, said.err
    assert said.out == ""
    return lines[0]


def nothing_made(out: Path) -> None:
    """Not even an empty folder."""
    assert not out.exists()


def empty(path: Path, world: World) -> None:
    path.write_text("")


def not_utf8(path: Path, world: World) -> None:
    path.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')


def not_an_object(path: Path, world: World) -> None:
    path.write_text('{"text": "fine"}\n["a list"]\n')


def not_json(path: Path, world: World) -> None:
    path.write_text('{"text": "fine"}\n{"text": \n')


BAD_CORPUS: list[tuple[Callable[[Path, World], None], str]] = [
    (empty, "bad.jsonl: the file is empty"),
    (not_utf8, "bad.jsonl, line 2: not UTF-8 at byte 13 of the line"),
    (not_an_object, "bad.jsonl, line 2: must be a JSON object, but it is a list"),
    (not_json, "bad.jsonl, line 2: not JSON"),
]


@pytest.mark.parametrize(("spoil", "said"), BAD_CORPUS)
@pytest.mark.parametrize("verb", ["tokenizer", "pretrain", "ppo"])
def test_a_broken_corpus(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, spoil: Callable[[Path, World], None],
    said: str,
) -> None:  # fmt: skip
    bad = tmp_path / "bad.jsonl"
    spoil(bad, world)
    assert said in refused(command(world, verb, tmp_path / "out", corpus=bad), capsys)
    nothing_made(tmp_path / "out")


def test_in_a_separate_process(world: World, tmp_path: Path) -> None:
    """The same through the real command: exit code, one line, no traceback."""
    bad = tmp_path / "bad.jsonl"
    not_an_object(bad, world)
    words = [sys.executable, "-m", "tutelage", *command(world, "sft", tmp_path / "out", demos=bad)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "bad.jsonl, line 1" in done.stderr
    nothing_made(tmp_path / "out")


def test_a_conversation_without_an_answer(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_lines(
        tmp_path / "bad.jsonl", [{"messages": [user("hi"), assistant("hello")]}, {"messages": [user("hi"), user("?")]}]
    )
    line = refused(command(world, "sft", tmp_path / "out", demos=bad), capsys)
    assert "bad.jsonl, line 2: the conversation has no assistant turn" in line
    nothing_made(tmp_path / "out")


def test_prompts_longer_than_the_context(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_lines(tmp_path / "bad.jsonl", [{"prompt": [user("cat " * 100)]}])
    line = refused(command(world, "ppo", tmp_path / "out", prompts=bad), capsys)
    assert "none of 1 fits 32 tokens, the first in" in line and "line 1" in line
    nothing_made(tmp_path / "out")


@pytest.mark.parametrize("verb", ["ppo", "rank"])
def test_prompt_and_answer_longer_than_the_context(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """A limit of 60 for the prompt and 40 for the answer, in a context of 64: said before anything is sampled."""
    asked = write_lines(tmp_path / "asked.jsonl", [{"prompt": [user("cat " * 20)]}] * 4)
    limits = ["--max-prompt", "60", "--max-tokens", "40"]
    if verb == "ppo":
        words = [*command(world, "ppo", tmp_path / "out", prompts=asked), *limits]
    else:
        words = ["rank", "--out", str(tmp_path / "out.jsonl"), "--policy", str(world.sft), "--panel", str(world.panel)]
        words += ["--prompts", str(asked), *limits]
    line = refused(words, capsys)
    assert "need 100 tokens, but the model's context is 64; lower --max-prompt or --max-tokens" in line
    nothing_made(tmp_path / "out")


@pytest.mark.parametrize(
    "asked",
    [
        "ppo --reward SHORT --no-ptx",
        "ppo --reward REWARD SHORT --no-ptx",
        "ppo --reward SHORT --no-ptx --lora-rank 2",
        "ppo --reward REWARD --no-ptx --judge SHORT",
        "rloo --reward SHORT",
        "best-of-n --reward SHORT",
        "evaluate POLICY --reward SHORT --base BASE --sft SFT --panel PANEL --heldout HELDOUT --heldout-windows 4",
    ],
)
def test_prompt_and_answer_longer_than_a_reward_models_context(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    """It is not the policy's: 40 tokens of rotary positions, where a prompt of 32 and an answer of 10 may come."""
    short, policy, out = tmp_path / "short", tmp_path / "policy", tmp_path / "out"
    shutil.copytree(world.reward, short)
    shutil.copytree(world.sft, policy)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40}))
    files = vars(world) | {"short": short, "policy": policy}
    words = [str(files[word.lower()]) if word.isupper() else word for word in asked.split()]
    words += ["--prompts", str(world.prompts), "--out", str(out), "--max-prompt", "32", "--max-tokens", "10"]
    if words[0] != "evaluate":
        words += ["--policy", str(policy)]
    line = refused(words, capsys)
    assert f"responses of 10 need 42 tokens, but {short}'s context is 40; lower --max-prompt or --max-tokens" in line
    nothing_made(out)


def test_no_weights(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(world.base, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    line = refused(command(world, "sft", tmp_path / "out", base=tmp_path / "base"), capsys)
    assert "model.safetensors: missing" in line
    nothing_made(tmp_path / "out")


def test_weights_cut_short(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(world.base, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    line = refused(command(world, "sft", tmp_path / "out", base=tmp_path / "base"), capsys)
    assert "model.safetensors: cannot be read" in line and "cut short" in line
    nothing_made(tmp_path / "out")


@pytest.mark.parametrize("damage", ["missing", "cut"])
@pytest.mark.parametrize(
    "words",
    [
        "chat RUN",
        "serve chat=RUN --port 0 --data DATA",
        "evaluate RUN --prompts PROMPTS --panel PANEL --sft SFT --max-prompt 32 --max-tokens 8 --out OUT",
        "export RUN --out OUT",
        "dpo --policy RUN --comparisons COMPARISONS --out OUT",
    ],
)
def test_a_finished_run_whose_weights_are_gone_or_cut(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, damage: str
) -> None:
    run = shutil.copytree(world.sft, tmp_path / "run")
    weights = run / "model.safetensors"
    content = weights.read_bytes()[:-100]
    weights.unlink()
    if damage == "cut":
        weights.write_bytes(content)
    files = vars(world) | {"run": run, "out": tmp_path / "out", "data": tmp_path / "data"}
    given = [re.sub("[A-Z]{3,}", lambda found: str(files[found[0].lower()]), word) for word in words.split()]
    line = refused(given, capsys)
    assert f"{weights}: {'missing; give a finished run' if damage == 'missing' else 'cannot be read'}" in line
    nothing_made(tmp_path / "out")


@pytest.mark.parametrize("place", ["x" * 300, "file/inside", "loop/inside", "/proc/inside"])
def test_a_place_where_no_run_can_be(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert refused(command(world, "sft", Path(place)), capsys).endswith("; check the path")
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


def test_a_name_with_line_breaks(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a name like any other; a message about it is still one line."""
    out = tmp_path / "my\nrun"
    cli.main(command(world, "sft", out))
    capsys.readouterr()
    cli.main(command(world, "sft", out))
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert "seed was 0, is 7" in refused([*command(world, "sft", out), "--seed", "7"], capsys)


def test_a_language_model_is_no_reward_model(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(command(world, "ppo", tmp_path / "out", reward=world.sft), capsys)
    assert "holds a language model, not a reward model" in line


@pytest.mark.parametrize("size", [290, 300])
def test_a_tokenizer_of_another_model(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    """Of another size it does not fit the weights; of the same size it does not fit the policy's."""
    chance = random.Random(0)
    made = [" ".join("".join(chance.choices("xyzqwvk", k=5)) for _ in range(40)) for _ in range(20)]
    texts = write_texts(tmp_path / "texts.jsonl", made)
    cli.main(["tokenizer", "--corpus", str(texts), "--out", str(tmp_path / "words"), "--vocab-size", str(size)])
    shutil.copytree(world.reward, tmp_path / "reward")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "words" / name, tmp_path / "reward" / name)
    line = refused(command(world, "ppo", tmp_path / "out", reward=tmp_path / "reward"), capsys)
    assert "tokenizers differ" in line
    if size != 300:
        shutil.copytree(world.base, tmp_path / "base")
        shutil.copy(tmp_path / "words" / "tokenizer.json", tmp_path / "base")
        line = refused(command(world, "sft", tmp_path / "out2", base=tmp_path / "base"), capsys)
        assert f"the model has 300 tokens, tokenizer.json has {size}" in line
    nothing_made(tmp_path / "out")


def test_a_folder_that_holds_another_run(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused with what is different; untouched; replaced only when asked to."""
    shutil.copytree(world.sft, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files_in(tmp_path / "out")}
    words = [*command(world, "sft", tmp_path / "out"), "--seed", "7"]
    line = refused(words, capsys)
    assert "another run is here" in line and "seed was 0, is 7" in line and "--overwrite" in line
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files_in(tmp_path / "out")} == before
    cli.main([*words, "--overwrite"])
    assert json.loads((tmp_path / "out" / "run.json").read_text())["config"]["seed"] == 7


def test_a_folder_that_holds_something_else(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert "not empty and holds no run" in refused(command(world, "sft", tmp_path / "out"), capsys)
    assert files_in(tmp_path / "out") == {"thesis.txt"}


def stopped(words: list[str], monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C at a step: exit code 130, as the command line has it."""
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 130
        assert issubclass(Interrupted, KeyboardInterrupt)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest of two is cut short: the one before it is taken, said in a line, and the end is the same."""
    words = [*command(world, "sft", tmp_path / "out"), "--checkpoint-seconds", "0"]
    cli.main(command(world, "sft", tmp_path / "whole"))
    stopped(words, monkeypatch, 5)
    checkpoints = tmp_path / "out" / "checkpoints"
    newest = checkpoints / "00000005" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:200])
    capsys.readouterr()
    cli.main(words)
    said = capsys.readouterr().err
    assert "00000005: unreadable" in said and "resuming from step 4" in said
    same_files(tmp_path / "whole", tmp_path / "out", ["model.safetensors"])
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "out")


def test_no_checkpoint_can_be_read(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*command(world, "sft", tmp_path / "out"), "--checkpoint-seconds", "0"]
    stopped(words, monkeypatch, 5)
    for state in (tmp_path / "out" / "checkpoints").glob("*/state.json"):
        state.write_text("{")
    assert "no checkpoint can be read; delete this folder" in refused(words, capsys)


@pytest.mark.parametrize("step", ["weights", "checkpoint"])
def test_a_full_disk(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    """ENOSPC when forcing a file out: one line, no half file; with room again the run ends as if nothing was."""
    cli.main(command(world, "sft", tmp_path / "whole"))
    words = [*command(world, "sft", tmp_path / "out"), "--checkpoint-seconds", "0" if step == "checkpoint" else "1000"]
    calls: list[int] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if ("state.safetensors" in name and len(calls) >= 3) or ("model.safetensors" in name and step == "weights"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        calls.append("state.safetensors" in name)
        calls[:] = [c for c in calls if c]
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert "the disk is full" in refused(words, capsys)
    left = files_in(tmp_path / "out")
    assert not [name for name in left if "tmp" in name or "model.safetensors" in name or "run.json" in name]
    assert len([name for name in left if name.endswith("state.safetensors")]) == (2 if step == "checkpoint" else 0)
    cli.main(words)
    if step == "checkpoint":
        assert "resuming from step 3" in capsys.readouterr().err
    same_files(tmp_path / "whole", tmp_path / "out", ["model.safetensors"])


def test_a_file_size_limit_is_a_full_disk_too(world: World, tmp_path: Path) -> None:
    """RLIMIT_FSIZE below the model's size, in a separate process: nothing of the model is left."""
    words = [sys.executable, "-m", "tutelage", *command(world, "sft", tmp_path / "out")]
    limit = (world.base / "model.safetensors").stat().st_size // 2

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=confine)
    assert done.returncode == 2
    assert "the disk is full" in done.stderr and "Traceback" not in done.stderr
    left = files_in(tmp_path / "out")
    assert not [name for name in left if "tmp" in name or "model.safetensors" in name or "run.json" in name]
    again = subprocess.run(words, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
