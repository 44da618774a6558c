"""Messages -> the token ids that a model was trained on, and the tokens of an answer.

    inference   encode_chat(messages, add_generation_prompt=True).ids
    training    training_examples(messages) -> ids, supervised

The ids are those of transformers: the template renders the whole conversation, and the tokenizer encodes the text at
once. Nobody can write a control token by typing it (`control.py`).

An answer is what follows the generation prompt, up to the token that ends the turn. Training sees the ids of the
generation prompt exactly as inference feeds them. Some templates write an answer differently once another turn follows
(Qwen3 and DeepSeek-R1 drop its reasoning). With them, each answer is an example of its own: the conversation up to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from typing import Any

from tutelage.text.control import THINK
from tutelage.text.endings import ANSWER, QUESTION
from tutelage.text.template import Message, Rendering, Tool
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.tool_prompt import as_template_takes

__all__ = ["ChatIds", "Message", "encode_answer", "encode_chat", "rewrites_turns", "training_examples", "training_size"]

NO_REASONING = f"\n{THINK[1]}\n\n"  # ends the reasoning that a generation prompt opens, where an answer has none


@dataclass(frozen=True)
class ChatIds:
    """A conversation as token ids. Both lists have one entry per token."""

    ids: list[int]
    supervised: list[bool]  # True on the assistant's content and the end-of-turn token after it


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    tools: Sequence[Tool] | None = None,
) -> ChatIds:
    """The ids that transformers gives a conversation, with a mask of its answers.

    If the template rewrites earlier turns, the mask covers the last answer alone. With tools, the functions that may be
    called, it covers nothing. Raises InputError if the template refuses the conversation.
    """
    messages, tools = as_template_takes(tokenizer.template, messages, tools)
    if add_generation_prompt or tools or not _answers(messages):
        ids = tokenizer.reader.encode(_render(tokenizer, messages, add_generation_prompt, tools))
        return ChatIds(ids, [False] * len(ids))
    whole, ids = _whole(tokenizer, messages), tokenizer.reader.encode(_render(tokenizer, messages))
    if whole and whole.ids[: len(ids)] == ids:
        return ChatIds(ids, whole.supervised[: len(ids)])
    return ChatIds(ids, _overlap(ids, encode_answer(tokenizer, messages[: _answers(messages)[-1] + 1])))


def training_examples(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[ChatIds]:
    """What to train on: the whole conversation with all its answers, or if the template rewrites earlier turns, one
    example per answer. Errors are those of `encode_chat`.
    """
    whole = _whole(tokenizer, messages)
    return [whole] if whole else [encode_answer(tokenizer, messages[: turn + 1]) for turn in _answers(messages)]


def rewrites_turns(tokenizer: Tokenizer) -> bool:
    """Whether the template writes an answer differently once another turn follows it."""
    return _whole(tokenizer, [QUESTION, ANSWER, QUESTION, ANSWER]) is None


def training_size(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of the longest training example of a conversation that ends with an answer, if its beginnings fit."""
    ids = tokenizer.reader.encode(_render(tokenizer, messages))
    return max(len(ids), len(encode_answer(tokenizer, messages).ids))


