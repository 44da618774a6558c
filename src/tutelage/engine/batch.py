"""Continuous batching: the running requests, each in a slot of the KV cache, and the pass that advances all of them.

    admit(handle) -> step() -> events to the handles' listeners;  finish(row) frees the slot at once

A pass processes one token of every decoding request and prefill chunks of the others' prompts. A prefix that a finished
or running request has already processed is copied instead of computed again. When several new requests begin with the
same tokens, one computes them and the others wait for it. Rows fill the slots from the first: when a row leaves, the
last row moves into its slot.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tutelage.engine.constraint import Masks
from tutelage.engine.multi_lora import Adapters
from tutelage.engine.next_token import alternatives, choose, own_logprobs
from tutelage.engine.prefix_cache import PrefixCache, common_prefix
from tutelage.engine.requests import Done, Handle, Reason, Token
from tutelage.engine.running import RunningRequest, shares
from tutelage.engine.slot_cache import SlotCache
from tutelage.model.gpt import GPT
from tutelage.model.prepack import batch_invariant

WORTH_WAITING = 32  # tokens; a request computes a shorter common prefix itself instead of waiting for it

Chunk = tuple[RunningRequest, int]  # a row, and how many of its tokens a pass processes


class Batch:
    """The running requests of one model. Not thread-safe."""

    def __init__(self, model: GPT, slots: SlotCache, prefixes: PrefixCache, adapters: Adapters, budget: int):
        """`budget`: tokens per pass. Prefill gets what decoding leaves, but never less than a quarter of the budget."""
        self.model, self.slots, self.prefixes, self.adapters, self.budget = model, slots, prefixes, adapters, budget
        self.device = model.embedding.weight.device
        self.masks = Masks(model.tokens)
        self.rows: list[RunningRequest] = []  # the request in slot i is rows[i]

    def admit(self, handle: Handle) -> None:
        """Put a request into the next slot."""
        row = RunningRequest(handle, len(self.rows), self.model.tokens, self.device)
        if not row.request.prompt_logprobs:  # these need the hidden state of every prompt token
            self._reuse(row)
            row.leader = self._leader(row)
        self.rows.append(row)
        self._begin_masks([row])

    def _reuse(self, row: RunningRequest) -> None:
        """Start from the longest prefix that is already computed. The prompt's last token is always processed."""
        ids = row.ids[: row.prompt - 1]
        prefix, length = self.prefixes.find(row.request.adapter, ids)
        others = [(common_prefix(other.ids[: other.done], ids), other) for other in self._sharing_kv(row)]
        shared, other = max(others, key=lambda pair: pair[0], default=(0, row))
        if shared > length:
            self.slots.copy(other.slot, row.slot, shared)
        elif prefix:
            self.slots.put(row.slot, prefix.kv, length)
        row.done = row.cached = max(shared, length)

    def _leader(self, row: RunningRequest) -> Chunk | None:
        """A row that will soon have computed a long prefix of this one's prompt, and the length of that prefix."""
        ids = row.ids[: row.prompt - 1]
        others = [(common_prefix(other.ids[: other.known], ids), other) for other in self._sharing_kv(row)]
        shared, leader = max(others, key=lambda pair: pair[0], default=(0, row))
        return (leader, shared) if shared >= row.done + WORTH_WAITING else None

    def _sharing_kv(self, row: RunningRequest) -> list[RunningRequest]:
        return [other for other in self.rows if other.shares_kv_with(row)]

    @batch_invariant()
    def step(self) -> None:
        """Run one pass. Requests that end leave the batch."""
        decoding, chunks = self._plan()
        hidden = self._run(decoding, chunks)
        ready, ends, end = [], [], 0
        for row, count in [*((row, 1) for row in decoding), *chunks]:
            if row.request.prompt_logprobs and row.done < row.prompt:
                self._score(row, hidden[end : end + count])
            row.done += count
            end += count
            if row.left == 0:
                ready.append(row)
                ends.append(end - 1)
        if ready:
            self._sample(ready, hidden[ends])

    def _plan(self) -> tuple[list[RunningRequest], list[Chunk]]:
        """The rows that process one token in this pass, and the prefill chunks beside them."""
        for row in self.rows:
            if row.leader and not (row.leader[0] in self.rows and row.leader[0].done < row.leader[1]):
                row.leader = None
                self._reuse(row)
        free = [row for row in self.rows if row.leader is None]
        decoding = [row for row in free if row.left == 1]
        prefilling = sorted((row for row in free if row.left > 1), key=lambda row: row.handle.number)
        budget = max(self.budget - len(decoding), -(-self.budget // 4))
        counts = shares([row.left for row in prefilling], budget)
        return decoding, [(row, count) for row, count in zip(prefilling, counts, strict=True) if count]

    @torch.inference_mode()
    def _run(self, decoding: Sequence[RunningRequest], chunks: Sequence[Chunk]) -> Tensor:
        """Hidden states (N, C) of the tokens of a pass."""
        self.slots.plan([(row.slot, row.done) for row in decoding], [(row.slot, row.done, n) for row, n in chunks])
        plan = [*((row, 1) for row in decoding), *chunks]
        spans = [np.arange(row.done, row.done + count) for row, count in plan]
        ids = np.concatenate([row.ids[span] for (row, _), span in zip(plan, spans, strict=True)])
        tokens, positions = (torch.from_numpy(x).to(self.device) for x in (ids, np.concatenate(spans)))
        with self.adapters.among(self._by_adapter(plan)):
            return self.model.trunk(never_one(tokens)[None], never_one(positions)[None], cache=self.slots)[0]

    def _by_adapter(self, plan: Sequence[Chunk]) -> dict[str, Tensor]:
        """The tokens of the pass that use each adapter."""
        owners = np.repeat([row.request.adapter for row, _ in plan], [count for _, count in plan])
        names = {row.request.adapter for row, _ in plan} - {""}
        return {name: torch.from_numpy((owners == name).nonzero()[0]).to(self.device) for name in sorted(names)}

    @torch.inference_mode()
    def _score(self, row: RunningRequest, hidden: Tensor) -> None:
        """Score the prompt tokens that follow a chunk with these hidden states."""
        first = row.done + 1
        following = row.ids[first : min(first + len(hidden), row.prompt)]
        if len(following):
            logits = self.model.logits(never_one(hidden[: len(following)]))[: len(following)]
            row.scored.logprobs.extend(own_logprobs(logits, torch.from_numpy(following).to(self.device)))
            row.scored.top.extend(alternatives(logits, row.request.top_logprobs, self.model.tokens))
        if row.done + len(hidden) == row.prompt:
            row.handle.emit(row.scored)

    @torch.inference_mode()
    def _sample(self, ready: Sequence[RunningRequest], hidden: Tensor) -> None:
        """Sample the next token of rows with no unprocessed token; `hidden` (rows, C) is that of their last tokens."""
        self.masks.wait([row.mask for row in ready if row.mask])
        sampling = [i for i, row in enumerate(ready) if self._may_sample(row)]
        if not sampling:
            return
        rows, logits = [ready[i] for i in sampling], self.model.logits(never_one(hidden[sampling]))[: len(sampling)]
        drawn = choose(logits[:, : self.model.tokens], [row.choice() for row in rows]).tolist()
        tokens = [row.take(token) for row, token in zip(rows, drawn, strict=True)]
        logprobs = own_logprobs(logits, torch.tensor(tokens, device=self.device))
        tops = alternatives(logits, max(row.request.top_logprobs for row in rows), self.model.tokens)
        for row, token, logprob, top in zip(rows, tokens, logprobs, tops, strict=True):
            self._append(row, Token(token, logprob, top[: row.request.top_logprobs]))
        self._begin_masks([row for row in rows if row in self.rows])

    def _may_sample(self, row: RunningRequest) -> bool:
        """Whether a row's next token can be sampled. If not, the row ends, or it waits for its mask."""
        if row.request.max_new_tokens == 0:
            self.finish(row, "length")
        elif not row.read_mask():
            row.repeat()
        elif row.failure:
            self.finish(row, "constraint", row.failure)
        else:
            return True
        return False

    def _append(self, row: RunningRequest, token: Token) -> None:
        """Add a sampled token to a row and tell its listener, unless the token ends the response."""
        if row.failure:
            self.finish(row, "constraint", row.failure)
        elif token.id in row.request.stop_ids:
            self.finish(row, "stop", end=token)
        else:
            row.push(token.id)
            row.handle.emit(token)
            if reason := row.ended:
                self.finish(row, reason)

    def _begin_masks(self, rows: Sequence[RunningRequest]) -> None:
        """Begin to fill the next masks of constrained rows, beside the next pass."""
        constrained = {row: row.constraint for row in rows if row.constraint}
        for row, mask in zip(constrained, self.masks.begin(list(constrained.values())), strict=True):
            row.mask = mask

    def fail(self, detail: str) -> None:
        """End all requests with an error. After a failed pass the contents of the slots are unknown."""
        rows, self.rows = self.rows, []
        for row in rows:
            row.handle.emit(Done("error", row.prompt, row.cached, detail))

    def finish(self, row: RunningRequest, reason: Reason, detail: str = "", end: Token | None = None) -> None:
        """End a request: free its slot, and add what it has processed to the prefix cache."""
        if row.done:
            size = self.slots.nbytes(row.done)
            ids, slot, done = row.ids[: row.done], row.slot, row.done
            self.prefixes.keep(row.request.adapter, ids, size, lambda: self.slots.take(slot, done))
        last = self.rows.pop()
        if last is not row:
            self.slots.copy(last.slot, row.slot, last.done)
            last.slot, self.rows[row.slot] = row.slot, last
        row.handle.emit(Done(reason, row.prompt, row.cached, detail, end))


def never_one(rows: Tensor) -> Tensor:
    """Repeats a single row: a product of one row may sum in another order than one of several rows (LOG.md)."""
    return rows.repeat(2, *[1] * (rows.ndim - 1)) if len(rows) == 1 else rows
