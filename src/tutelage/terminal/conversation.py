"""A conversation held in the terminal: its turns, its settings, and the commands that change them.

    line  ->  a question to answer, or a command obeyed

The turns are kept whole; what the model no longer sees is only skipped, so that /save writes everything.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.sampling.distribution import SamplingConfig

Message = dict[str, str]

HELP = "/help lists the commands, /quit or Ctrl-D leaves, Ctrl-C stops an answer"
COMMANDS = """\
/new              start over
/again            another answer to your last question
/undo             take back your last question and its answer
/system TEXT      what the model is told before the conversation; nothing takes it away
/settings         show the settings; /temperature 0.5 changes one, and so for each
/save FILE        append the conversation to a JSONL file, as a demonstration
/quit             leave"""
FIXED = ("device", "dtype", "model", "key_file", "history")  # decided when the chat starts


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """How the answers are sampled. All but the last five can be changed in the conversation: /temperature 0.5."""

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
    system: str = ""
    """What the model is told before the conversation."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """auto, fp32 or bf16."""
    model: str = ""
    """Of a server: the model's name; the first it lists if none is given."""
    key_file: Path | None = None
    """Of a server: a file that holds the API key."""
    history: Path = Path("~/.tutelage_history")
    """Where typed lines are kept for the arrow keys of later chats; /dev/null keeps none."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max_tokens {self.max_tokens}: must be at least 1")
        self.sampling()

    def sampling(self) -> SamplingConfig:
        """The sampler's part of it. Raises InputError for a value that has no meaning."""
        return SamplingConfig(
            max_tokens=self.max_tokens, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p,
            min_p=self.min_p, repetition_penalty=self.repetition_penalty,
        )  # fmt: skip


class Conversation:
    """The turns so far and the settings of the next answer."""

    def __init__(self, config: ChatConfig):
        self.config = config
        self.messages: list[Message] = []
        self.unseen = 0  # messages at the start that no longer fit the model's context
        self.answers = 0  # sampled so far, taken back or not: each has its own seed

    def prompt(self) -> list[Message]:
        """What the model is shown."""
        system = [{"role": "system", "content": self.config.system}] if self.config.system else []
        return system + self.messages[self.unseen :]

    def ask(self, line: str) -> None:
        self.messages.append({"role": "user", "content": line})

    def answered(self, answer: str) -> None:
        self.messages.append({"role": "assistant", "content": answer})
        self.answers += 1

    def forget(self) -> str:
        """Show the model one exchange less; returns its question. Raises InputError when only the last one is left."""
        if self.unseen + 1 >= len(self.messages):
            raise InputError(f"too long: there is no room left for an answer of {self.config.max_tokens} tokens")
        self.unseen += 2
        return self.messages[self.unseen - 2]["content"]

    def take_back(self) -> None:
        """Drop the last question, and the answer if it has one."""
        while self.messages and self.messages.pop()["role"] != "user":
            pass
        self.unseen = min(self.unseen, len(self.messages))


def obey(line: str, talk: Conversation) -> bool:
    """Take in one line. True when there is a question to answer. Raises InputError for a command that is none."""
    if not line.startswith("/"):
        talk.ask(line)
        return True
    name, _, value = line[1:].partition(" ")
    value = value.strip()
    if name == "new":
        talk.messages, talk.unseen = [], 0
    elif name == "again":
        return ask_again(talk)
    elif name == "undo":
        talk.take_back()
    elif name == "help":
        print(COMMANDS)
    elif name == "settings":
        print("\n".join(f"/{field.replace('_', '-')} {current}" for field, current in settings(talk.config).items()))
    elif name == "save":
        save(talk, value)
    else:
        talk.config = changed(talk.config, name.replace("-", "_"), value)
    return False


def settings(config: ChatConfig) -> dict[str, object]:
    """What can be changed in the conversation."""
    return {name: value for name, value in vars(config).items() if name not in FIXED}


def changed(config: ChatConfig, name: str, value: str) -> ChatConfig:
    """The settings with one of them read from what was typed."""
    if name not in settings(config):
        raise InputError(f"/{name} is no command; /help lists them")
    kind = type(getattr(config, name))
    try:
        return dataclasses.replace(config, **{name: kind(value)})
    except ValueError:
        raise InputError(f"/{name} {value}: not {'a whole' if kind is int else 'a'} number") from None


def ask_again(talk: Conversation) -> bool:
    """Drop the last answer, so that its question stands open again."""
    if not talk.messages:
        raise InputError("there is no question to answer again")
    talk.messages.pop()
    return True


def save(talk: Conversation, name: str) -> None:
    """Append the conversation to a file of demonstrations."""
    if not name or not talk.messages:
        raise InputError("/save FILE writes the conversation, once there is one")
    path = Path(name).expanduser()
    system = [{"role": "system", "content": talk.config.system}] if talk.config.system else []
    record = {"messages": system + talk.messages, "source": "chat"}
    try:
        earlier = path.read_text(encoding="utf-8") if path.exists() else ""
        with atomic_write(path) as file:
            file.write(earlier + json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    print(f"(written to {path})")
