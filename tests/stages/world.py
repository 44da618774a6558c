"""A world small enough to train in seconds: a grammar of small talk, its files, and how to look at a run from outside.

Everything is made on the spot from seeds. What reads a run here is `json`, `safetensors` and transformers, not ours.
"""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tutelage.data.panel import Panel
from tutelage.rlhf.setup import RLInputs
from tutelage.runs.run import Interrupted, Run
from tutelage.stages.pretrain import PretrainConfig, pretrain
from tutelage.stages.rank import RankConfig, rank
from tutelage.stages.reward import RewardConfig, reward
from tutelage.stages.sft import SFTConfig, sft
from tutelage.stages.tokenizer import TokenizerConfig, tokenizer

THINGS = "cat dog hat cup book fish bird kite".split()
PLACES = "mat box tree table chair wall".split()
MOODS = "red old new big small fine".split()

SHAPE: dict[str, Any] = dict(width=32, layers=1, heads=2, kv_heads=1, head_width=16, hidden=48, context=64)
PRETRAIN = PretrainConfig(**SHAPE, tokens=64 * 8 * 40, batch=8, evaluate_every=16, heldout_windows=4, dtype="fp32")
SFT = SFTConfig(tokens=64 * 4 * 24, batch=4, lr=1e-2, evaluate_every=4, heldout_rows=100, dtype="fp32")
RANK = RankConfig(count=16, answers=4, max_tokens=10, max_prompt=32, dtype="fp32")
REWARD = RewardConfig(batch=4, lr=3e-3, demonstrations=1000, heldout=0.2, dtype="fp32")


def exchanges(count: int, seed: int) -> list[tuple[str, str]]:
    """Questions with answers that follow from a small grammar."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        thing, place, mood = chance.choice(THINGS), chance.choice(PLACES), chance.choice(MOODS)
        made.append(
            chance.choice(
                [
                    (f"where is the {thing}?", f"it is on the {place}."),
                    (f"is the {thing} {mood}?", f"yes, it is {mood}. is yours?"),
                    (f"do you like the {place}?", f"no, but I like the {thing}, thank you."),
                ]
            )
        )
    return made


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_texts(path: Path, texts: Iterable[str]) -> Path:
    return write_lines(path, ({"text": text} for text in texts))


def write_demos(path: Path, pairs: Iterable[tuple[str, str]]) -> Path:
    return write_lines(path, ({"messages": [user(q), assistant(a)]} for q, a in pairs))


class World:
    """The files and runs that the tests of all stages start from. Read only."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.corpus, self.heldout = folder / "corpus.jsonl", folder / "heldout.jsonl"
        self.demos, self.demos_valid = folder / "demos.jsonl", folder / "demos.valid.jsonl"
        self.prompts, self.prompts_test = folder / "prompts.jsonl", folder / "prompts.test.jsonl"
        self.panel, self.comparisons = folder / "panel.json", folder / "comparisons.jsonl"
        self.tokenizer, self.base, self.sft, self.reward = (folder / n for n in ("tokenizer", "base", "sft", "reward"))

    def make(self) -> "World":
        write_texts(self.corpus, (f"Ann: {q}\nBob: {a}" for q, a in exchanges(400, 1)))
        write_texts(self.heldout, (f"Ann: {q}\nBob: {a}" for q, a in exchanges(60, 2)))
        write_demos(self.demos, exchanges(120, 3))
        write_demos(self.demos_valid, exchanges(24, 4))
        for path, seed in ((self.prompts, 5), (self.prompts_test, 6)):
            asked = enumerate(exchanges(40, seed))
            write_lines(path, ({"prompt": [user(q)], "conversation": f"c{i // 2}"} for i, (q, _) in asked))
        Panel.fit(exchanges(300, 7)).save(self.panel)
        tokenizer((self.corpus,), self.tokenizer, TokenizerConfig(vocab_size=300))
        pretrain(self.tokenizer, (self.corpus,), self.base, (self.heldout,), PRETRAIN)
        sft(self.base, (self.demos,), self.sft, (self.demos_valid,), SFT)
        rank(self.comparisons, self.sft, (self.prompts,), self.panel, config=RANK)
        reward(self.sft, (self.comparisons,), self.reward, (self.demos,), self.panel, REWARD)
        return self


def named(reward: Any) -> tuple[str, ...]:
    """As the command line has it: one reward or several, by name."""
    return tuple(map(str, reward)) if isinstance(reward, tuple) else (str(reward),)


def rl_inputs(world: World, out: Path) -> RLInputs:
    """The world's own models and files, as PPO, RLOO and GRPO take them."""
    return RLInputs(
        policy=world.sft, reward=named(world.reward), prompts=(world.prompts,), out=out, corpus=(world.corpus,)
    )


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """As if somebody pressed Ctrl-C during this step."""
    original = Run.checkpoint

    def checkpoint(self: Run, at: int, state: Any) -> None:
        self.stop_requested = self.stop_requested or at == step
        original(self, at, state)

    monkeypatch.setattr(Run, "checkpoint", checkpoint)


def interrupted(call: Any, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Run `call`, which must stop at `step` and say so."""
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Interrupted, match=f"stopped at step {step} and saved"):
            call()


def metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and not k.endswith("_per_second")} for line in lines]


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())["results"]


def same_files(first: Path, second: Path, names: Sequence[str]) -> None:
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def files_in(folder: Path) -> set[str]:
    """Every file under the folder, by relative path."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
