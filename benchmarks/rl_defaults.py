"""Measure how fast PPO learns with its defaults: warm-up, moving average, and what a cut response earns.

    python benchmarks/rl_defaults.py runs/demo [--pairs pairs.jsonl] [--seeds 0 1 2] [--updates 24] [--out runs/rl]

Starts from a finished demo's SFT model. Three rewards of unlike taste: the demo's reward model, one trained on the
comparisons of --pairs (left out without), and a Python function. Each is optimised with plain PPO, with the earlier
defaults (a warm-up of 5 iterations, a moving average of .9, a score of -1 for a cut response), with today's, and with
others that --variants names, such as 3/0.5/subtracted. Saved policies respond to the same held-out prompts. A policy's
score is the mean score of its responses as written, and its KL is that from the SFT model. The table says after how
many updates a variant first reaches the final score of the earlier defaults, and the KL there, both interpolated
between measured policies. The script can be interrupted and repeated: trainings resume, and what is in measured.jsonl
is not measured again. Prints a Markdown table and writes it to OUT (record.py).
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch
from record import Record
from torch import Tensor

from tutelage.cli import TORCH_SETTINGS
from tutelage.data.prompts import choose_fitting
from tutelage.data.rankings import encode_prompt
from tutelage.data.records import read_prompts
from tutelage.model.gpt import GPT
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.open import frozen_loader, open_reward
from tutelage.rewards.reward import Reward, with_response
from tutelage.rlhf import rollouts
from tutelage.rlhf.setup import RLInputs
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.runs.run import seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import pad_responses, response_hidden
from tutelage.sampling.sampler import for_inference, generate
from tutelage.stages.ppo import PPOConfig, ppo
from tutelage.stages.reward import RewardConfig, reward

HEAD = "| reward | defaults | score at the start | final score | final KL, nats | ended | reached after | KL there |"
VARIANTS = {"earlier": "5/0.9/flat", "today": f"{PPOConfig().warmup}/{PPOConfig().ema:g}/penalised"}
EVERY = 2  # updates between the policies that are measured
Point = dict[str, float]


def question_in_ten_words(conversations: list[list[dict[str, str]]]) -> list[float]:
    """The Python function: about ten words, none of them twice, and a question at the end."""
    scores = []
    for messages in conversations:
        text = messages[-1]["content"].strip()
        words = text.lower().split()
        distinct = len(set(words)) / max(1, len(words))
        scores.append(distinct - abs(len(words) - 10) / 10 + text.endswith("?"))
    return scores


FORMS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "flat": lambda scores, invalid, penalty: torch.where(invalid, -penalty, scores),  # a score of its own
    "subtracted": lambda scores, invalid, penalty: scores - penalty * invalid,  # as TRL does
    "penalised": rollouts.penalised,
}


@dataclass(frozen=True)
class Task:
    """One reward, one seed and one variant."""

    reward: str
    scorer: str  # its name as --reward takes it
    seed: int
    variant: str  # WARMUP/EMA/FORM

    def train(self, demo: Path, out: Path, updates: int, max_tokens: int) -> Path:
        """The run's folder; its snapshots are the policies between."""
        warmup, ema, form = self.variant.split("/")
        shared: dict[str, Any] = {"batch": 16, "minibatch": 16, "ptx": False, "kl_budget": 1e3, "overwrite": True}
        shared |= {"iterations": updates, "max_tokens": max_tokens, "seed": self.seed, "snapshot_every": EVERY}
        config = PPOConfig(**shared, warmup=int(warmup), ema=float(ema))
        place = out / f"{self.reward}-{self.seed}-{self.variant.replace('/', '-')}-{max_tokens}"
        given: dict[str, Any] = {"policy": demo / "sft", "prompts": (demo / "data/prompts.train.jsonl",)}
        with patch.object(rollouts, "penalised", FORMS[form]):
            ppo(RLInputs(**given, reward=(self.scorer,), out=place), config)
        return place


