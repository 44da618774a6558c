"""The output of a response as it grows: its items, and the events that tell a client of them, in OpenAI's order.

    ResponseOutput.add(piece, logprobs) -> events    .close(status) -> events    .items -> the items so far

Each item is added, filled, and done before the next begins: reasoning, a message, or a function call. Events have their
`sequence_number` from whoever sends them.
"""

from collections.abc import Iterator
from typing import Any

from tutelage.server.api.choices import REFUSAL
from tutelage.store.ids import new_id
from tutelage.text.pieces import CallBegin, Content, Piece, Reasoning

Event = dict[str, Any]
Item = dict[str, Any]
# Of an item's type: the prefix of its id, its part, the part's field, and the name of its events.
PARTS = {
    "message": ("msg_", "output_text", "text", "output_text"),
    "refusal": ("msg_", "refusal", "refusal", "refusal"),
    "reasoning": ("rs_", "reasoning_text", "text", "reasoning_text"),
}


class ResponseOutput:
    """The items of one response."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._kind: str | None = None  # of the last item, if it is not done

    def add(self, piece: Piece, logprobs: list[Any]) -> Iterator[Event]:
        """Add a piece of the answer, with the log-probabilities of its tokens."""
        if isinstance(piece, CallBegin):
            yield from self.close()
            yield from self._begin_call(piece.name)
        elif isinstance(piece, Reasoning | Content):
            yield from self._add_text("reasoning" if isinstance(piece, Reasoning) else "message", piece.text, logprobs)
        else:
            self.items[-1]["arguments"] += piece.text
            yield self._event("response.function_call_arguments.delta", delta=piece.text)

    def refuse(self) -> Iterator[Event]:
        """Add the message of a request that the moderation policy stops."""
        yield from self._add_text("refusal", REFUSAL, [])

    def _begin_call(self, name: str) -> Iterator[Event]:
        call = {"call_id": new_id("call_"), "name": name, "arguments": ""}
        yield from self._begin("function_call", {"id": new_id("fc_"), "type": "function_call"} | call)

    def _begin(self, kind: str, item: Item) -> Iterator[Event]:
        item["status"] = "in_progress"
        self.items.append(item)
        self._kind = kind
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": dict(item)}

    def _add_text(self, kind: str, text: str, logprobs: list[Any]) -> Iterator[Event]:
        if self._kind != kind:
            yield from self.close()
            yield from self._begin_text(kind)
        part, (_, _, field, name) = self.items[-1]["content"][0], PARTS[kind]
        part[field] += text
        if logprobs:
            part["logprobs"] = part["logprobs"] + logprobs
        more = {"logprobs": logprobs} if kind == "message" else {}
        yield self._event(f"response.{name}.delta", content_index=0, delta=text, **more)

    def _begin_text(self, kind: str) -> Iterator[Event]:
        prefix, part_type, field, _ = PARTS[kind]
        head = {"type": "message", "role": "assistant"} if kind != "reasoning" else {"type": "reasoning", "summary": []}
        yield from self._begin(kind, {"id": new_id(prefix), **head, "content": []})
        more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "message" else {}
        self.items[-1]["content"] = [{"type": part_type, field: ""} | more]
        yield self._event("response.content_part.added", content_index=0, part=dict(self.items[-1]["content"][0]))

    def close(self, status: str = "completed") -> Iterator[Event]:
        """The last item is done."""
        if self._kind is None:
            return
        item, kind, self._kind = self.items[-1], self._kind, None
        if kind == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **done)
        else:
            _, _, field, name = PARTS[kind]
            part = item["content"][0]
            texts = {field: part[field]} | ({"logprobs": part["logprobs"]} if kind == "message" else {})
            yield self._event(f"response.{name}.done", content_index=0, **texts)
            yield self._event("response.content_part.done", content_index=0, part=part)
        item["status"] = status
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}

    def _event(self, type: str, **fields: Any) -> Event:
        """An event about the last item."""
        return {"type": type, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1} | fields
