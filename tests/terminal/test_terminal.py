"""The terminal chat: whole characters only, old turns dropped in pairs, control characters never printed."""

import io
from pathlib import Path

import pytest
import torch

from tutelage.data.records import read_demonstrations
from tutelage.errors import InputError
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.runs.folder import save_policy
from tutelage.sampling.remote import ContextFullError
from tutelage.terminal.chat import chat, decoded, print_answer, printable, take_turn
from tutelage.terminal.conversation import ChatConfig, Conversation, handle_line
from tutelage.text.bpe import train_bpe
from tutelage.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["hello there, how are you today?", "I am fine, thank you. And you?"] * 20, vocab_size=280)


@pytest.fixture(scope="module")
def run(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        width=16,
        layers=1,
        heads=2,
        kv_heads=2,
        head_width=8,
        hidden=32,
        context=64,
        qk_norm=True,
    )
    folder = tmp_path_factory.mktemp("run")
    save_policy(folder, GPT(config).initialise(torch.Generator().manual_seed(1)), tokenizer)
    return folder


@pytest.mark.parametrize("text", ["plain words", "naïve café", "你好，世界", "a 🙂 b"])
def test_characters_are_never_cut(tokenizer: Tokenizer, text: str) -> None:
    pieces = list(decoded(tokenizer, tokenizer.encode(text)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


class Echo:
    """Answers with the prompt's messages; the context holds `room` of them."""

    def __init__(self, room: int):
        self.room = room

    def answer(self, messages, config, turn):
        if len(messages) > self.room:
            raise ContextFullError
        yield f"{turn}:" + " ".join(message["content"] for message in messages)


def say(talk: Conversation, model: Echo, *typed: str) -> None:
    for line in typed:
        take_turn(line, model, talk)


def test_the_oldest_exchange_is_dropped_first_and_the_user_learns_it(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation(ChatConfig(system="S"))
    say(talk, Echo(room=4), "a", "b", "c")
    assert talk.messages[-1]["content"] == "2:S b 1:S a 0:S a b c"
    assert [m["content"] for m in talk.messages[::2]] == ["a", "b", "c"]
    assert "(the context is full: the model no longer sees 'a')" in capsys.readouterr().out
    with pytest.raises(InputError, match="too long"):
        say(talk, Echo(room=1), "d")
    assert "sees 'b')" in capsys.readouterr().out and len(talk.messages) == 6


class Failing:
    """A server that is down."""

    def answer(self, messages, config, turn):
        raise InputError("no answer")


def test_an_answer_that_fails_leaves_the_conversation_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation(ChatConfig())
    say(talk, Echo(room=9), "a", "b")
    before = list(talk.messages)
    for line in ("c", "/again"):
        with pytest.raises(InputError, match="no answer"):
            say(talk, Failing(), line)
        assert talk.messages == before
    say(talk, Echo(room=2), "/again")
    assert talk.messages[-1]["content"] == "2:b" and talk.dropped == 2


def test_commands_change_the_conversation(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    talk, model = Conversation(ChatConfig()), Echo(room=9)
    say(talk, model, "a", "/again", "/temperature 0.25", "/max-tokens 7", "/system Be kind.", "b", "/undo", "b")
    assert [m["content"] for m in talk.messages] == ["a", "1:a", "b", "3:Be kind. a 1:a b"]
    assert (talk.config.temperature, talk.config.max_tokens) == (0.25, 7)
    say(talk, model, "/settings", f"/save {tmp_path}/talk.jsonl", f"/save {tmp_path}/talk.jsonl", "/new", "/help")
    printed = capsys.readouterr().out
    assert "/temperature 0.25\n" in printed and "/system Be kind.\n" in printed and "/device" not in printed
    saved = read_demonstrations([tmp_path / "talk.jsonl"])
    assert [d.messages for d in saved] == [[{"role": "system", "content": "Be kind."}, *TALK]] * 2
    assert talk.messages == []


TALK = [
    {"role": ("user", "assistant")[i % 2], "content": content}
    for i, content in enumerate(["a", "1:a", "b", "3:Be kind. a 1:a b"])
]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/temprature 1", "/temprature: unknown command"),
        ("/device cuda", "/device: unknown command"),
        ("/temperature hot", "/temperature hot: not a number"),
        ("/max-tokens 1.5", "not a whole number"),
        ("/max-tokens 0", "must be at least 1"),
        ("/top-p 2", "must be between 0 and 1"),
        ("/again", "no question"),
        ("/save x.jsonl", "the conversation is empty"),
        ("/save", "name a file"),
    ],
)
def test_a_faulty_command_changes_nothing(line: str, complaint: str) -> None:
    talk = Conversation(ChatConfig())
    with pytest.raises(InputError, match=complaint):
        handle_line(line, talk)
    assert talk.config == ChatConfig() and talk.messages == []


def test_a_conversation_repeats_under_its_seed(run: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(seed: int) -> str:
        lines = f"hello\n\n/new\nhow are you?\n{'x' * 300}\n/nonsense\n/quit\nunheard\n"
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        chat(str(run), ChatConfig(seed=seed, max_tokens=8, dtype="fp32", device="cpu"))
        return capsys.readouterr().out

    first = talk(1)
    assert first == talk(1) != talk(2)
    assert first.count("gpt> ") == 2
    assert "(too long: no room is left for an answer of 8 tokens; shorten the question or lower /max-tokens)" in first
    assert "(/nonsense: unknown command; /help lists the commands)" in first


def test_an_answer_must_fit_the_context(run: Path) -> None:
    with pytest.raises(InputError, match="context of 64 tokens"):
        chat(str(run), ChatConfig(max_tokens=64))


def test_ctrl_c_ends_the_answer_not_the_chat(capsys) -> None:
    def pieces():
        yield "half an "
        raise KeyboardInterrupt

    assert print_answer(pieces()) == "half an"
    assert capsys.readouterr().out == "gpt> half an \n"


def test_escape_sequences_are_not_printed() -> None:
    assert printable("a\x1b[2Jb\nc\x9b1m\U0001f469\u200d\U0001f680") == "a[2Jb\nc1m\U0001f469\u200d\U0001f680"
