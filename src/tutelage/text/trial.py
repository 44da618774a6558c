"""Renders short conversations with a chat template that nobody has tried yet, in a process with limits.

    renderings(template, conversations) -> texts, or what is wrong

A template comes with a downloaded model and is a program: it may take hours, or all memory. So it is tried in a child
process before it is used. Our own template is rendered here.
"""

from collections.abc import Sequence
from typing import Any

from tutelage import bounded
from tutelage.errors import InputError
from tutelage.text.template import CHAT_TEMPLATE, Message, Template, Tool, without_marks

SECONDS, MEMORY = 5.0, 512  # MiB
LONGEST = 1_000_000  # characters that a template may write for a short conversation
OVERRUN = {
    "time": "it takes longer than {seconds:g} seconds to render a short conversation",
    "memory": "it needs more than {memory} MiB to render a short conversation",
    "closed": "the process that tried it was ended",
}

_trusted = {CHAT_TEMPLATE}
_child = bounded.Child(__name__, memory=MEMORY, idle=2.0)  # a second tokenizer often follows the first

# Messages, whether a generation prompt follows, and the functions that may be called.
Conversation = tuple[Sequence[Message], bool, Sequence[Tool] | None]


def trust(template: str) -> None:
    """Render this template here from now on. For a process that has limits itself."""
    _trusted.add(template)


def renderings(template: Template, conversations: Sequence[Conversation]) -> list[str | InputError]:
    """The texts without marks, or for a conversation that the template refuses the error.

    Raises InputError for a template that exceeds the limits.
    """
    if template.text in _trusted:
        return [as_error(rendered) for rendered in render_all(template.text, template.specials, conversations)]
    try:
        found = _child.ask(
            "render", SECONDS, template=template.text, specials=template.specials, conversations=conversations
        )
    except bounded.Overrun as overrun:
        why = OVERRUN[str(overrun)].format(seconds=SECONDS, memory=MEMORY)
        raise InputError(f"chat template: {why}; use another template") from None
    return [as_error(rendered) for rendered in found]


def as_error(rendered: dict[str, str]) -> str | InputError:
    return InputError(rendered["error"]) if "error" in rendered else rendered["text"]


def render_all(template: str, specials: Sequence[Sequence[str]], conversations: Sequence[Any]) -> list[dict[str, str]]:
    """{"text": ...} or {"error": ...} for each conversation."""
    made = Template(template, tuple((name, token) for name, token in specials))
    return [render(made, messages, prompt, tools) for messages, prompt, tools in conversations]


def render(
    template: Template, messages: Sequence[Message], prompt: bool, tools: Sequence[Tool] | None
) -> dict[str, str]:
    try:
        text = without_marks(template.render(messages, add_generation_prompt=prompt, tools=tools))
    except InputError as error:
        return {"error": str(error)}
    if len(text) > LONGEST:
        return {"error": f"chat template: it writes {len(text)} characters for a short conversation; use another one"}
    return {"text": text}


def main() -> None:
    """What the child process runs."""
    bounded.answer_all({"render": render_all}, refusals=(InputError,))
