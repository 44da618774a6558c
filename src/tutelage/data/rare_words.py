"""Turns whose words are all common, by the number of tokens that the tokenizer needs for a word.

    ids and mask of a conversation -> the mask without the turns that have a word of many tokens

Byte-pair encoding splits a word into the more tokens the rarer it is: names, typos, held-down keys. A small model that
imitates such words writes words that do not exist.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

from tutelage.text.tokenizer import Tokenizer


class WordPieces:
    """How many tokens the words of a text take. Only Latin letters count: other scripts may write without spaces."""

    def __init__(self, tokenizer: Tokenizer):
        texts = tokenizer.token_bytes()
        self.opens = [text[:1].isalpha() for text in texts]  # bytes.isalpha: ASCII letters only
        self.closes = [text[-1:].isalpha() for text in texts]

    def longest(self, ids: Sequence[int]) -> int:
        """The most tokens of one word; 1 if no word is split."""
        longest = pieces = 1
        for before, after in pairwise(ids):
            pieces = pieces + 1 if self.closes[before] and self.opens[after] else 1
            longest = max(longest, pieces)
        return longest


def common_turns(ids: Sequence[int], supervised: Sequence[bool], pieces: WordPieces, most: int) -> list[bool]:
    """The mask without the turns that have a word of more than `most` tokens."""
    mask: list[bool] = []
    for learn, turn in groupby(zip(ids, supervised, strict=True), key=lambda pair: pair[1]):
        tokens = [token for token, _ in turn]
        mask += [learn and pieces.longest(tokens) <= most] * len(tokens)
    return mask
