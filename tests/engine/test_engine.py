"""The engine against the sampler, against whole forward passes, and against itself alone."""

import itertools
import threading
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.engine import slot_cache
from tutelage.engine.engine import Engine, EngineConfig
from tutelage.engine.requests import Done, Event, Handle, ModelUnloaded, PromptScored, QueueFull, Request, Token
from tutelage.engine.running import shares
from tutelage.errors import InputError
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.lora import LoRAConfig, add_adapters, merge_adapters, shallow_copy
from tutelage.sampling.distribution import DistributionConfig, SamplingConfig
from tutelage.sampling.sampler import generate, inference_copy

GREEDY = DistributionConfig(temperature=0)
NEVER = 10**6
LONG = tuple(7 * i % 290 + 3 for i in range(40))


class Recorder:
    """A listener that records the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def tokens(self) -> list[Token]:
        return [event for event in self.events if isinstance(event, Token)]

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def done(self) -> Done | None:
        assert all(not isinstance(event, Done) for event in self.events[:-1]), "something came after the end"
        return self.events[-1] if self.events and isinstance(self.events[-1], Done) else None


def ask(engine: Engine, *prompt: int, **asked: Any) -> tuple[Recorder, Handle]:
    heard = Recorder()
    wanted: dict[str, Any] = dict(max_new_tokens=8, sampling=GREEDY, seed=0) | asked
    return heard, engine.submit(Request(prompt=tuple(prompt), **wanted), heard)


def finish(engine: Engine) -> None:
    for _ in range(2000):
        if not engine.step():
            return
    raise AssertionError("the engine does not come to an end")


def answer(engine: Engine, *prompt: int, **asked: Any) -> Recorder:
    heard, _ = ask(engine, *prompt, **asked)
    finish(engine)
    assert heard.done
    return heard


def whole_logprobs(model: GPT, ids: list[int]) -> Tensor:
    """(L, V): log-softmax of one pass over everything, in fp32."""
    with torch.no_grad():
        return model(torch.tensor([ids]))[0].float().log_softmax(-1)


prompts = st.lists(st.integers(0, 299), min_size=1, max_size=30)
arrivals = st.lists(
    st.tuples(st.integers(0, 6), prompts, st.integers(1, 12), st.sampled_from([0.0, 0.7, 1.3])), min_size=1, max_size=9
)


@pytest.mark.parametrize("small", [dict(slots=3, piece=4), dict(slots=8, piece=64)], ids=str)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])  # a name, no state
@given(arrivals)
def test_each_response_is_the_samplers_whatever_else_runs(
    make_gpt: Any, family: str, small: dict[str, int], asked: list[tuple[int, list[int], int, float]]
) -> None:
    """Requests arrive some steps apart, share slots and steps, and end at different times."""
    model = make_gpt(family)
    engine, heard = Engine(model, EngineConfig(**small)), []
    for seed, (wait, prompt, length, temperature) in enumerate(asked):
        for _ in range(wait):
            engine.step()
        how = DistributionConfig(temperature=temperature)
        heard.append(ask(engine, *prompt, max_new_tokens=length, sampling=how, seed=seed)[0])
    finish(engine)
    for seed, (_, prompt, length, temperature) in enumerate(asked):
        config = SamplingConfig(max_tokens=length, temperature=temperature)
        expected = generate(inference_copy(model), [prompt], [seed], NEVER, config)[0][0].ids
        assert heard[seed].ids == expected
        assert heard[seed].done and heard[seed].done.reason == "length"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 tokens, then 8, 8, 16, ...: a text of 60 tokens spans several."""
    monkeypatch.setattr(slot_cache, "BLOCK", 8)


