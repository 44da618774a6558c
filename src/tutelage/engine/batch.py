"""The requests that run now, each in a slot, and the pass that brings all of them one step on.

    admit(handle) -> step() -> events to the handles' listeners;  finish(row) frees the slot at once

A pass is over the next token of every answer and over pieces of the prompts. What was read before, by a request that
has ended or by one that still runs, is copied instead of read again; of several new requests that begin alike one
reads and the others wait for it. Rows fill the slots from the first: who ends is replaced by the last.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tutelage.engine.multi_lora import Adapters
from tutelage.engine.next_token import alternatives, choose, own_logprobs
from tutelage.engine.prefix_cache import PrefixCache, common
from tutelage.engine.requests import Done, Handle, Reason, Token
from tutelage.engine.running import RunningRequest, shares
from tutelage.engine.slot_cache import SlotCache
from tutelage.model.gpt import GPT

WORTH_WAITING = 32  # tokens: fewer are read twice rather than waited for

Piece = tuple[RunningRequest, int]  # a row and how many of its tokens are run


class Batch:
    """Rows of one model. Not for more than one thread."""

    def __init__(self, model: GPT, slots: SlotCache, prefixes: PrefixCache, adapters: Adapters, piece: int):
        """`piece`: tokens of a pass, but for answers' next ones never fewer than a quarter for prompts."""
        self.model, self.slots, self.prefixes, self.adapters, self.piece = model, slots, prefixes, adapters, piece
        self.device = model.embedding.weight.device
        self.rows: list[RunningRequest] = []  # the row in slot i stands at i

    def admit(self, handle: Handle) -> None:
        """Give a request the next slot."""
        row = RunningRequest(handle, len(self.rows), self.model.config.vocab_size, self.device)
        if not row.request.prompt_logprobs:  # there each token is looked at
            self._reuse(row)
            row.leader = self._leader(row)
        self.rows.append(row)

    def _reuse(self, row: RunningRequest) -> None:
        """Begin with the longest text read that begins alike. The last token of the prompt is always run."""
        ids = row.ids[: row.prompt - 1]
        prefix, length = self.prefixes.find(row.request.adapter, ids)
        others = [(common(other.ids[: other.done], ids), other) for other in self.rows if other.like(row)]
        shared, other = max(others, key=lambda found: found[0], default=(0, row))
        if shared > length:
            self.slots.copy(other.slot, row.slot, shared)
        elif prefix:
            self.slots.put(row.slot, prefix.kv, length)
        row.done = row.cached = max(shared, length)

    def _leader(self, row: RunningRequest) -> Piece | None:
        """A row that is about to read much of what this one begins with, and how much of it."""
        ids = row.ids[: row.prompt - 1]
        ahead = [(common(other.ids[: other.known], ids), other) for other in self.rows if other.like(row)]
        shared, leader = max(ahead, key=lambda found: found[0], default=(0, row))
        return (leader, shared) if shared >= row.done + WORTH_WAITING else None

    def step(self) -> None:
        """One pass. Rows that end leave."""
        singles, pieces = self._plan()
        hidden = self._run(singles, pieces)
        ready, ends, end = [], [], 0
        for row, count in [*((row, 1) for row in singles), *pieces]:
            if row.request.prompt_logprobs and row.done < row.prompt:
                self._score(row, hidden[end : end + count])
            row.done += count
            end += count
            if row.left == 0:
                ready.append(row)
                ends.append(end - 1)
        if ready:
            self._write(ready, hidden[ends])

    def _plan(self) -> tuple[list[RunningRequest], list[Piece]]:
        """Which rows run one token, and which pieces of prompts run beside them."""
        for row in self.rows:
            if row.leader and not (row.leader[0] in self.rows and row.leader[0].done < row.leader[1]):
                row.leader = None
                self._reuse(row)
        free = [row for row in self.rows if row.leader is None]
        singles = [row for row in free if row.left == 1]
        reading = sorted((row for row in free if row.left > 1), key=lambda row: row.handle.number)
        budget = max(self.piece - len(singles), -(-self.piece // 4))
        counts = shares([row.left for row in reading], budget)
        return singles, [(row, count) for row, count in zip(reading, counts, strict=True) if count]

    @torch.inference_mode()
    def _run(self, singles: Sequence[RunningRequest], pieces: Sequence[Piece]) -> Tensor:
        """Hidden states (N, C) of the tokens of a pass."""
        self.slots.plan([(row.slot, row.done) for row in singles], [(row.slot, row.done, n) for row, n in pieces])
        plan = [*((row, 1) for row in singles), *pieces]
        spans = [np.arange(row.done, row.done + count) for row, count in plan]
        ids = np.concatenate([row.ids[span] for (row, _), span in zip(plan, spans, strict=True)])
        tokens, positions = (torch.from_numpy(x).to(self.device) for x in (ids, np.concatenate(spans)))
        with self.adapters.among(self._by_adapter(plan)):
            return self.model.trunk(never_one(tokens)[None], never_one(positions)[None], cache=self.slots)[0]

    def _by_adapter(self, plan: Sequence[Piece]) -> dict[str, Tensor]:
        """Which tokens of the pass go through which adapter."""
        whose = np.repeat([row.request.adapter for row, _ in plan], [count for _, count in plan])
        names = {row.request.adapter for row, _ in plan} - {""}
        return {name: torch.from_numpy((whose == name).nonzero()[0]).to(self.device) for name in sorted(names)}

    @torch.inference_mode()
    def _score(self, row: RunningRequest, hidden: Tensor) -> None:
        """How likely the tokens were that follow these in the prompt."""
        first = row.done + 1
        following = row.ids[first : min(first + len(hidden), row.prompt)]
        if len(following):
            logits = self.model.logits(never_one(hidden[: len(following)]))[: len(following)]
            row.scored.logprobs.extend(own_logprobs(logits, torch.from_numpy(following).to(self.device)))
            row.scored.top.extend(alternatives(logits, row.request.top_logprobs))
        if row.done + len(hidden) == row.prompt:
            row.handle.tell(row.scored)

    @torch.inference_mode()
    def _write(self, ready: Sequence[RunningRequest], hidden: Tensor) -> None:
        """The next token of each row that has run all it knew; `hidden` (rows, C) are its last tokens'."""
        writing = [i for i, row in enumerate(ready) if row.request.max_new_tokens]
        for row in (row for row in ready if row.request.max_new_tokens == 0):
            self.finish(row, "length")
        if not writing:
            return
        rows, logits = [ready[i] for i in writing], self.model.logits(never_one(hidden[writing]))[: len(writing)]
        tokens = choose(logits, [row.choice() for row in rows])
        most = max(row.request.top_logprobs for row in rows)
        found = zip(rows, tokens.tolist(), own_logprobs(logits, tokens), alternatives(logits, most), strict=True)
        for row, token, logprob, top in found:
            if token in row.request.stop_ids:
                self.finish(row, "stop")
                continue
            row.push(token)
            row.handle.tell(Token(token, logprob, top[: row.request.top_logprobs]))
            if row.written == row.request.max_new_tokens:
                self.finish(row, "length")

    def fail(self, detail: str) -> None:
        """End every row: after a pass that went wrong nobody knows what is in the slots."""
        rows, self.rows = self.rows, []
        for row in rows:
            row.handle.tell(Done("error", row.prompt, row.cached, detail))

    def finish(self, row: RunningRequest, reason: Reason) -> None:
        """Free a row's slot, and keep what it has read."""
        if row.done:
            size = self.slots.nbytes(row.done)
            ids, slot, done = row.ids[: row.done], row.slot, row.done
            self.prefixes.keep(row.request.adapter, ids, size, lambda: self.slots.take(slot, done))
        last = self.rows.pop()
        if last is not row:
            self.slots.copy(last.slot, row.slot, last.done)
            last.slot, self.rows[row.slot] = row.slot, last
        row.handle.tell(Done(reason, row.prompt, row.cached))


def never_one(rows: Tensor) -> Tensor:
    """A single row twice: for one row a product may be summed in another order than for any other number (LOG.md)."""
    return rows.repeat(2, *[1] * (rows.ndim - 1)) if len(rows) == 1 else rows
