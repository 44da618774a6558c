"""`tutelage chat`: a conversation in the terminal with a run or a server.

    run directory or http://address, lines from the keyboard  ->  answers, printed as they are sampled

The prompt is the whole conversation. When prompt and answer no longer fit the model's context, the oldest question and
its answer are dropped from the prompt, and the user is told. Lines that begin with / are commands (`conversation.py`).
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
from tutelage.runs.listing import chat_commands
from tutelage.runs.run import seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.remote import ContextFullError, RemoteModel
from tutelage.sampling.sampler import for_inference, stream
from tutelage.terminal.conversation import HELP, ChatConfig, Conversation, Message, handle_line
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

HISTORY_LINES = 2_000
DEFAULTS = vars(SamplingConfig(max_tokens=1))


class ChatModel(Protocol):
    """What answers: a model in this process or on a server."""

    def answer(self, messages: list[Message], config: ChatConfig, turn: int) -> Iterator[str]:
        """Yield one answer piece by piece. Raises ContextFullError when the messages leave no room for it."""


def chat(run: Positional[str], config: ChatConfig = ChatConfig()) -> None:
    """Chat in this terminal with a run, or with a server given by its address. Answers appear as they are sampled.

    A folder of runs is listed, with the command for each.

    run: Run to chat with, or a server's address, such as http://127.0.0.1:8000.

    Example: tutelage chat runs/demo/ppo-ptx --temperature 0.7
    """
    model: ChatModel
    if commands := chat_commands(Path(run)):
        print(f"{run} is a folder of runs. Chat with one of them:", *commands, sep="\n  ")
        return
    if str(run).startswith(("http://", "https://")):
        model = ServedModel(run, config)
        print(f"{model.remote.model} at {model.remote.base}. {HELP}.")
    else:
        model = LoadedModel(Path(run), config)
        size, context = parameter_count(model.model) / 1e6, model.model.config.context
        print(f"{run}: {size:.1f}M parameters, context {context} tokens. {HELP}.")
    converse(model, config)


class LoadedModel:
    """A run's model, loaded in this process."""

    def __init__(self, run: Path, config: ChatConfig):
        """Raises InputError when the run cannot be loaded or its context is too short for one answer."""
        model, self.tokenizer = load_policy(find_base(run), choose_device(config.device, config.dtype), frozen=True)
        context = model.config.context
        if context <= config.max_tokens:
            raise InputError(
                f"--max-tokens {config.max_tokens}: {run} has a context of {context} tokens; use a smaller value"
            )
        self.model = for_inference(model)

    def answer(self, messages: list[Message], config: ChatConfig, turn: int) -> Iterator[str]:
        prompt = encode_chat(self.tokenizer, messages, add_generation_prompt=True).ids
        if len(prompt) + config.max_tokens > self.model.config.context:
            raise ContextFullError
        seed = seed_for(config.seed, f"chat/{turn}")
        ends = (*self.tokenizer.end_ids, self.tokenizer.end_of_text_id)
        ids = stream(self.model, prompt, seed, ends, config.sampling())
        return decoded(self.tokenizer, ids)


class ServedModel:
    """A model behind an OpenAI-compatible API."""

    def __init__(self, address: str, config: ChatConfig):
        """Raises InputError when the key file cannot be read or the server cannot be used."""
        try:
            key = config.key_file.read_text(encoding="utf-8").strip() if config.key_file else ""
        except OSError as error:
            raise InputError(f"--key-file {config.key_file}: cannot be read ({error.strerror})") from None
        self.remote = RemoteModel(address, key, config.model)

    def answer(self, messages: list[Message], config: ChatConfig, turn: int) -> Iterator[str]:
        # Settings at their defaults are left out, because OpenAI's API does not know all of them.
        settings = {name: value for name, value in vars(config.sampling()).items() if value != DEFAULTS.get(name)}
        seed = seed_for(config.seed, f"chat/{turn}")
        return self.remote.answer({"messages": messages, "seed": seed} | settings)


def converse(model: ChatModel, config: ChatConfig) -> None:
    """Read lines and answer them until the user leaves."""
    conversation = Conversation(config)
    with line_history(config.history.expanduser()):
        for line in typed_lines():
            try:
                take_turn(line, model, conversation)
            except InputError as error:
                print(printable(f"({error})"))


def take_turn(line: str, model: ChatModel, conversation: Conversation) -> None:
    """Answer one line or run its command. If that raises InputError, the conversation is unchanged."""
    before = list(conversation.messages), conversation.dropped
    try:
        if handle_line(line, conversation):
            answer_question(model, conversation)
    except InputError:
        conversation.messages, conversation.dropped = before
        raise


def answer_question(model: ChatModel, conversation: Conversation) -> None:
    """Answer the last question. Drops the oldest questions from the prompt until the answer fits."""
    while True:
        try:
            pieces = model.answer(conversation.prompt(), conversation.config, conversation.answers)
            return conversation.answered(print_answer(pieces))
        except ContextFullError:
            question = conversation.drop_oldest()
            print(f"(the context is full: the model no longer sees {question!r})")


def typed_lines() -> Iterator[str]:
    """The lines that the user types, until /quit or Ctrl-D. Standard input may also be a pipe."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are not text become a replacement character, not an error
    interactive = sys.stdin.isatty()
    while True:
        try:
            line = input("\nyou> " if interactive else "").strip()
        except KeyboardInterrupt:
            if not interactive:
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
def line_history(path: Path) -> Iterator[None]:
    """Line editing and history for the lines typed inside this context; only the owner can read the history file."""
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


def decoded(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Decode ids into pieces of text. A character may span several tokens; it is yielded only when complete."""
    received: list[int] = []
    shown = ""
    for token in ids:
        received.append(token)
        text = tokenizer.decode(received)
        if text.startswith(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    text = tokenizer.decode(received)
    if text.startswith(shown):
        yield text[len(shown) :]


def print_answer(pieces: Iterable[str]) -> str:
    """Print an answer piece by piece and return it. Ctrl-C ends it early."""
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
    """Without control characters, because a terminal would obey escape sequences that the model writes."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")
