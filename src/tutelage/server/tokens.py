"""A tokenizer as the library llguidance reads it: the bytes of its tokens, and the tokens of a text."""

from collections.abc import Sequence
from functools import cached_property

from tutelage.text.tokenizer import Tokenizer


class Tokens:
    """The object that llguidance takes for a tokenizer; it keeps it, so no reference leads back to a `Vocabulary`."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, table: Sequence[bytes], end: int):
        """table: the bytes of each token."""
        names = {i: token.encode() for token, i in tokenizer.control_tokens.items() if i < len(table)}
        self._tokenizer, self._table = tokenizer, [b"" if i in names else text for i, text in enumerate(table)]
        self.tokens = [names.get(i, text) for i, text in enumerate(table)]
        self.special_token_ids = sorted(names)
        self.eos_token_id = end

    def bytes_of(self, token: int) -> bytes:
        """The token's text; empty for a control token."""
        return self._table[token]

    def of_bytes(self, text: bytes) -> list[int]:
        """Ids of bytes in the middle of a text, which may begin or end within a character."""
        try:
            return self(text.decode())
        except UnicodeDecodeError:
            return self._longest(text)

    def __call__(self, text: str) -> list[int]:
        """Ids of a text in the middle of a text: as the tokenizer splits it, unless that changes the text.

        SentencePiece puts a space before a text, and normalizers change characters. Then each token is the longest.
        """
        ids = self._tokenizer.encode(text)
        if b"".join(self._table[i] for i in ids) == text.encode():
            return ids
        return self._longest(text.encode())

    def _longest(self, rest: bytes) -> list[int]:
        ids = []
        while rest:
            size = next(n for n in range(min(len(rest), self._most), 0, -1) if rest[:n] in self._by_bytes)
            ids.append(self._by_bytes[rest[:size]])
            rest = rest[size:]
        return ids

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        return {text: i for i, text in enumerate(self._table) if text}

    @cached_property
    def _most(self) -> int:
        return max(map(len, self._by_bytes))
