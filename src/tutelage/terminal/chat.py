"""`tutelage chat`: a conversation in the terminal, with a run or with a server.

    run directory or http://address, lines from the keyboard  ->  answers, written as they are sampled

The whole conversation is the prompt. When it no longer fits the model's context beside an answer, the oldest turns are
forgotten, always a question together with its answer, and that is said. Lines that begin with / are commands
(`conversation.py`): settings are shown and changed with them.
"""

import contextlib
import io
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from tyro.conf import Positional

from tutelage.errors import InputError
from tutelage.model.parameters import parameter_count
from tutelage.runs.base import find_base
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.runs.run import seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.remote import ContextFullError, Server
from tutelage.sampling.sampler import for_inference, stream
from tutelage.terminal.conversation import HELP, ChatConfig, Conversation, Message, obey
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

HISTORY_LINES = 2_000


class Speaker(Protocol):
    """Who answers."""

    def answer(self, messages: list[Message], config: ChatConfig, turn: int) -> Iterator[str]:
        """The pieces of one answer. Raises ContextFullError when the messages leave no room for it."""


def chat(run: Positional[str], config: ChatConfig = ChatConfig()) -> None:
    """Talk in this terminal to a run, or to a server by its address. The answer appears as it is sampled.

    Example: tutelage chat runs/demo/ppo-ptx --temperature 0.7
    """
    speaker: Speaker
    if str(run).startswith(("http://", "https://")):
        speaker = ServedModel(run, config)
        print(f"{speaker.server.model} at {speaker.server.base}. {HELP}.")
    else:
        speaker = LoadedModel(Path(run), config)
        size, context = parameter_count(speaker.model) / 1e6, speaker.model.config.context
        print(f"{run}: {size:.1f}M parameters, context {context} tokens. {HELP}.")
    converse(speaker, config)


class LoadedModel:
    """A run's model in this process."""

    def __init__(self, run: Path, config: ChatConfig):
        model, self.tokenizer = load_policy(find_base(run), choose_device(config.device, config.dtype), frozen=True)
        if model.config.context <= config.max_tokens:
            raise InputError(
                f"--max-tokens {config.max_tokens}: {run} has a context of {model.config.context} tokens; ask for fewer"
            )
        self.model = for_inference(model)

    def answer(self, messages: list[Message], config: ChatConfig, turn: int) -> Iterator[str]:
        prompt = encode_chat(self.tokenizer, messages, add_generation_prompt=True).ids
        if len(prompt) + config.max_tokens > self.model.config.context:
            raise ContextFullError
        seed = seed_for(config.seed, f"chat/{turn}")
        return words(self.tokenizer, stream(self.model, prompt, seed, self.tokenizer.end_of_turn_id, config.sampling()))


class ServedModel:
    """A model behind an OpenAI-compatible API."""

    def __init__(self, address: str, config: ChatConfig):
        try:
            key = config.key_file.read_text(encoding="utf-8").strip() if config.key_file else ""
        except OSError as error:
            raise InputError(f"--key-file {config.key_file}: cannot be read ({error.strerror})") from None
        self.server = Server(address, key, config.model)

    def answer(self, messages: list[Message], config: ChatConfig, turn: int) -> Iterator[str]:
        settings = {name: value for name, value in vars(config.sampling()).items() if value != UNSET.get(name)}
        seed = seed_for(config.seed, f"chat/{turn}")
        return self.server.answer({"messages": messages, "seed": seed} | settings)


UNSET = vars(SamplingConfig(max_tokens=1))  # what OpenAI's API does not know is sent only where it says something


def converse(speaker: Speaker, config: ChatConfig) -> None:
    """The conversation itself, until the person leaves."""
    talk = Conversation(config)
    with remembered(config.history.expanduser()):
        for line in lines():
            try:
                take(line, speaker, talk)
            except InputError as error:
                print(printable(f"({error})"))


def take(line: str, speaker: Speaker, talk: Conversation) -> None:
    """Obey or answer one line. Raises InputError when that does not go; the conversation is then as it was before."""
    before = list(talk.messages), talk.unseen
    try:
        if obey(line, talk):
            respond(speaker, talk)
    except InputError:
        talk.messages, talk.unseen = before
        raise


def respond(speaker: Speaker, talk: Conversation) -> None:
    """Have the last question answered; turns that no longer fit are forgotten first."""
    while True:
        try:
            return talk.answered(write(speaker.answer(talk.prompt(), talk.config, talk.answers)))
        except ContextFullError:
            print(f"(the context is full: the model no longer sees {talk.forget()!r})")


def lines() -> Iterator[str]:
    """What the person types, line by line, until /quit or Ctrl-D. Works in a pipe, too."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text become a sign, not a traceback
    typed = sys.stdin.isatty()
    while True:
        try:
            line = input("\nyou> " if typed else "").strip()
        except KeyboardInterrupt:
            if not typed:
                return
            print("\n(/quit or Ctrl-D leaves)", end="")
            continue
        except EOFError:
            print()
            return
        if line == "/quit":
            return
        if line:
            yield line


@contextlib.contextmanager
def remembered(path: Path) -> Iterator[None]:
    """Editing keys for the lines typed in between, and those of earlier chats; readable by their owner alone."""
    try:
        import readline
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        if sys.stdin.isatty():
            with contextlib.suppress(OSError):
                path.touch(mode=0o600)
                readline.write_history_file(path)


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
    answer, opening = "", "gpt> "
    try:
        for piece in pieces:
            print(opening + printable(piece), end="", flush=True)
            answer, opening = answer + piece, ""
    except KeyboardInterrupt:
        pass
    except InputError:
        print("" if answer else opening)
        raise
    print(opening)
    return answer.strip()


def printable(text: str) -> str:
    """Without control characters: a model may say anything, and a terminal obeys escape sequences."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")
