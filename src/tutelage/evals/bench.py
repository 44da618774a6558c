"""What models are put side by side on: prompts, the text that none has seen, the models that judge; and the asking.

    base, SFT, reward, panel, prompts -> Bench;   a model -> its answers to all prompts, and its bits per byte

Every model gets the same token ids at temperature 1, seeded per prompt and answer. One model at a time is in memory,
besides the reward.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.data.packing import stream
from tutelage.data.panel import Panel
from tutelage.data.prompts import check_room, choose_fitting, text_length
from tutelage.data.records import Prompt, read_documents, read_prompts
from tutelage.evals.perplexity import bits_per_byte, check_windows
from tutelage.model.gpt import GPT
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.open import frozen_beside, open_reward
from tutelage.rewards.reward import Reward
from tutelage.runs.device import Device, release_memory
from tutelage.runs.folder import load_policy
from tutelage.runs.run import RunConfig, seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import Response, for_inference, generate, rows_that_fit
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

ROWS = 256  # answers sampled at once


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig, RewardsConfig):
    """What is asked and how long the answers may be."""

    count: int = 300
    """Held-out prompts, chosen by hash."""
    per_conversation: int = 2
    """At most so many prompts from one conversation."""
    max_tokens: int = 40
    """Longest answer in tokens."""
    max_prompt: int = 128
    """Longest prompt in tokens; older turns are dropped until it fits."""
    best_of: tuple[int, ...] = (4, 16)
    """Best-of-n baselines: the reward model's favourite of n answers of the SFT model."""
    samples: int = 12
    """Prompts whose answers are printed: the first ones."""
    heldout_windows: int = 256
    """Windows of held-out pretraining text for bits per byte."""
    heldout_window: int = 0
    """Tokens of such a window; 0 is the model's whole context, or 512 of it."""


@dataclass(frozen=True)
class Bench:
    """What every model is measured with."""

    tokenizer: Tokenizer
    prompts: list[Prompt]
    asked: list[list[int]]  # the prompts, encoded
    unseen: Any  # held-out text as a token stream
    base: Path
    sft: Path
    scorer: Reward
    panel: Panel
    device: Device
    config: EvaluateConfig

    @property
    def clusters(self) -> list[str]:
        """Prompts of one conversation are alike: which belong together."""
        return [p.conversation or str(i) for i, p in enumerate(self.prompts)]

    def load(self, folder: Path) -> GPT:
        """A model that samples and judges; nobody else holds it."""
        release_memory()  # what the one before it has left
        return for_inference(load_policy(folder, self.device, frozen=True)[0])


def lay_out(
    config: EvaluateConfig, device: Device, base: Path, sft: Path, reward: Sequence[str], panel: Path,
    prompts: Sequence[Path], heldout: Sequence[Path],
) -> Bench:  # fmt: skip
    """Read what all models share, and find what does not fit before anything is sampled."""
    model, tokenizer = load_policy(sft, device, frozen=True)
    check_room(model.config.context, config.max_prompt, config.max_tokens)
    pool = read_prompts(prompts)
    chosen = choose_fitting(pool, tokenizer, config.count, config.max_prompt, "evaluate", config.per_conversation)
    asked = [encode_chat(tokenizer, p.prompt, add_generation_prompt=True).ids for p in chosen]
    texts = [document.plain_text() for document in read_documents(heldout)]
    unseen = stream(tokenizer.encode_batch(texts), tokenizer.end_of_text_id)
    check_windows(unseen, text_length(config.heldout_window, model.config.context, "--heldout-window"))
    del model
    scorer = open_reward(reward, config, frozen_beside(sft, device, config.max_prompt, config.max_tokens))
    return Bench(tokenizer, chosen, asked, unseen, base, sft, scorer, Panel.load(panel), device, config)


@dataclass(frozen=True)
class Said:
    """What one model has answered, and how well it predicts unseen text."""

    answers: list[Response]  # one per prompt
    candidates: list[list[Response]]  # [prompt][sample], for best-of-n
    bits_per_byte: float

    @property
    def all(self) -> list[list[Response]]:
        """[prompt][the answer, then the candidates]."""
        return [[one, *some] for one, some in zip(self.answers, self.candidates, strict=True)]

    def state(self) -> dict[str, Any]:
        """What a checkpoint can hold."""
        return asdict(self)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "Said":
        answers = [Response(**answer) for answer in state["answers"]]
        candidates = [[Response(**answer) for answer in some] for some in state["candidates"]]
        return cls(answers, candidates, state["bits_per_byte"])


def ask(bench: Bench, model: GPT, candidates: int = 0) -> Said:
    """An answer to each prompt, and so many candidates; and the held-out text."""
    answers = [answer for (answer,) in sample(bench, model, 1)]
    more = sample(bench, model, candidates) if candidates else [[] for _ in answers]
    length = text_length(bench.config.heldout_window, model.config.context, "--heldout-window")
    bits = bits_per_byte(model, bench.unseen, bench.tokenizer.token_bytes(), bench.config.heldout_windows, length)
    return Said(answers, more, bits)


def sample(bench: Bench, model: GPT, count: int) -> list[list[Response]]:
    """`count` answers to each prompt. The first one has the same chance numbers for every model and count."""
    answers: dict[int, list[Response]] = {}
    sampling = SamplingConfig(max_tokens=bench.config.max_tokens)
    order = sorted(range(len(bench.asked)), key=lambda i: len(bench.asked[i]))  # like lengths waste no padding
    size = max(1, rows_that_fit(model.config, bench.config.max_prompt + bench.config.max_tokens, ROWS) // count)
    for at in range(0, len(order), size):
        release_memory()  # keys and values of the last batch, in other sizes
        some = order[at : at + size]
        seeds = [seed_for(bench.config.seed, f"evaluate/{i}/{k}") for i in some for k in range(count)]
        batch = [bench.asked[i] for i in some]
        answers |= zip(
            some, generate(model, batch, seeds, bench.tokenizer.end_of_turn_id, sampling, count), strict=True
        )
    return [answers[i] for i in range(len(order))]