def test_prompt_and_answer_are_scored_as_one_pass_over_them_does(
    make_gpt: Any, family: str, small_blocks: None
) -> None:
    model = make_gpt(family)
    how = DistributionConfig(temperature=0.7, top_k=9, frequency_penalty=0.5, logit_bias=((7, 2.0),))
    engine = Engine(model, EngineConfig(slots=2, piece=7))
    ask(engine, 9, 8, 7, max_new_tokens=20)
    asked = dict(max_new_tokens=10, sampling=how, seed=3, top_logprobs=4, prompt_logprobs=True)
    heard = answer(engine, *LONG, **asked)
    scored, tokens = heard.events[0], heard.tokens
    assert isinstance(scored, PromptScored) and len(tokens) == 10
    assert scored.logprobs[0] is None and scored.top[0] == []
    whole = whole_logprobs(model, [*LONG, *heard.ids])
    reported = [*zip(scored.logprobs[1:], scored.top[1:]), *((token.logprob, token.top) for token in tokens)]
    for logprobs, token, (logprob, top) in zip(whole, [*LONG[1:], *heard.ids], reported, strict=False):
        assert logprob == pytest.approx(float(logprobs[token]), abs=1e-4)
        best = logprobs.topk(4)
        assert [p for _, p in top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert all(p == pytest.approx(float(logprobs[other]), abs=1e-4) for other, p in top)


def test_a_prompt_is_scored_alone_where_nothing_is_to_be_written(make_gpt: Any) -> None:
    engine = Engine(make_gpt(), EngineConfig(slots=2, piece=16))
    answer(engine, *LONG)
    heard = answer(engine, *LONG, max_new_tokens=0, prompt_logprobs=True)
    assert [type(event) for event in heard.events] == [PromptScored, Done]
    assert heard.done == Done("length", 40, 0)  # no cached prefix is used: every token's hidden state is needed


def test_a_seed_gives_its_answer_alone_and_among_others_in_bf16(make_gpt: Any, small_blocks: None) -> None:
    """Bit for bit, in bf16, where another rounding would soon give another token."""
    model = make_gpt("llama", dtype=torch.bfloat16, width=64, head_width=16, hidden=1536, context=256)
    how = DistributionConfig(temperature=1.2, top_p=0.97)

    def one(engine: Engine, seed: int) -> Recorder:
        return ask(engine, *LONG[: 5 + 4 * seed], max_new_tokens=60, sampling=how, seed=seed, top_logprobs=3)[0]

    alone = []
    for seed in range(8):
        engine = Engine(model, EngineConfig(slots=1, piece=256))
        alone.append(one(engine, seed))
        finish(engine)
    engine = Engine(model, EngineConfig(slots=8, piece=12))
    together = []
    for seed in range(8):
        together.append(one(engine, seed))
        for _ in range(seed):
            engine.step()
    finish(engine)
    again = [one(engine, seed) for seed in range(8)]  # their prompts are in the prefix cache by now
    finish(engine)
    for first, second, third in zip(alone, together, again, strict=True):
        assert first.tokens == second.tokens == third.tokens
    assert sum(heard.done.cached_tokens for heard in again if heard.done) > 100


def test_a_cached_prefix_is_not_computed_again_and_nothing_changes(
    make_gpt: Any, family: str, small_blocks: None
) -> None:
    """A conversation's second turn, and another conversation with the same system prompt."""
    model, asked = make_gpt(family), dict(top_logprobs=5, max_new_tokens=6)
    fresh, engine = (Engine(model, EngineConfig(slots=2, piece=16)) for _ in range(2))
    first = answer(engine, *LONG, **asked)
    turn = [*LONG, *first.ids, 5, 6, 7]
    second, other = answer(engine, *turn, **asked), answer(engine, *LONG[:25], 1, 2, 3, **asked)
    assert [heard.done and heard.done.cached_tokens for heard in (first, second, other)] == [0, 45, 25]
    for prompt, heard in ((turn, second), ([*LONG[:25], 1, 2, 3], other)):
        expected = answer(fresh, *prompt, **asked)
        fresh.prefixes.forget("")
        assert expected.done and expected.done.cached_tokens == 0
        assert heard.ids == expected.ids
        for one, two in zip(heard.tokens, expected.tokens, strict=True):
            assert [p for _, p in one.top] == pytest.approx([p for _, p in two.top], abs=1e-5)


def test_simultaneous_requests_compute_their_common_prefix_once(make_gpt: Any) -> None:
    engine = Engine(make_gpt(), EngineConfig(slots=4, piece=8))
    asked = [ask(engine, *LONG, seed=seed, sampling=DistributionConfig())[0] for seed in range(4)]
    read = 0
    while engine.step():
        read += sum(group.tokens.stop - group.tokens.start for group in engine.batch.slots.attention)
    assert [heard.done and heard.done.cached_tokens for heard in asked] == [0, 39, 39, 39]
    assert read <= 40 + 3 + 4 * 8
    alone = Engine(make_gpt(), EngineConfig(slots=1))
    assert asked[2].ids == answer(alone, *LONG, seed=2, sampling=DistributionConfig()).ids


def test_a_long_prompt_does_not_hold_up_decoding(make_gpt: Any) -> None:
    engine = Engine(make_gpt(), EngineConfig(slots=3, piece=8))
    writer, _ = ask(engine, 4, 5, max_new_tokens=40)
    engine.step()
    long, _ = ask(engine, *LONG)
    before = len(writer.ids)
    while not long.ids:
        engine.step()
    steps = len(writer.ids) - before
    assert steps >= 40 // 8  # one token in each pass of the long prompt
    brief, _ = ask(engine, 60, 61, 62)
    assert not brief.ids
    engine.step()
    assert brief.ids  # and a short prompt is processed at once


def test_a_short_prompt_does_not_wait_for_a_long_one(make_gpt: Any) -> None:
    engine = Engine(make_gpt(), EngineConfig(slots=3, piece=8))
    long, _ = ask(engine, *LONG)
    brief, _ = ask(engine, 60, 61, 62)
    engine.step()
    assert brief.ids and not long.ids


def test_cancelling_frees_the_slot_within_a_step(make_gpt: Any) -> None:
    engine = Engine(make_gpt(), EngineConfig(slots=1))
    running, handle = ask(engine, 1, 2, 3, max_new_tokens=50)
    waiting, _ = ask(engine, 4, 5, 6, max_new_tokens=2)
    never, unwanted = ask(engine, 7, 8, 9)
    for _ in range(3):
        engine.step()
    assert engine.load() == (1, 2) and not waiting.events
    handle.cancel()
    unwanted.cancel()
    engine.step()
    assert running.done == Done("cancelled", 3, 0) and len(running.ids) == 3
    assert never.done == Done("cancelled", 3, 0) and not never.ids
    assert waiting.ids and engine.load() == (1, 0)
    finish(engine)
    assert waiting.ids == answer(Engine(make_gpt()), 4, 5, 6, max_new_tokens=2).ids


def test_rows_that_move_into_a_free_slot_write_on_as_before(make_gpt: Any, family: str, small_blocks: None) -> None:
    engine = Engine(make_gpt(family), EngineConfig(slots=4, piece=9))
    asked = [ask(engine, *LONG[i : i + 9], max_new_tokens=30) for i in range(4)]
    for _ in range(12):
        engine.step()
    asked[0][1].cancel()
    engine.step()
    assert [row.request.prompt[0] for row in engine.batch.rows] == [LONG[3], LONG[1], LONG[2]]
    finish(engine)
    alone = Engine(make_gpt(family), EngineConfig(slots=1))
    for i in (1, 2, 3):
        assert asked[i][0].ids == answer(alone, *LONG[i : i + 9], max_new_tokens=30).ids


def test_owners_take_turns(make_gpt: Any) -> None:
    engine, order = Engine(make_gpt(), EngineConfig(slots=1, queue=8)), []
    for owner in ("a", "a", "a", "a", "b", "c"):
        request = Request((1, 2), 1, GREEDY, 0, owner=owner)
        engine.submit(request, lambda event, owner=owner: order.append(owner) if isinstance(event, Done) else None)
    with pytest.raises(QueueFull, match="6 of 8 places in the queue are taken, 4 by this owner"):
        ask(engine, 1, 2, owner="a")
    ask(engine, 1, 2, owner="d")  # there is room for everybody else
    finish(engine)
    assert order == ["a", "b", "c", "a", "a", "a"]
    assert engine.load() == (0, 0)


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(make_gpt: Any) -> None:
    engine = Engine(make_gpt())
    ids = answer(engine, *LONG, max_new_tokens=12).ids
    stop = next(token for token in ids[3:] if token not in ids[:3])
    heard = answer(engine, *LONG, max_new_tokens=12, stop_ids=frozenset({stop, 299}))
    assert heard.ids == ids[: ids.index(stop)]
    assert heard.done == Done("stop", 40, 39, end=heard.done.end)
    unstopped = answer(engine, *LONG, max_new_tokens=12, top_logprobs=2).tokens[len(heard.ids)]
    stopped = answer(engine, *LONG, max_new_tokens=12, top_logprobs=2, stop_ids=frozenset({stop})).done.end
    assert stopped == unstopped and (heard.done.end.id, heard.done.end.logprob) == (stop, stopped.logprob)


def test_memory_is_bounded(make_gpt: Any) -> None:
    """4 kv heads of 8 channels in fp32, 2 layers: 512 bytes a token; 64 tokens a slot."""
    model = make_gpt("gpt2")
    engine = Engine(model, EngineConfig(slots=100, memory=1))
    assert engine.count == 24  # three quarters of a MiB
    for first in range(12):
        answer(engine, first, *LONG, max_new_tokens=4)
    held = sum(kv.nbytes for kv in engine.batch.slots.kv) + sum(
        block.nbytes for prefix in engine.prefixes.entries.values() for block in prefix.kv
    )
    assert held <= 2**20 and len(engine.prefixes.entries) == 11  # of 44 tokens each
    assert [int(prefix.ids[0]) for prefix in engine.prefixes.entries.values()] == [*range(1, 12)]
    with pytest.raises(InputError, match="--memory 1: one request of 4096 tokens needs 2 MiB"):
        Engine(make_gpt("gpt2", context=4096), EngineConfig(memory=1, context=0))


def test_adapters_share_the_base_and_a_batch(make_gpt: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each response is that of the base with this adapter merged, whatever else is in the pass."""
    base, merged = make_gpt(family), {"": make_gpt(family)}
    engine = Engine(base, EngineConfig(slots=6, piece=16))
    for seed, name in enumerate(["red", "blue"]):
        adapted = add_adapters(
            shallow_copy(base), LoRAConfig(rank=2 + seed, targets=("q", "v", "up")[seed:]), generator(seed)
        )
        for path, parameter in adapted.named_parameters():
            if ".adapter.up" in path:
                torch.nn.init.normal_(parameter, std=0.3, generator=generator(seed))
        engine.add_adapter(name, adapted)
        merged[name] = merge_adapters(adapted)
    heard = {(name, i): ask(engine, *LONG[i : i + 12], adapter=name)[0] for i in range(2) for name in merged}
    finish(engine)
    answers = {key: found.ids for key, found in heard.items()}
    assert len({tuple(answers[name, 0]) for name in merged}) == 3
    for (name, i), ids in answers.items():
        assert ids == answer(Engine(merged[name]), *LONG[i : i + 12]).ids
    again = answer(engine, *LONG[:12], adapter="blue")
    assert again.ids == answers["blue", 0] and again.done and again.done.cached_tokens == 11
    ask(engine, *LONG[20:], adapter="red")
    engine.step()
    beside, _ = ask(engine, *LONG[20:], adapter="blue")  # the same prompt is cached, but for another adapter
    finish(engine)
    assert beside.done and beside.done.cached_tokens == 0
    assert beside.ids == answer(Engine(merged["blue"]), *LONG[20:]).ids
    late, _ = ask(engine, 9, 9, adapter="red")
    engine.remove_adapter("red")
    assert late.done and late.done.reason == "cancelled"
    with pytest.raises(ModelUnloaded, match="'red' is not loaded"):
        ask(engine, 1, adapter="red")
    beside, _ = ask(engine, *LONG[:12], adapter="blue")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_check", lambda request: None)  # the adapter is removed just after the check
        late, _ = ask(engine, 9, 9, adapter="red")
    finish(engine)
    assert late.done and late.done.reason == "cancelled" and beside.ids == answers["blue", 0]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (dict(prompt=()), "needs a prompt"),
        (dict(max_new_tokens=63), "exceed the context of 64 tokens"),
        (dict(prompt=(5, 300)), "token 300"),
        (dict(sampling=DistributionConfig(logit_bias=((-1, 1.0),))), "token -1"),
        (dict(seed=-1), "seed >= 0"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(make_gpt: Any, asked: dict[str, Any], why: str) -> None:
    wanted: dict[str, Any] = dict(prompt=(1, 2), max_new_tokens=3, sampling=GREEDY, seed=0) | asked
    with pytest.raises(ValueError, match=why):
        Engine(make_gpt()).submit(Request(**wanted), Recorder())


def test_a_failing_pass_or_listener_harms_nobody_else(make_gpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(make_gpt(), EngineConfig(slots=3))

    def broken(event: Event) -> None:
        raise RuntimeError("deaf")

    engine.submit(Request((1, 2), 9, GREEDY, 0), broken)
    fine, _ = ask(engine, 3, 4)
    finish(engine)
    assert len(fine.ids) == 8
    hit, _ = ask(engine, 3, 4)
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "trunk", lambda *_, **__: 1 / 0)
        engine.step()
    assert hit.done and hit.done.reason == "error" and "division" in hit.done.detail
    beside, _ = ask(engine, 3, 4)
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine.batch, "_reuse", lambda row: 1 / 0)
        hit, _ = ask(engine, 5, 6)
        engine.step()
    assert (
        hit.done and hit.done.reason == "error" and not beside.done
    )  # it had not been admitted: the others are not affected
    finish(engine)
    assert beside.ids == answer(engine, 3, 4).ids == fine.ids
    hit, handle = ask(engine, 3, 4)
    engine.step()
    handle.cancel()
    with monkeypatch.context() as patch:
        patch.setattr(engine.prefixes, "keep", lambda *_: 1 / 0)  # no memory is left for the copy
        engine.step()
    assert hit.done and hit.done.reason == "error" and engine.load() == (0, 0)


def test_a_cached_prefix_takes_no_more_memory_than_its_tokens(make_gpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_cache, "BLOCK", 8)
    engine, read = Engine(make_gpt()), 0
    for prompt in ((1, 2), LONG[:8], LONG[20:]):
        read += len(prompt) + len(answer(engine, *prompt, max_new_tokens=3).ids) - 1  # the last one is never run
    config = engine.model.config
    each = config.layers * 2 * config.kv_heads * config.head_width * 4
    assert engine.prefixes.bytes == read * each
    kept = [tensor for prefix in engine.prefixes.entries.values() for tensor in prefix.kv]
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept) == read * each


def test_it_is_failing_when_all_passes_fail(make_gpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(make_gpt())
    works = engine.model.trunk

    def asked(times: int, trunk: Any) -> bool:
        monkeypatch.setattr(engine.model, "trunk", trunk)
        for _ in range(times):
            answer(engine, 1, 2)
        return engine.failing

    def broken(*given: Any, **named: Any) -> Any:
        raise RuntimeError("no memory")

    assert not asked(2, broken) and not asked(1, works)
    assert not asked(2, broken) and asked(1, broken)
    assert not asked(1, works)
    assert asked(3, broken)
    engine.failed_at -= 61
    assert not engine.failing  # it may be tried again


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_died_is_failing(make_gpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(make_gpt())
    go = threading.Event()

    def die() -> bool:
        go.wait(20)
        raise SystemExit

    monkeypatch.setattr(engine, "step", die)
    engine.start()
    assert engine.thread and not engine.failing
    go.set()
    engine.thread.join(20)
    assert engine.failing


def test_its_own_thread_serves_and_closes(make_gpt: Any) -> None:
    engine, ended = Engine(make_gpt()), threading.Event()
    engine.start()
    heard = Recorder()

    def listener(event: Event) -> None:
        heard(event)
        if isinstance(event, Done):
            ended.set()

    engine.submit(Request((1, 2), 5, GREEDY, 0), listener)
    assert ended.wait(20) and len(heard.ids) == 5
    ended.clear()
    engine.submit(Request((1, 2), 60, GREEDY, 0, stop_ids=frozenset()), listener)
    engine.close()
    assert ended.wait(20) and engine.load() == (0, 0)
    with pytest.raises(ModelUnloaded, match="closed"):
        ask(engine, 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 900)), min_size=1, max_size=9))
def test_the_cut_into_runs_is_the_cheapest(rows: list[tuple[bool, int]]) -> None:
    """Against every way to split; True: a slot is skipped before this row."""
    lengths = [length for _, length in rows]
    taken = list(itertools.accumulate(1 + gap for gap, _ in rows))

    def cost(runs: list[tuple[int, int]]) -> int:
        return sum(slot_cache.PRODUCT + (last - first + 1) * max(lengths[first : last + 1]) for first, last in runs)

    def possible(runs: list[tuple[int, int]]) -> bool:
        return all(taken[last] - taken[first] == last - first for first, last in runs)

    cuts = itertools.product([False, True], repeat=len(rows) - 1)
    edges = [[0, *(i + 1 for i, here in enumerate(cut) if here), len(rows)] for cut in cuts]
    ways = [[(a, b - 1) for a, b in itertools.pairwise(edge)] for edge in edges]
    found = slot_cache.neighbours(taken, lengths)
    assert found in ways and possible(found)
    assert cost(found) == min(cost(way) for way in ways if possible(way))


def test_a_pass_is_shared_between_the_oldest_and_the_shortest_prompts() -> None:
    assert shares([], 8) == []
    assert shares([100], 8) == [8]
    assert shares([100, 3, 2], 8) == [4, 2, 2]
    assert shares([100, 50, 2], 8) == [4, 2, 2]
    assert shares([3, 100, 2], 8) == [3, 3, 2]
    assert shares([1, 1], 8) == [1, 1]


@pytest.mark.parametrize("rows, columns", [(1, 64), (2, 16), (3, 64), (1, 100)])
def test_padding_a_product_for_amx_changes_nothing_else(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, rows, columns, generator=generator), torch.randn(3, columns, 5, generator=generator)
    torch.testing.assert_close(slot_cache.padded_bmm(a, b), torch.bmm(a, b))


def test_with_amx_blocks_are_short_and_hold_the_whole_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_cache, "has_amx", lambda: True)
    config = GPTConfig(vocab_size=3, width=8, layers=1, heads=1, kv_heads=1, head_width=8, hidden=8, context=3001)
    slots = slot_cache.SlotCache(config, 1, 3001, torch.bfloat16, torch.device("cpu"))
    sizes = [kv.shape[4] for kv in slots.kv]
    assert max(sizes) == 384 and all(size % 32 == 0 for size in sizes)
    assert slots.starts == [0, *itertools.accumulate(sizes[:-1])] and sum(sizes) == 3008
