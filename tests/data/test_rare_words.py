"""Rare words: counted in tokens of the tokenizer, and the turns that have one."""

import pytest

from tutelage.data.rare_words import WordPieces, common_turns
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer


def by_hand(tokenizer: Tokenizer, text: str) -> int:
    """Most tokens of a word: each word is encoded alone, and a space that is a token of its own does not count."""
    return max(sum(tokenizer.decode([i]).strip() != "" for i in tokenizer.encode(" " + word)) for word in text.split())


@pytest.mark.parametrize("text", [" the cat", " the cat xqzw", " the xqzwxqzw cat", " of", " the the zzzzzz"])
def test_a_word_has_so_many_tokens(tokenizer: Tokenizer, text: str) -> None:
    assert WordPieces(tokenizer).longest(tokenizer.encode(text)) == by_hand(tokenizer, text)


@pytest.mark.parametrize("text", ["", "12345678", "?!?!", "你好吗", "a b c d"])
def test_other_characters_are_no_words(tokenizer: Tokenizer, text: str) -> None:
    assert WordPieces(tokenizer).longest(tokenizer.encode(text)) == 1


def test_turns_with_a_rare_word_are_left_out(tokenizer: Tokenizer) -> None:
    """Only of the assistant's; a rare word of the user leaves the answer in."""
    said = [("user", "xqzwxqzwxqzw"), ("assistant", "a b"), ("user", "c"), ("assistant", "a xqzwxqzwxqzw b")]
    encoded = encode_chat(tokenizer, [{"role": role, "content": content} for role, content in said])
    most = by_hand(tokenizer, "xqzwxqzwxqzw") - 1
    mask = common_turns(encoded.ids, encoded.supervised, WordPieces(tokenizer), most)
    kept = tokenizer.decode([i for i, keep in zip(encoded.ids, mask, strict=True) if keep])
    assert most > 1 and kept == "a b"
    assert common_turns(encoded.ids, encoded.supervised, WordPieces(tokenizer), most + 1) == encoded.supervised