def exact_kl(hidden: Tensor, reference: Tensor, weight: Tensor, reference_weight: Tensor) -> Tensor:
    """Sum over N tokens of KL(pi || pi_SFT); hidden (N, C). Less noisy than the log-ratio of the sample."""
    total = torch.zeros(())
    for rows, others in zip(hidden.split(512), reference.split(512), strict=True):
        ours, theirs = (
            torch.nn.functional.linear(x.float(), w.float()).log_softmax(1)
            for x, w in ((rows, weight), (others, reference_weight))
        )
        total = total + (ours.exp() * (ours - theirs)).sum().cpu()
    return total


class Measure:
    """Responses of a policy to the same held-out prompts; remembers what it has measured."""

    def __init__(self, demo: Path, out: Path, count: int, max_tokens: int):
        self.max_tokens = max_tokens
        self.sft, self.path, self.device = demo / "sft", out / "measured.jsonl", choose_device()
        self.reference, self.tokenizer = self.load(self.sft)
        prompts = read_prompts((demo / "data/prompts.test.jsonl",))
        self.prompts = [p.prompt for p in choose_fitting(prompts, self.tokenizer, count, 64, "rl-defaults")]
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.known = {line["key"]: line for line in map(json.loads, lines)}

    def load(self, folder: Path) -> tuple[GPT, Any]:
        policy, tokenizer = load_policy(folder, self.device, frozen=True)
        return for_inference(policy), tokenizer

    def __call__(self, key: str, folder: Path, scorer: Reward) -> Point:
        """Score, KL, share of ended responses and mean length of the policy in this folder."""
        if key not in self.known:
            line = {"key": key} | self.measure(self.load(folder)[0], scorer)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.known[key] = line
        return self.known[key]

    @torch.no_grad()
    def measure(self, policy: GPT, scorer: Reward) -> Point:
        ids = [encode_prompt(prompt, self.tokenizer) for prompt in self.prompts]
        seeds = [seed_for(0, f"rl-defaults/{i}") for i in range(len(ids))]
        groups = generate(policy, ids, seeds, self.tokenizer.end_of_turn_id, SamplingConfig(max_tokens=self.max_tokens))
        sampled = [group[0] for group in groups]
        responses = pad_responses(ids, sampled, self.tokenizer.pad_id, self.device.torch_device)
        texts = [self.tokenizer.decode(response.ids) for response in sampled]
        conversations = [with_response(prompt, text) for prompt, text in zip(self.prompts, texts, strict=True)]
        hidden = response_hidden(policy, responses), response_hidden(self.reference, responses)
        kl = exact_kl(*hidden, policy.head_weight, self.reference.head_weight)
        return {
            "score": float(scorer.score_responses(responses, conversations).mean()),
            "kl": float(kl) / len(ids),
            "ended": float(responses.ended.float().mean()),
            "empty": fmean(not text.strip() for text in texts),
            "length": float(responses.mask.sum(1).float().mean()),
        }


def curve(task: Task, given: argparse.Namespace, measure: Measure, target: float) -> list[tuple[int, Point]]:
    """(updates, figures) of the start, of the snapshots from a third of the run on until one reaches the target, and
    of the final policy.
    """
    place, updates = task.train(given.demo, given.out, given.updates, measure.max_tokens), given.updates
    load = frozen_loader(given.demo / "sft", measure.device, 64, measure.max_tokens)
    scorer = open_reward((task.scorer,), RewardsConfig(), load)
    keyed = f"{task.reward} {task.seed} {task.variant} {measure.max_tokens} {updates}"
    found = [(0, measure(f"{task.reward} start {measure.max_tokens}", given.demo / "sft", scorer))]
    snapshots = {int(path.name): path for path in sorted((place / "snapshots").glob("[0-9]*"))}
    for at, folder in snapshots.items():
        if at >= updates // 3 and found[-1][1]["score"] < target:
            found.append((at, measure(f"{keyed} {at}", folder, scorer)))
    return [*found, (updates, measure(f"{keyed} {updates}", place, scorer))]


def crossing(curve: Sequence[tuple[int, Point]], target: float) -> tuple[float, float] | None:
    """(updates, KL) where the score first reaches the target, on straight lines between the points; None if never."""
    for (start, before), (end, after) in pairwise(curve):
        if after["score"] >= target:
            part = (target - before["score"]) / (after["score"] - before["score"])
            return start + part * (end - start), before["kl"] + part * (after["kl"] - before["kl"])
    return None