def encode_answer(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> ChatIds:
    """The conversation up to its last message, an answer, which alone is supervised.

    The ids begin with those of the generation prompt and end with the end-of-turn token.
    """
    marked, breaks = tokenizer.guard.mark(messages)
    asked, answered = tokenizer.template.render(marked[:-1], True), tokenizer.template.render(marked)
    prompt, rendering = tokenizer.guard.seal(asked, breaks), tokenizer.guard.seal(answered, breaks)
    ids, start = tokenizer.reader.continued(prompt.text, _answer_text(prompt.text, rendering.text, messages[-1]))
    end = tokenizer.end_of_turn_id
    ids = ids[: ids.index(end, start) + 1] if end in ids[start:] else [*ids, end]
    return ChatIds(ids, _mask(tokenizer, rendering, ids, [(start, len(ids))]))


def _answers(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The indices of the assistant's turns."""
    return [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]


def _render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    prompt: bool = False,
    tools: Sequence[Tool] | None = None,
) -> str:
    """The sealed text of a conversation, with the generation prompt if `prompt`."""
    marked, breaks = tokenizer.guard.mark(messages, tools)
    tools = tokenizer.guard.mark_tools(tools, breaks) if tools else None
    return tokenizer.guard.seal(tokenizer.template.render(marked, prompt, tools), breaks).text


def _whole(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> ChatIds | None:
    """The conversation with all its answers; None unless it begins with the ids of every prompt and its answer."""
    marked, breaks = tokenizer.guard.mark(messages)
    rendered = tokenizer.template.render(marked)
    cuts: list[int] = []  # where each answer begins
    for turn in _answers(messages):
        asked = tokenizer.template.render(marked[:turn], True)
        answered = rendered if turn + 1 == len(marked) else tokenizer.template.render(marked[: turn + 1])
        if not (rendered.startswith(answered) and answered.startswith(asked)):
            return None
        cuts.append(len(asked))
    rendering = tokenizer.guard.seal(rendered, breaks, cuts)
    ids, marks = tokenizer.reader.encode_segments(rendering.text)
    starts = [tokenizer.reader.prefix(rendering.text[:cut], ids, marks) for cut in rendering.cuts]
    spans = _spans(ids, starts, tokenizer.end_of_turn_id)
    if spans and spans[-1][1] > len(ids):
        ids.append(tokenizer.end_of_turn_id)
    return None if spans is None else ChatIds(ids, _mask(tokenizer, rendering, ids, spans))


def _spans(ids: Sequence[int], starts: Sequence[int | None], end: int) -> list[tuple[int, int]] | None:
    """Where each answer begins and where it has ended, for known beginnings. The last one's end may be missing."""
    spans: list[tuple[int, int]] = []
    for start, limit in pairwise((*starts, None)):
        if start is None:
            return None
        if end in ids[start:limit]:
            spans.append((start, ids.index(end, start) + 1))
        elif limit is None:
            spans.append((start, len(ids) + 1))
        else:
            return None
    return spans


def _overlap(ids: list[int], example: ChatIds) -> list[bool]:
    """The mask of the last answer in a conversation that need not be rendered as generation prompt and answer."""
    start, end = _shared(ids, example.ids[:-1]), example.ids[-1]
    first = example.supervised.index(True)
    stop = ids.index(end, start) if end in ids[start:] else len(ids)
    return [min(first, start) <= i <= stop for i in range(len(ids))]


def _answer_text(asked: str, answered: str, answer: Mapping[str, Any]) -> str:
    """What follows the generation prompt: the rest of the rendered conversation if that begins with the prompt.

    DeepSeek-R1's generation prompt opens the reasoning, but an answer is rendered without its reasoning. Then the
    reasoning in the answer is put back, or an empty one is closed.
    """
    if answered.startswith(asked):
        return answered[len(asked) :]
    shared = len(commonprefix([asked, answered]))
    opened, rest = asked[shared:], answered[shared:]
    if THINK[0] not in opened:
        return rest
    reasoning, closed, said = str(answer.get("content", "")).rpartition(THINK[1])
    if not closed:
        return NO_REASONING + rest.lstrip()
    reasoning = reasoning.lstrip().removeprefix(THINK[0]).removeprefix("\n" if asked.endswith("\n") else "")
    return reasoning + closed + said[: len(said) - len(said.lstrip())] + rest.lstrip()


def _mask(
    tokenizer: Tokenizer, rendering: Rendering, ids: Sequence[int], answers: Sequence[tuple[int, int]]
) -> list[bool]:
    """True on the answers. If the template marks what the assistant wrote, only on that, and on the ends of turns."""
    mask = [False] * len(ids)
    for start, after in answers:
        mask[start:after] = [True] * (after - start)
    if not tokenizer.template.marks_answers:
        return mask
    marked = {after - 1 for _, after in answers}
    for span in rendering.generated:
        first, after = (_shared(tokenizer.reader.encode(rendering.text[:at]), ids) for at in span)
        marked.update(range(first, after))
    return [learn and i in marked for i, learn in enumerate(mask)]


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of ids with which both begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(first), len(second)))
