"""Constrained requests beside free ones: what may come next is a fact of the constraint alone, all else stays."""

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from test_engine import GREEDY, Recorder, answer, ask, finish, whole_logprobs

from tutelage.engine import constraint
from tutelage.engine.engine import Engine, EngineConfig
from tutelage.engine.requests import Done
from tutelage.sampling.distribution import DistributionConfig

HOT = DistributionConfig(temperature=1.3, top_p=0.9, repetition_penalty=1.3)
END = 2


class Cycle:
    """Allows the tokens of the next set in turn, and ends after `length` tokens."""

    def __init__(self, *sets: set[int], length: int = 6):
        self.sets, self.length, self.taken, self.ended = sets, length, [], False  # type: ignore[var-annotated]
        self.left: list[int] = []

    def fill(self, bits: np.ndarray) -> None:
        for token in self.sets[len(self.taken) % len(self.sets)]:
            bits.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)

    def take(self, token: int, left: int) -> int:
        self.taken.append(token)
        self.left.append(left)
        self.ended = len(self.taken) == self.length
        return token


SETS = {5, 31, 32, 299}, {7}, set(range(64, 128))


@pytest.fixture(params=["modern", "gpt3"])
def engine(make_gpt: Any, request: pytest.FixtureRequest) -> Engine:
    return Engine(make_gpt(request.param), EngineConfig(slots=4))


@pytest.mark.parametrize("how", [GREEDY, HOT], ids=["greedy", "hot"])
def test_only_allowed_tokens_are_drawn_and_their_logprobs_are_the_models_own(engine: Engine, how: Any) -> None:
    rule = Cycle(*SETS)
    heard = answer(engine, 9, 8, 7, sampling=how, max_new_tokens=20, constraint=rule, top_logprobs=2)
    assert heard.ids == rule.taken and rule.left == [19, 18, 17, 16, 15, 14]
    assert all(token in SETS[i % 3] for i, token in enumerate(heard.ids))
    assert heard.done and heard.done.reason == "stop"  # at once, without another token
    own = whole_logprobs(engine.model, [9, 8, 7, *heard.ids])
    for place, token in enumerate(heard.tokens):
        assert token.logprob == pytest.approx(float(own[place + 2, token.id]), abs=1e-4)
        assert [i for i, _ in token.top] == own[place + 2].topk(2).indices.tolist()


def test_the_likeliest_allowed_token_is_drawn_greedily(engine: Engine) -> None:
    heard = answer(engine, 9, 8, 7, max_new_tokens=20, constraint=Cycle(*SETS))
    own = whole_logprobs(engine.model, [9, 8, 7, *heard.ids])
    for place, token in enumerate(heard.ids):
        assert token == max(SETS[place % 3], key=lambda i: float(own[place + 2, i]))


def test_free_rows_have_the_same_tokens_and_constrained_ones_depend_on_themselves_alone(engine: Engine) -> None:
    def crowd(*rules: Cycle | None) -> list[list[int]]:
        heard = []
        for seed, rule in enumerate(rules):
            heard.append(ask(engine, 9, 8, seed, seed=seed, sampling=HOT, max_new_tokens=9, constraint=rule)[0])
            engine.step()
        finish(engine)
        return [one.ids for one in heard]

    free = crowd(None, None, None, None)
    mixed = crowd(None, Cycle(*SETS), None, Cycle(SETS[0]))
    assert mixed[0] == free[0] and mixed[2] == free[2]
    alone = [
        answer(engine, 9, 8, seed, seed=seed, sampling=HOT, max_new_tokens=9, constraint=rule).ids
        for seed, rule in ((1, Cycle(*SETS)), (3, Cycle(SETS[0])))
    ]
    assert alone == [mixed[1], mixed[3]]


def test_a_stop_token_ends_the_response_only_where_it_is_allowed(engine: Engine) -> None:
    asked = dict(max_new_tokens=9, stop_ids=frozenset({END}), sampling=DistributionConfig(logit_bias=((END, 100.0),)))
    heard = answer(engine, 9, constraint=Cycle({5}, {6}, {7, END}), **asked)
    assert heard.ids == [5, 6] and heard.done and heard.done.reason == "stop"


