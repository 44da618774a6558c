"""Conversations -> prompts for ranking, PPO and evaluation.

Each user turn, together with the turns before it, is one prompt. Prompts are selected by a hash of their text, so the
selection is the same in every process and does not change when conversations are added elsewhere.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from tutelage.data.messages import Messages
from tutelage.data.records import Prompt
from tutelage.data.sources import CHITCHAT, Conversation
from tutelage.data.splits import unit_hash
from tutelage.errors import InputError, located
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

CONTEXT_MESSAGES = 6  # earlier turns rarely matter in a chat, and 128 tokens seldom have room for more

_WORD = re.compile(r"[A-Za-z]{2,}|[\u3400-\u9fff]")


def from_conversation(conversation: Conversation, split: str) -> Iterator[Prompt]:
    """One prompt for each user turn that contains a word: two Latin letters or a Chinese character."""
    for turn, message in enumerate(conversation.messages):
        if message["role"] == "user" and _WORD.search(message["content"]):
            context = conversation.messages[max(0, turn + 1 - CONTEXT_MESSAGES) : turn + 1]
            yield Prompt(_from_user(context), CHITCHAT, split, conversation.id)


def fit(prompt: Prompt, tokenizer: Tokenizer, max_tokens: int) -> Prompt | None:
    """Drop the oldest turns until the prompt has at most `max_tokens`; None if the last user turn alone has more."""
    kept = latest_turns(prompt.prompt, tokenizer, max_tokens)
    return replace(prompt, prompt=kept) if kept else None


def latest_turns(messages: Messages, tokenizer: Tokenizer, max_tokens: int) -> Messages | None:
    """As many of the latest turns as fit `max_tokens`; None if the turns from the last user turn on have more.

    The result starts with a user turn, after the system turn if there is one. The generation prompt counts.
    """
    system = messages[:1] if messages[0]["role"] == "system" else []
    rest = messages[len(system) :]
    starts = [turn for turn, message in enumerate(rest) if message["role"] == "user"]

    def fits(start: int) -> bool:
        return len(encode_chat(tokenizer, system + rest[start:], add_generation_prompt=True).ids) <= max_tokens

    first = bisect_left(starts, True, key=fits)  # fewer turns hardly ever need more tokens
    return system + rest[starts[first] :] if first < len(starts) else None


def choose(prompts: Iterable[Prompt], n: int, per_conversation: int, salt: str) -> list[Prompt]:
    """The `n` prompts with the smallest hashes, in hash order, with at most `per_conversation` from one conversation.

    Different salts give independent selections. The limit does not apply to prompts without a conversation.
    """
    ordered = sorted(
        ((unit_hash(salt, p.conversation or "", key(p.prompt)), i, p) for i, p in enumerate(prompts)),
        key=lambda entry: entry[:2],
    )
    counts: Counter[str] = Counter()
    chosen: list[Prompt] = []
    for _, _, prompt in ordered:
        if len(chosen) == n:
            break
        if prompt.conversation is None or counts[prompt.conversation] < per_conversation:
            chosen.append(prompt)
            counts[prompt.conversation or ""] += 1
    return chosen


def choose_fitting(
    pool: Sequence[Prompt], tokenizer: Tokenizer, count: int, max_tokens: int, salt: str, per_conversation: int = 0
) -> list[Prompt]:
    """Up to `count` prompts by hash, each cut to `max_tokens`. A prompt whose last turn alone is longer is skipped.

    At most `per_conversation` come from one conversation; 0 means no limit. Raises InputError if no prompt fits.
    """
    chosen: list[Prompt] = []
    for prompt in choose(pool, len(pool), per_conversation or len(pool), salt):
        if len(chosen) == count:
            break
        with located(prompt.where):
            fitted = fit(prompt, tokenizer, max_tokens)
        if fitted is not None:
            chosen.append(fitted)
    if not chosen:
        first = f", the first in {pool[0].where}" if pool and pool[0].where else ""
        raise InputError(
            f"prompts: none of {len(pool)} fits {max_tokens} tokens{first}; give shorter prompts or raise the limit"
        )
    return chosen


def check_context(context: int, max_prompt: int, max_tokens: int, model: object = "the model") -> None:
    """Raises InputError unless the longest prompt and the longest response together fit the model's context."""
    if max_prompt + max_tokens > context:
        raise InputError(
            f"prompts of {max_prompt} tokens with responses of {max_tokens} need {max_prompt + max_tokens} tokens, "
            f"but {model}'s context is {context}; lower --max-prompt or --max-tokens"
        )


def row_length(requested: int, context: int, option: str) -> int:
    """Tokens per row of text: `requested`, or if that is 0, the context but at most 512, because memory grows with it.

    Raises InputError if more than the context is requested.
    """
    if requested > context:
        raise InputError(f"{option} {requested}: the model's context is {context}; give at most that")
    return requested or min(context, 512)


def key(messages: Messages) -> str:
    """A string that is the same for two prompts only if the prompts are the same."""
    return "\x1e".join(f"{message['role']}\x1f{message['content']}" for message in messages)


def _from_user(messages: Messages) -> Messages:
    start = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
    return messages[start:]
