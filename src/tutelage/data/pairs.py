"""Pairs of a chosen and a rejected response -> a prompt and two responses.

    "chosen", "rejected", and a prompt that is stated, repeated in both, or common to both -> one ranking with K = 2

TRL, UltraFeedback, LLaMA-Factory and HH write pairs in different ways; `data/conversations.py` knows their shapes. Both
conversations must be the same up to the last turn, which is the response. HH's own files have some pairs that are not.
Equal responses are tied, so nothing is learned from them.
"""

from typing import Any

from tutelage.data.conversations import with_response
from tutelage.data.fields import names_of
from tutelage.data.messages import Messages, stripped
from tutelage.errors import InputError


class UnpairedError(InputError):
    """Two well-formed conversations that are not two responses to one prompt."""


def is_pair(record: dict[str, Any]) -> bool:
    return record.get("chosen") is not None or record.get("rejected") is not None


def pair_fields(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A pair as the fields `prompt`, `responses` and `ranks` of a comparison.

    Raises UnpairedError if the conversations differ before the last turn or do not end with a response.
    """
    chosen, rejected = (with_response(record, name, where) for name in ("chosen", "rejected"))
    for name, conversation in (("chosen", chosen), ("rejected", rejected)):
        if len(conversation) == 1 and conversation[0]["role"] == "assistant":
            raise InputError(
                f'{where}: a pair needs its prompt, in "prompt", "conversations" or "messages" or at the start of both '
                f"responses; this record has {names_of(record)}"
            )
        if conversation[-1]["role"] != "assistant":
            raise UnpairedError(f'{where}: "{name}" ends with a {conversation[-1]["role"]} turn, not with a response')
    if stripped(chosen[:-1]) != stripped(rejected[:-1]):
        turn = _first_difference(stripped(chosen), stripped(rejected))
        raise UnpairedError(
            f"{where}: chosen and rejected differ from turn {turn} on, before the last one, so they are not two "
            "responses to one prompt"
        )
    responses = [chosen[-1]["content"], rejected[-1]["content"]]
    return {"prompt": chosen[:-1], "responses": responses, "ranks": [1, 1 if responses[0] == responses[1] else 2]}


def _first_difference(first: Messages, second: Messages) -> int:
    """The number, from 1, of the first turn in which two different conversations differ."""
    same = (a == b for a, b in zip(first, second, strict=False))
    return next((turn for turn, equal in enumerate(same, start=1) if not equal), min(len(first), len(second)) + 1)
