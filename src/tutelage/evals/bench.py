"""What all models of an evaluation share - prompts, held-out text, reward, panel - and what each model produces on it.

    base, SFT, reward, panel, prompts -> Bench;   a model -> its responses to all prompts, and its bits per byte

Every model gets the same token ids, at temperature 1, with the same random seed per prompt and sample. Besides the
reward, only one model is in memory at a time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.data.packing import document_opening, encode_documents, stream
from tutelage.data.panel import Panel
from tutelage.data.prompts import check_context, choose_fitting, row_length
from tutelage.data.records import Prompt, read_documents, read_prompts
from tutelage.evals.perplexity import bits_per_byte, check_windows
from tutelage.model.gpt import GPT
from tutelage.options import Advanced, Count, Natural, Share, Size
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.open import frozen_loader, open_reward
from tutelage.rewards.reward import Reward
from tutelage.runs.device import Device, release_memory
from tutelage.runs.folder import load_policy
from tutelage.runs.run import RunConfig, seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import Response, for_inference, generate, rows_that_fit
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

ROWS = 256  # responses sampled at once


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig, RewardsConfig):
    """Prompts, response length and held-out text of an evaluation."""

    count: Count = 300
    """Number of held-out prompts, chosen by hash."""
    per_conversation: Advanced[Count] = 2
    """Maximum number of prompts from one conversation."""
    max_tokens: Count = 40
    """Maximum response length, in tokens."""
    max_prompt: Count = 128
    """Maximum prompt length, in tokens; the oldest turns are dropped until a prompt fits."""
    best_of: tuple[Count, ...] = (4, 16)
    """Best-of-n baselines, one per n: of n SFT responses, the one with the highest reward-model score."""
    samples: Advanced[Size] = 12
    """Number of prompts, from the first, whose responses are written to evaluation.json."""
    heldout_windows: Advanced[Size] = 256
    """Number of windows of held-out pretraining text to measure bits per byte on."""
    heldout_window: Advanced[Natural] = 0
    """Length of such a window, in tokens; 0: the model's context length, at most 512."""
    comparisons_share: Advanced[Share] = 1.0
    """Share of the rankings' prompts to use. With reward's and dpo's --heldout here, only those that they held out."""


@dataclass(frozen=True)
class Bench:
    """What every model is measured with."""

    tokenizer: Tokenizer
    prompts: list[Prompt]
    prompt_ids: list[list[int]]  # the encoded prompts
    heldout: Any  # held-out text as a token stream; None without any
    base: Path | None
    sft: Path
    reward: Reward | None
    panel: Panel | None
    device: Device
    config: EvaluateConfig

    @property
    def clusters(self) -> list[str]:
        """Each prompt's conversation. Prompts of one conversation are correlated; the bootstrap keeps them together."""
        return [p.conversation or str(i) for i, p in enumerate(self.prompts)]

    def load(self, folder: Path) -> GPT:
        """A frozen model, ready to sample and to score. The caller holds the only reference."""
        release_memory()  # of the model that was loaded before
        return for_inference(load_policy(folder, self.device, frozen=True)[0])


def open_bench(
    config: EvaluateConfig,
    device: Device,
    base: Path | None,
    sft: Path,
    reward: Sequence[str],
    panel: Path | None,
    prompts: Sequence[Path],
    heldout: Sequence[Path],
) -> Bench:
    """Read what all models share. What is not given has no figures.

    Raises InputError for anything that does not fit, before any sampling starts.
    """
    model, tokenizer = load_policy(sft, device, frozen=True)
    check_context(model.config.context, config.max_prompt, config.max_tokens)
    pool = read_prompts(prompts)
    chosen = choose_fitting(pool, tokenizer, config.count, config.max_prompt, "evaluate", config.per_conversation)
    prompt_ids = [encode_chat(tokenizer, p.prompt, add_generation_prompt=True).ids for p in chosen]
    tokens = None
    if heldout:
        texts = [document.plain_text() for document in read_documents(heldout)]
        tokens = stream(encode_documents(tokenizer, texts), tokenizer.end_of_text_id)
        check_windows(tokens, row_length(config.heldout_window, model.config.context, "--heldout-window"))
    del model
    load = frozen_loader(sft, device, config.max_prompt, config.max_tokens)
    scorer = open_reward(reward, config, load) if reward else None
    gold = Panel.load(panel) if panel else None
    return Bench(tokenizer, chosen, prompt_ids, tokens, base, sft, scorer, gold, device, config)


@dataclass(frozen=True)
class ModelOutput:
    """One model's responses, and how well it predicts held-out text."""

    responses: list[Response]  # one per prompt
    candidates: list[list[Response]]  # [prompt][sample], for best-of-n
    bits_per_byte: float | None  # None without held-out text

    @property
    def by_prompt(self) -> list[list[Response]]:
        """[prompt][the response, then the candidates]."""
        return [[response, *more] for response, more in zip(self.responses, self.candidates, strict=True)]

    def state(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        plain = asdict(self)
        return {"answers": plain.pop("responses"), **plain}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "ModelOutput":
        responses = [Response(**response) for response in state["answers"]]
        candidates = [[Response(**response) for response in samples] for samples in state["candidates"]]
        return cls(responses, candidates, state["bits_per_byte"])


def run_model(bench: Bench, model: GPT, candidates: int = 0) -> ModelOutput:
    """Sample a response and `candidates` further ones per prompt, and measure the held-out text."""
    responses = [response for (response,) in sample(bench, model, 1)]
    more = sample(bench, model, candidates) if candidates else [[] for _ in responses]
    return ModelOutput(responses, more, heldout_bits(bench, model))


def heldout_bits(bench: Bench, model: GPT) -> float | None:
    """Bits per byte of the held-out text; None without any."""
    if bench.heldout is None:
        return None
    length = row_length(bench.config.heldout_window, model.config.context, "--heldout-window")
    sizes, opening = bench.tokenizer.token_byte_counts(), document_opening(bench.tokenizer)
    return bits_per_byte(model, bench.heldout, sizes, bench.config.heldout_windows, length, opening)


def sample(bench: Bench, model: GPT, count: int) -> list[list[Response]]:
    """`count` responses to each prompt. Sample k of prompt i has the same seed for every model and every `count`."""
    responses: dict[int, list[Response]] = {}
    sampling = SamplingConfig(max_tokens=bench.config.max_tokens)
    order = sorted(range(len(bench.prompt_ids)), key=lambda i: len(bench.prompt_ids[i]))  # similar lengths pad less
    fitting = rows_that_fit(model.config, bench.config.max_prompt + bench.config.max_tokens, ROWS)
    size = max(1, fitting // count)
    for start in range(0, len(order), size):
        release_memory()  # of the last batch's KV cache, whose size differs
        batch = order[start : start + size]
        seeds = [seed_for(bench.config.seed, f"evaluate/{i}/{k}") for i in batch for k in range(count)]
        prompts = [bench.prompt_ids[i] for i in batch]
        sampled = generate(model, prompts, seeds, bench.tokenizer.end_ids, sampling, count)
        responses |= zip(batch, sampled, strict=True)
    return [responses[i] for i in range(len(order))]
