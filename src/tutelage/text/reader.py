"""Encodes sealed conversations: the control tokens in them have private names (`control.py`).

sealed text -> Reader.encode -> ids
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence

from tokenizers import Tokenizer as BackendTokenizer

from tutelage.text.control import SECRET
from tutelage.text.segment_cache import SegmentCache

ANCHORS = ("\n", ".", "a", "1")


class Reader:
    """A copy of a tokenizer that knows its control tokens by private names only."""

    def __init__(self, backend: BackendTokenizer, names: Mapping[str, str]):
        ids = backend.get_vocab(with_added_tokens=True)
        self._ids = {name: ids[token] for token, name in names.items()}
        self.backend = _renamed(backend, names)
        self._names = re.compile(f"({SECRET}.)", re.DOTALL)
        self._segment_ids = SegmentCache(self._encode_segment)

    def encode(self, text: str) -> list[int]:
        """Ids of a sealed text, those of one call of the tokenizer."""
        return self.encode_segments(text)[0]

    def encode_segments(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a sealed text, and for each control token in it the number of ids up to it.

        Control tokens separate a text into segments that do not influence each other, and a longer conversation repeats
        the segments of a shorter one, so each is encoded once.
        """
        ids: list[int] = []
        marks: list[int] = []
        parts = ["", *self._names.split(text), ""]  # "", segment, name, segment, ..., name, segment, ""
        for left, segment, right in zip(parts[0::2], parts[1::2], parts[2::2], strict=False):
            ids += self._segment_ids(left, segment, right)
            if right:
                ids.append(self._ids[right])
                marks.append(len(ids))
        return ids, marks

    def prefix(self, text: str, ids: Sequence[int], marks: Sequence[int]) -> int | None:
        """How many ids `text` has; None if `ids`, those of a longer text with its marks, do not begin with them."""
        names = text.count(SECRET)
        left, tail = (text[(at := text.rindex(SECRET)) : at + 4], text[at + 4 :]) if names else ("", text)
        start, last = marks[names - 1] if names else 0, self._segment_ids(left, tail, "")
        return start + len(last) if tuple(ids[start : start + len(last)]) == last else None

    def _encode_segment(self, left: str, segment: str, right: str) -> tuple[int, ...]:
        """Ids of the text between two control tokens; "" is the beginning or the end of the text."""
        if not segment:
            return ()
        ids = self.backend.encode_batch_fast([left + segment + right], add_special_tokens=False)[0].ids
        return tuple(ids[bool(left) : len(ids) - bool(right)])

    def continued(self, text: str, more: str) -> tuple[list[int], int]:
        """Ids of `text + more` that begin with the ids of `text`, and how many these are.

        A merge across the boundary is undone, because a model that is given `text` has only its ids.
        """
        whole, marks = self.encode_segments(text + more)
        start = self.prefix(text, whole, marks)
        if start is not None:
            return whole, start
        before = self.encode(text)
        return before + self._after_text(more), len(before)

    def _after_text(self, more: str) -> list[int]:
        """Ids of a text in the middle of another, without the prefix that some tokenizers put before a text."""
        for anchor in ANCHORS:
            before, whole = self.encode(anchor), self.encode(anchor + more)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self.encode(more)


def unread(backend: BackendTokenizer, control: Collection[str]) -> set[str]:
    """The control tokens that the tokenizer does not find everywhere in a text.

    In Llama's older files they are normalised, so the tokenizer finds them after a space or at the beginning only.
    """
    backend.encode_special_tokens = False
    found = {token: backend.encode(f".{token}.", add_special_tokens=False).ids for token in control}
    backend.encode_special_tokens = True
    return {token for token, ids in found.items() if backend.token_to_id(token) not in ids}


def _renamed(backend: BackendTokenizer, names: Mapping[str, str]) -> BackendTokenizer:
    """The same tokenizer with other names for some tokens, which keep their ids."""
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): i for token, i in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:  # none of ordinary text into a control token
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    renamed = BackendTokenizer.from_str(json.dumps(state | {"post_processor": None}))
    renamed.encode_special_tokens = False
    return renamed
