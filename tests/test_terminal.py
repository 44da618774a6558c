"""The terminal chat: whole characters only, old turns forgotten in pairs, control characters never printed."""

import io
from pathlib import Path

import pytest
import torch

from tutelage.errors import InputError
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.runs.folder import save_policy
from tutelage.sampling.terminal import ChatConfig, chat, fitting_prompt, printable, words, write
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer, train_bpe


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
    pieces = list(words(tokenizer, tokenizer.encode(text)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_oldest_exchange_is_forgotten_first(tokenizer: Tokenizer) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(5)]
    expected = encode_chat(tokenizer, turns[2:], add_generation_prompt=True).ids
    messages = list(turns)
    assert fitting_prompt(tokenizer, messages, room=len(expected)) == expected
    assert messages == turns[2:]
    assert fitting_prompt(tokenizer, turns[4:], room=3) is None


def test_a_conversation_repeats_under_its_seed(run: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(seed: int) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"hello\n\n/new\nhow are you?\n{'x' * 300}\n/quit\nunheard\n"))
        chat(run, ChatConfig(seed=seed, max_tokens=8, dtype="fp32", device="cpu"))
        return capsys.readouterr().out

    first = talk(1)
    assert first == talk(1) != talk(2)
    assert first.count("gpt> ") == 2
    assert "(too long: with an answer of 8 tokens, 56 are left for what you say)" in first


def test_an_answer_must_fit_the_context(run: Path) -> None:
    with pytest.raises(InputError, match="context of 64 tokens"):
        chat(run, ChatConfig(max_tokens=64))


def test_ctrl_c_ends_the_answer_not_the_chat(capsys) -> None:
    def pieces():
        yield "half an "
        raise KeyboardInterrupt

    assert write(pieces()) == "half an"
    assert capsys.readouterr().out == "gpt> half an \n"


def test_escape_sequences_are_not_printed() -> None:
    assert printable("a\x1b[2Jb\nc\x9b1m\U0001f469\u200d\U0001f680") == "a[2Jb\nc1m\U0001f469\u200d\U0001f680"