def test_a_constraint_may_take_another_token(engine: Engine) -> None:
    class Stubborn(Cycle):
        def take(self, token: int, left: int) -> int:
            return super().take(11, left)

    heard = answer(engine, 9, 8, max_new_tokens=9, constraint=Stubborn(SETS[2], length=3))
    assert heard.ids == [11, 11, 11]
    own = whole_logprobs(engine.model, [9, 8, 11, 11, 11])
    assert [token.logprob for token in heard.tokens] == pytest.approx([float(own[i, 11]) for i in (1, 2, 3)], abs=1e-4)


class Broken(Cycle):
    """Raises in `fill` or in `take`, at the third token."""

    def __init__(self, where: str):
        super().__init__(*SETS)
        self.where = where

    def fill(self, bits: np.ndarray) -> None:
        if len(self.taken) == 2 and self.where == "fill":
            raise ValueError("it is stuck")
        if len(self.taken) != 2 or self.where != "nothing":
            super().fill(bits)

    def take(self, token: int, left: int) -> int:
        if len(self.taken) == 2 and self.where == "take":
            raise ValueError("it is stuck")
        return super().take(token, left)


@pytest.mark.parametrize("where, why", [("fill", "stuck"), ("take", "stuck"), ("nothing", "no token")])
def test_a_stuck_constraint_ends_its_request_and_no_other(engine: Engine, where: str, why: str) -> None:
    other, _ = ask(engine, 4, 5, max_new_tokens=8)
    heard = answer(engine, 9, 8, max_new_tokens=9, constraint=Broken(where))
    assert len(heard.ids) == 2 and heard.done and heard.done.reason == "constraint" and why in heard.done.detail
    assert other.ids == answer(engine, 4, 5, max_new_tokens=8).ids and not engine.failing


class Slow(Cycle):
    """Needs time for each mask."""

    def fill(self, bits: np.ndarray) -> None:
        time.sleep(0.01)
        super().fill(bits)


def test_a_slow_mask_delays_its_own_row_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint, "GRACE", 0.0)
    fast = answer(engine, 9, 8, 7, sampling=HOT, max_new_tokens=9, constraint=Cycle(*SETS))
    free = answer(engine, 4, 5, max_new_tokens=8, sampling=HOT)
    order: list[str] = []
    slow = Recorder()
    ask(engine, 9, 8, 7, sampling=HOT, max_new_tokens=9, constraint=Slow(*SETS))[0].events = slow.events
    beside, _ = ask(engine, 4, 5, max_new_tokens=8, sampling=HOT)
    while engine.step():
        order += ["slow"] * (len(slow.tokens) > order.count("slow"))
        order += ["free"] * (len(beside.tokens) > order.count("free"))
    assert slow.ids == fast.ids and beside.ids == free.ids
    assert order.index("free") < order.index("slow") and order[-1] == "slow"


def test_a_mask_that_never_comes_is_given_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint, "STUCK", 0.05)
    release = threading.Event()

    class Hanging(Cycle):
        def fill(self, bits: np.ndarray) -> None:
            release.wait(20)

    hanging, _ = ask(engine, 9, 8, max_new_tokens=9, constraint=Hanging())
    held_up, _ = ask(engine, 9, 8, 7, max_new_tokens=9, constraint=Cycle(*SETS))
    begun = time.monotonic()
    finish(engine)
    release.set()
    assert time.monotonic() - begun < 5
    assert isinstance(hanging.done, Done) and hanging.done.reason == "constraint" and "seconds" in hanging.done.detail
    assert held_up.ids == answer(engine, 9, 8, 7, max_new_tokens=9, constraint=Cycle(*SETS)).ids


def test_masks_reach_the_last_token_of_any_vocabulary() -> None:
    for size in (1, 31, 32, 33, 300):
        bits = np.zeros(-(-size // 32), dtype=np.int32)
        bits.view(np.uint32)[(size - 1) // 32] = np.uint32(1 << (size - 1) % 32)
        logits = constraint.constrained(torch.zeros(2, size), [bits, None])
        assert logits[0].isfinite().nonzero().flatten().tolist() == [size - 1] and logits[1].isfinite().all()


def test_a_constraint_and_a_scored_prompt_do_not_go_together(engine: Engine) -> None:
    with pytest.raises(ValueError, match="constraint"):
        ask(engine, 9, constraint=Cycle(*SETS), prompt_logprobs=True)
