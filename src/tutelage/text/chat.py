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
from os.path import commonprefix
from typing import Any

from tutelage.text.control import THINK
from tutelage.text.template import Message, Rendering
from tutelage.text.tokenizer import Tokenizer

__all__ = ["ChatIds", "Message", "encode_answer", "encode_chat", "training_examples"]

NO_REASONING = f"\n{THINK[1]}\n\n"  # ends the reasoning that a generation prompt opens, where an answer has none


@dataclass(frozen=True)
class ChatIds:
    """A conversation as token ids. Both lists have one entry per token."""

    ids: list[int]
    supervised: list[bool]  # True on the assistant's content and the end-of-turn token after it


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
) -> ChatIds:
    """The ids that transformers gives a conversation, with a mask of its answers.

    If the template rewrites earlier turns, the mask covers the last answer alone. Raises InputError if the template
    refuses the conversation.
    """
    ids = tokenizer.reader.encode(_render(tokenizer, messages, add_generation_prompt).text)
    examples = [] if add_generation_prompt else _answers(tokenizer, messages)
    whole = _masked(ids, examples) or _masked(ids, examples[-1:])
    return whole or ChatIds(ids, _overlap(ids, examples[-1]))


def training_examples(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[ChatIds]:
    """What to train on: the whole conversation with all its answers, or if the template rewrites earlier turns, one
    example per answer. Errors are those of `encode_chat`.
    """
    examples = _answers(tokenizer, messages)
    ids = tokenizer.reader.encode(_render(tokenizer, messages).text)
    if examples and examples[-1].ids[: len(ids)] == ids:
        ids = examples[-1].ids  # also holds the end of the last turn, where a template writes it with the next turn
    whole = _masked(ids, examples)
    return [whole] if whole else examples


def encode_answer(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> ChatIds:
    """The conversation up to its last message, an answer, which alone is supervised.

    The ids begin with those of the generation prompt and end with the end-of-turn token.
    """
    *prompt, answer = messages
    asked = _render(tokenizer, prompt, True).text
    rendered = _render(tokenizer, messages)
    reader, end = tokenizer.reader, tokenizer.end_of_turn_id
    ids, start = reader.continued(asked, _answer_text(asked, rendered.text, answer))
    ids = ids[: ids.index(end, start) + 1] if end in ids[start:] else [*ids, end]
    supervised = [i >= start for i in range(len(ids))]
    if tokenizer.template.marks_answers:
        supervised = _generated(tokenizer, rendered, ids, start)
    return ChatIds(ids, supervised)


def _render(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], prompt: bool = False) -> Rendering:
    """The sealed text of a conversation, with the generation prompt if `prompt`."""
    marked, breaks = tokenizer.guard.mark(messages)
    return tokenizer.guard.seal(tokenizer.template.render(marked, prompt), breaks)


def _answers(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[ChatIds]:
    """One example per answer: the conversation up to it."""
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    return [encode_answer(tokenizer, messages[: turn + 1]) for turn in turns]


def _masked(ids: list[int], examples: Sequence[ChatIds]) -> ChatIds | None:
    """The conversation with the answers of all examples; None if one of them is not its beginning."""
    supervised = [False] * len(ids)
    for example in examples:
        if ids[: len(example.ids)] != example.ids:
            return None
        for i, learn in enumerate(example.supervised):
            supervised[i] |= learn
    return ChatIds(ids, supervised)


def _overlap(ids: list[int], example: ChatIds) -> list[bool]:
    """The mask of the last answer where the conversation is not rendered as generation prompt and answer."""
    start, end = len(commonprefix([ids, example.ids])), example.ids[-1]
    stop = ids.index(end, start) if end in ids[start:] else len(ids)
    return [start <= i <= stop for i in range(len(ids))]


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


def _generated(tokenizer: Tokenizer, rendered: Rendering, ids: Sequence[int], start: int) -> list[bool]:
    """The mask of an answer whose template marks what the assistant wrote, which need not be all that it renders."""
    supervised = [False] * len(ids)
    for span in rendered.generated:
        first, after = (len(commonprefix([tokenizer.reader.encode(rendered.text[:at]), ids])) for at in span)
        supervised[first:after] = [True] * (after - first)
    return [learn and i >= start for i, learn in enumerate(supervised[:-1])] + [True]