def row(curves: Sequence[list[tuple[int, Point]]], targets: Sequence[float]) -> dict[str, Any]:
    """Means over the seeds. A seed that never reaches its target makes `reached` None."""
    final = {key: fmean(curve[-1][1][key] for curve in curves) for key in ("score", "kl", "ended", "empty", "length")}
    crossings = [crossing(curve, target) for curve, target in zip(curves, targets, strict=True)]
    reached = None if None in crossings else fmean(at for at, _ in filter(None, crossings))
    kl = None if None in crossings else fmean(kl for _, kl in filter(None, crossings))
    return final | {"start": curves[0][0][1]["score"], "reached": reached, "kl_there": kl}


def line(reward: str, variant: str, found: dict[str, Any], updates: int) -> str:
    reached = "–" if found["reached"] is None else f"{found['reached']:.1f} of {updates}"
    kl = "–" if found["kl_there"] is None else f"{found['kl_there']:.2f}"
    cells = [reward, variant, *(f"{found[key]:.2f}" for key in ("start", "score", "kl")), f"{found['ended']:.0%}"]
    return f"| {' | '.join([*cells, reached, kl])} |"


def scorers(given: argparse.Namespace) -> dict[str, str]:
    """The rewards by name; trains the one of --pairs if there is none yet."""
    known = {"demo": str(given.demo / "reward"), "function": f"{__file__}:question_in_ten_words"}
    if given.pairs:
        demos, place = (given.demo / "data/demonstrations.train.jsonl",), given.out / "pairs-reward"
        config = RewardConfig(batch=4, lr=1e-3, epochs=2, overwrite=True)
        reward(base=given.demo / "sft", comparisons=(given.pairs,), demos=demos, out=place, config=config)
        known["pairs"] = str(place)
    return {name: place for name, place in known.items() if name in given.rewards}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, nargs="?", default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--pairs", type=Path, help="JSONL file with comparisons, for the second reward model")
    parser.add_argument("--rewards", nargs="+", default=["demo", "pairs", "function"], help="which rewards to use")
    parser.add_argument("--variants", nargs="+", default=["earlier", "today"], help="or WARMUP/EMA/FORM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=24, help="iterations of PPO, of 16 responses")
    parser.add_argument("--max-tokens", type=int, default=40, help="longest response; 10 cuts most of them")
    parser.add_argument("--count", type=int, default=256, help="held-out prompts")
    parser.add_argument("--out", type=Path, default=Path("runs/rl_defaults"), help="folder to write")
    given = parser.parse_args()
    if not (given.demo / "reward/run.json").is_file():
        parser.exit(2, f"{given.demo}: no finished demo here; run `make demo` first, or name another folder\n")
    if not TORCH_SETTINGS.keys() <= os.environ.keys():  # torch's libraries read them at import
        os.execve(sys.executable, [sys.executable, *sys.argv], TORCH_SETTINGS | dict(os.environ))
    given.out.mkdir(parents=True, exist_ok=True)
    record, figures = Record(given.out / "rl_defaults", given), {}
    measure = Measure(given.demo, given.out, given.count, given.max_tokens)
    record.say(HEAD + "\n|" + "---|" * (HEAD.count("|") - 1))
    for name, scorer in scorers(given).items():
        targets = [-math.inf] * len(given.seeds)  # of the earlier defaults only the final score counts
        for variant in dict.fromkeys(["earlier", *given.variants]):
            tasks = [Task(name, scorer, seed, VARIANTS.get(variant, variant)) for seed in given.seeds]
            curves = [curve(task, given, measure, target) for task, target in zip(tasks, targets, strict=True)]
            targets = [points[-1][1]["score"] for points in curves] if variant == "earlier" else targets
            figures[f"{name}, {variant}"] = row(curves, targets) | {"curves": curves}
            record.say(line(name, variant, figures[f"{name}, {variant}"], given.updates))
    record.leave(figures)


if __name__ == "__main__":
    main()
