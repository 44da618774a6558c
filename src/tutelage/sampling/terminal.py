"""`tutelage chat`: a conversation with a run, in the terminal.

    run directory, lines from the keyboard  ->  answers, written as they are sampled

The whole conversation is the prompt. When it no longer fits the model's context beside an answer, the oldest turns are
forgotten, always a question together with its answer.
"""

import contextlib
import io
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tutelage.errors import InputError
from tutelage.model.gpt import GPT, parameter_count
from tutelage.runs.base import find_base
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.runs.run import seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import inference_copy, stream
from tutelage.text.chat import Message, encode_chat
from tutelage.text.tokenizer import Tokenizer

HELP = "/new starts over, /quit or Ctrl-D leaves, Ctrl-C stops an answer"


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """How the answers are sampled."""

    temperature: float = 0.8
    """Logits are divided by it: lower is safer and duller; 0 takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 is all."""
    top_p: float = 0.95
    """Only the smallest set of tokens whose mass reaches p; 1 is all."""
    min_p: float = 0.0
    """Only tokens at least this many times as likely as the likeliest; 0 is all."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that were said before become less likely."""
    max_tokens: int = 64
    """Longest answer, in tokens."""
    seed: int = 0
    """The same seed and the same lines give the same conversation."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """auto, fp32 or bf16."""


def chat(run: Positional[Path], config: ChatConfig = ChatConfig()) -> None:
    """Talk to a run in this terminal. The answer appears as it is sampled.

    Example: tutelage chat runs/demo/ppo-ptx --temperature 0.7
    """
    model, tokenizer = load_policy(find_base(run), choose_device(config.device, config.dtype))
    room = model.config.context - config.max_tokens
    if config.max_tokens < 1 or room < 1:
        raise InputError(
            f"--max-tokens {config.max_tokens}: {run} has a context of {model.config.context} tokens; ask for fewer"
        )
    print(f"{run}: {parameter_count(model) / 1e6:.1f}M parameters, context {model.config.context} tokens. {HELP}.")
    converse(inference_copy(model), tokenizer, config, room)


def converse(model: GPT, tokenizer: Tokenizer, config: ChatConfig, room: int) -> None:
    """The conversation itself, until the person leaves."""
    messages: list[Message] = []
    for turn, line in enumerate(lines()):
        if line == "/new":
            messages = []
            continue
        messages.append({"role": "user", "content": line})
        prompt = fitting_prompt(tokenizer, messages, room)
        if prompt is None:
            messages.pop()
            print(f"(too long: with an answer of {config.max_tokens} tokens, {room} are left for what you say)")
            continue
        answer = write(words(tokenizer, sample(model, tokenizer, prompt, config, turn)))
        messages.append({"role": "assistant", "content": answer})


def lines() -> Iterator[str]:
    """What the person types, line by line, until /quit, Ctrl-D or Ctrl-C. Works in a pipe, too."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (importing it gives input() its editing keys and history)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text become a sign, not a traceback
    while True:
        try:
            line = input("\nyou> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line == "/quit":
            return
        if line:
            yield line


def fitting_prompt(tokenizer: Tokenizer, messages: list[Message], room: int) -> list[int] | None:
    """The conversation's ids, its oldest exchanges forgotten as needed; None if the last line alone is too long."""
    while len(ids := encode_chat(tokenizer, messages, add_generation_prompt=True).ids) > room:
        if len(messages) == 1:
            return None
        del messages[:2]
    return ids


def sample(model: GPT, tokenizer: Tokenizer, prompt: list[int], config: ChatConfig, turn: int) -> Iterator[int]:
    """The tokens of one answer."""
    how = SamplingConfig(
        max_tokens=config.max_tokens, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p,
        min_p=config.min_p, repetition_penalty=config.repetition_penalty,
    )  # fmt: skip
    return stream(model, prompt, seed_for(config.seed, f"chat/{turn}"), tokenizer.end_of_turn_id, how)


def words(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Text as soon as it is certain: a character may be spread over several tokens, and half of one is no character."""
    seen: list[int] = []
    shown = ""
    for token in ids:
        seen.append(token)
        text = tokenizer.decode(seen)
        if text.startswith(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(seen)
    if rest.startswith(shown):
        yield rest[len(shown) :]


def write(pieces: Iterable[str]) -> str:
    """Print an answer piece by piece and return it; Ctrl-C ends it where it is."""
    answer = ""
    print("gpt> ", end="", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        for piece in pieces:
            answer += piece
            print(printable(piece), end="", flush=True)
    print()
    return answer.strip()


def printable(text: str) -> str:
    """Without control characters: a model may say anything, and a terminal obeys escape sequences."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")
