"""The shapes in which conversations and prompts are written -> messages.

    messages | conversations | instruction, input, output | prompt, completion -> a conversation
    prompt | conversations | messages | instruction, input | question          -> the prompt of a response

These are the shapes of OpenAI, ShareGPT, Self-Instruct and Alpaca, and TRL. A response may be a text, a message, or a
list of messages that continues the prompt or repeats it.
"""

from typing import Any

from tutelage.data.fields import check_text, kind_of, text_field
from tutelage.data.messages import Messages, content_text, is_parts, message_in, messages_field, stripped
from tutelage.data.transcripts import has_turns, is_transcript, transcript_messages
from tutelage.errors import InputError

CONVERSATIONS = ("messages", "conversations", "instruction", "completion")  # fields that hold conversations


def conversation_in(record: dict[str, Any], where: str) -> Messages:
    """The whole conversation of a record. Raises InputError if it has none."""
    if record.get("instruction") is not None:
        answer = {"role": "assistant", "content": text_field(record, "output", where)}
        return [*_with_system(record, _instruction(record, where), where), answer]
    if record.get("messages") is None and record.get("completion") is not None:
        return with_response(record, "completion", where)
    name = next((n for n in ("messages", "conversations") if record.get(n) is not None), "messages")
    return _with_system(record, messages_field(record, name, where), where)


def stated_prompt(record: dict[str, Any], where: str) -> Messages:
    """The prompt that a record states; empty if it states none."""
    if record.get("instruction") is not None:
        prompt = _instruction(record, where)
    else:
        names = ("prompt", "conversations", "messages", "question")  # UltraFeedback has a prompt and whole `messages`
        name = next((n for n in names if record.get(n) not in (None, "")), None)
        prompt = prompt_messages(record, name, where) if name else []
    return _with_system(record, prompt, where)


def prompt_messages(record: dict[str, Any], name: str, where: str) -> Messages:
    """A prompt given as a text, as a transcript that ends with `Assistant:`, or as messages."""
    value = record.get(name)
    if not isinstance(value, str):
        return messages_field(record, name, where)
    if is_transcript(check_text(value, where)):
        turns = transcript_messages(value)
        if turns[-1] == {"role": "assistant", "content": ""}:
            return turns[:-1]
    return [{"role": "user", "content": value}]


def prompt_field(record: dict[str, Any], where: str) -> Messages:
    """The prompt of a record, as messages that end with the user's turn. It may be a text."""
    prompt = prompt_messages(record, "prompt", where)
    if prompt[-1]["role"] != "user":
        raise InputError(f"{where}: the prompt ends with a turn of role {prompt[-1]['role']}; end it with a user turn")
    return prompt


def with_response(record: dict[str, Any], name: str, where: str) -> Messages:
    """The record's prompt and the response in the field `name`, which may be a whole conversation, prompt included."""
    prompt, response = stated_prompt(record, where), record.get(name)
    if is_parts(response):
        response = content_text(response, name, where)
    if isinstance(response, list) and len(response) == 1 and isinstance(response[0], str):
        response = response[0]
    if isinstance(response, str):
        return _with_text(record, prompt, check_text(response, where))
    turns = _turns(response, name, where)
    if not prompt or all(turn["role"] == "assistant" for turn in turns):
        return [*prompt, *turns]
    repeated = _repeating(prompt, turns)
    if repeated is None and prompt[-1]["role"] != "assistant":
        raise InputError(f'{where}: the conversation in "{name}" does not contain the prompt; leave one of the two out')
    return repeated or [*prompt, *turns]


def _with_text(record: dict[str, Any], prompt: Messages, response: str) -> Messages:
    """A response given as text. It is a transcript if there is no prompt, or if it repeats the prompt."""
    if not prompt and has_turns(response):
        return transcript_messages(response)
    if is_transcript(response) and (repeated := _repeating(prompt, transcript_messages(response))):
        return repeated
    continues = isinstance(record.get("prompt"), str) and is_transcript(record["prompt"])
    return [*prompt, {"role": "assistant", "content": response.strip() if continues else response}]


def _repeating(prompt: Messages, turns: Messages) -> Messages | None:
    """The conversation that `turns` are if they repeat the prompt, with its system message; None if they do not."""
    system = prompt[:1] if prompt[0]["role"] == "system" else []
    rest, told = stripped(prompt[len(system) :]), turns[0]["role"] == "system"
    said = stripped(turns[1:] if told else turns)
    if said[: len(rest)] == rest or (len(rest) == 1 and rest[0] in said[:-1]):  # or the prompt is one of its questions
        return turns if told else [*system, *turns]
    return None


def _turns(response: Any, name: str, where: str) -> Messages:
    if isinstance(response, dict):
        named = response if "role" in response or "from" in response else {"role": "assistant", **response}
        return [message_in(named, f'{where}, "{name}"')]
    if not isinstance(response, list):
        raise InputError(f'{where}: "{name}" must be a string, a message or messages, but it is {kind_of(response)}')
    return messages_field({name: response}, name, where)


def _instruction(record: dict[str, Any], where: str) -> Messages:
    """The turns before the output of an instruction record (Wang et al. 2023, Self-Instruct).

    An input follows the instruction. LLaMA-Factory writes earlier turns as pairs in `history`.
    """
    turns: Messages = []
    history = record.get("history") or []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise InputError(f'{where}: "history" must be a list of pairs of texts')
        turns += (
            {"role": r, "content": check_text(t, where)} for r, t in zip(("user", "assistant"), pair, strict=True)
        )
    question = text_field(record, "instruction", where)
    if record.get("input"):
        question = f"{question}\n\n{text_field(record, 'input', where)}"
    return [*turns, {"role": "user", "content": question}]


def _with_system(record: dict[str, Any], messages: Messages, where: str) -> Messages:
    """The messages after the record's `system` text, if it has one and the messages do not."""
    if not record.get("system") or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": text_field(record, "system", where)}, *messages]
