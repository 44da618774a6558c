"""A chat in the terminal: its messages, its settings, and the commands that change them.

    line  ->  a question to answer, or a command to run

All messages are kept, so that /save writes the whole conversation. Those that no longer fit the context are only left
out of the prompt.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.options import Advanced
from tutelage.sampling.distribution import CHAT_MIN_P, CHAT_TEMPERATURE, SamplingConfig

Message = dict[str, str]

HELP = "/help lists the commands, /quit or Ctrl-D leaves, Ctrl-C stops an answer"
COMMANDS = """\
/new              start a new conversation
/again            sample another answer to your last question
/undo             remove your last question and its answer
/system TEXT      set the system prompt; without TEXT, remove it
/settings         show the settings; to change one, type for example /temperature 0.5
/save FILE        append the conversation to a JSONL file, as a demonstration
/quit             leave"""
FIXED = ("device", "dtype", "model", "key_file", "history")  # settings that cannot change during the chat


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """How answers are sampled. All options but the last five can be changed during the chat: /temperature 0.5."""

    temperature: float = CHAT_TEMPERATURE
    """Logits are divided by it. Lower values are safer and duller; 0 takes the most likely token."""
    top_k: Advanced[int] = 0
    """Keep only the k most likely tokens. 0 keeps all."""
    top_p: float = 1.0
    """Keep only the smallest set of tokens whose total probability reaches p. 1 keeps all."""
    min_p: float = CHAT_MIN_P
    """Keep only tokens with at least this fraction of the most likely token's probability. 0 keeps all."""
    repetition_penalty: Advanced[float] = 1.0
    """Above 1, tokens that already occur in the conversation become less likely. 1 turns it off."""
    max_tokens: int = 64
    """Maximum length of an answer, in tokens."""
    seed: int = 0
    """The same seed and the same typed lines give the same conversation."""
    system: str = ""
    """System prompt."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Advanced[str] = "auto"
    """auto, fp32 or bf16."""
    model: str = ""
    """For a server: the model's name. By default the first one it lists."""
    key_file: Path | None = None
    """For a server: a file that holds the API key."""
    history: Advanced[Path] = Path("~/.tutelage_history")
    """File that stores typed lines, so that the arrow keys find them in later chats. /dev/null stores none."""

    def __post_init__(self) -> None:
        for name, least in {"max_tokens": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}: must be at least {least}")
        self.sampling()

    def sampling(self) -> SamplingConfig:
        """The sampler's settings. Raises InputError for values out of bounds."""
        return SamplingConfig(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )


class Conversation:
    """The messages so far, and the settings of the next answer."""

    def __init__(self, config: ChatConfig):
        self.config = config
        self.messages: list[Message] = []
        self.dropped = 0  # messages at the start that no longer fit the model's context
        self.answers = 0  # sampled so far, including removed ones: each gets its own seed

    def prompt(self) -> list[Message]:
        """The messages that the model is given."""
        return self._system() + self.messages[self.dropped :]

    def record(self) -> dict[str, object]:
        """All messages, as one line of a file of demonstrations."""
        return {"messages": self._system() + self.messages, "source": "chat"}

    def _system(self) -> list[Message]:
        return [{"role": "system", "content": self.config.system}] if self.config.system else []

    def ask(self, question: str) -> None:
        self.messages.append({"role": "user", "content": question})

    def answered(self, answer: str) -> None:
        self.messages.append({"role": "assistant", "content": answer})
        self.answers += 1

    def drop_oldest(self) -> str:
        """Leave one more question and its answer out of the prompt; returns the question.

        Raises InputError when only the last question is left.
        """
        if self.dropped + 1 >= len(self.messages):
            room = f"no room is left for an answer of {self.config.max_tokens} tokens"
            raise InputError(f"too long: {room}; shorten the question or lower /max-tokens")
        self.dropped += 2
        return self.messages[self.dropped - 2]["content"]

    def undo(self) -> None:
        """Remove the last question, and its answer if it has one."""
        while self.messages and self.messages.pop()["role"] != "user":
            pass
        self.dropped = min(self.dropped, len(self.messages))

    def reopen(self) -> None:
        """Remove the last answer, so that its question can be answered again. Raises InputError if there is none."""
        if not self.messages:
            raise InputError("/again: there is no question to answer again")
        self.messages.pop()


def handle_line(line: str, conversation: Conversation) -> bool:
    """Record a question, or run a command. Returns whether there is a question to answer.

    Raises InputError for a command that cannot be run.
    """
    if not line.startswith("/"):
        conversation.ask(line)
        return True
    name, _, value = line[1:].partition(" ")
    value = value.strip()
    if name == "new":
        conversation.messages, conversation.dropped = [], 0
    elif name == "again":
        conversation.reopen()
        return True
    elif name == "undo":
        conversation.undo()
    elif name == "help":
        print(COMMANDS)
    elif name == "settings":
        for setting, current in settings(conversation.config).items():
            print(f"/{setting.replace('_', '-')} {current}")
    elif name == "save":
        save(conversation, value)
    else:
        conversation.config = changed(conversation.config, name.replace("-", "_"), value)
    return False


def settings(config: ChatConfig) -> dict[str, object]:
    """The settings that can be changed during the chat."""
    return {name: value for name, value in vars(config).items() if name not in FIXED}


def changed(config: ChatConfig, name: str, value: str) -> ChatConfig:
    """The settings with one of them replaced by what was typed. Raises InputError if there is no such setting."""
    if name not in settings(config):
        raise InputError(f"/{name}: unknown command; /help lists the commands")
    kind = type(getattr(config, name))
    try:
        return dataclasses.replace(config, **{name: kind(value)})
    except ValueError:
        raise InputError(f"/{name} {value}: not {'a whole' if kind is int else 'a'} number") from None


def save(conversation: Conversation, name: str) -> None:
    """Append the conversation to a file of demonstrations."""
    if not name:
        raise InputError("/save: name a file, for example /save chat.jsonl")
    if not conversation.messages:
        raise InputError(f"/save {name}: the conversation is empty")
    path = Path(name).expanduser()
    try:
        earlier = path.read_text(encoding="utf-8") if path.exists() else ""
        with atomic_write(path) as file:
            file.write(earlier + json.dumps(conversation.record(), ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    print(f"(saved to {path})")
