"""Transcripts in the style of Anthropic's HH dataset (Bai et al. 2022) -> messages.

    "\\n\\nHuman: Hi!\\n\\nAssistant: Hello." -> [{"role": "user", ...}, {"role": "assistant", ...}]

A speaker's name counts at the very start of the text and after an empty line, not within a line or a paragraph. Turns
in a row by one speaker are one message. Text before the first name becomes the system message.
"""

import re

from tutelage.data.messages import Messages

_NEWLINE = r"(?:\r\n|\r(?!\n)|\n)"
_SPEAKER = re.compile(rf"(?:\A\s*|{_NEWLINE}[ \t]*{_NEWLINE}[\r\n]*)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """Whether the text starts with a speaker's name and both speak in it."""
    return _SPEAKER.match(text) is not None and has_turns(text)


def has_turns(text: str) -> bool:
    """Whether both speakers have a turn in the text, possibly after an introduction."""
    return set(_SPEAKER.findall(text)) == set(_ROLES)


def transcript_messages(text: str) -> Messages:
    """The messages of a transcript, each without the white space around it. A turn may be empty."""
    before, *turns = _SPEAKER.split(text)  # what stands before, then speaker, text, speaker, text, ...
    messages = [{"role": "system", "content": before.strip()}] if before.strip() else []
    for speaker, said in zip(turns[::2], turns[1::2], strict=True):
        role, content = _ROLES[speaker], said.strip()
        if messages and messages[-1]["role"] == role:
            content = f"{messages.pop()['content']}\n\n{content}".strip()
        messages.append({"role": role, "content": content})
    return messages
