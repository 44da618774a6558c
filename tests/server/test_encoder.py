"""The process that renders and encodes: the same ids as here, limits, turns, and what happens when it ends."""

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tutelage.bounded import Overrun
from tutelage.data.rankings import encode_response
from tutelage.errors import InputError
from tutelage.server import worker
from tutelage.server.encoder import Encoder, Encoders, encoder_of
from tutelage.server.worker import Worker, in_pieces
from tutelage.text.chat import chat_ids
from tutelage.text.template import CHAT_TEMPLATE
from tutelage.text.tokenizer import Tokenizer
from tutelage.web.errors import ApiError

SLOW_FOR_ONE = (
    "{% if 'tortoise' in messages[0].content %}{% for i in range(90000) %}{% for j in range(9000) %}{% endfor %}"
    "{% endfor %}{% endif %}"
)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> Iterator[Encoder]:
    """Of a model whose template takes very long for one word."""
    settings = tokenizer.settings | {"chat_template": SLOW_FOR_ONE + CHAT_TEMPLATE}
    made = encoder_of(Tokenizer(tokenizer._backend, settings), memory=256, seconds=0.2)
    yield made
    made.close()


def test_the_ids_are_those_of_the_tokenizer(encoder: Encoder, tokenizer: Tokenizer) -> None:
    talk = [*user("hello <|end|> 你好"), {"role": "assistant", "content": "fine"}]

    async def asked() -> None:
        prompt = await encoder.chat("a", talk[:1], 99)
        assert list(prompt.ids or ()) == chat_ids(tokenizer, talk[:1], True) and prompt.exact
        (answer,) = await encoder.answers("a", [talk], 99, whole=False)
        assert list(answer.ids or ()) == encode_response(talk[:1], "fine", tokenizer)
        (whole,) = await encoder.answers("a", [talk], 99, whole=True)
        assert list(whole.ids or ()) == chat_ids(tokenizer, talk)
        texts = ["", "the cat", "the dog " * 9000, "x"]
        found = await encoder.texts("a", texts, 200_000)
        assert [list(each.ids or ()) for each in found] == [tokenizer.encode_text(text) for text in texts]
        assert await encoder.decoded("a", [each.ids or () for each in found]) == texts

    asyncio.run(asked())


def test_a_text_that_cannot_fit_is_not_encoded(encoder: Encoder, tokenizer: Tokenizer) -> None:
    async def asked() -> None:
        long = await encoder.chat("a", user("the cat " * 100_000), 99)
        assert (long.ids, long.exact) == (None, False) and 99 < long.count < len(tokenizer.encode("the cat " * 100_000))
        size = len(chat_ids(tokenizer, user("the cat " * 20), True))
        assert (await encoder.chat("a", user("the cat " * 20), size)).count == size
        over = await encoder.chat("a", user("the cat " * 20), size - 1)
        assert (over.ids, over.count, over.exact) == (None, size, True)

    asyncio.run(asked())


def test_a_rendering_that_takes_too_long_ends_itself_alone(encoder: Encoder, tokenizer: Tokenizer) -> None:
    async def asked() -> None:
        asked = [encoder.chat("a", user("tortoise"), 99), encoder.chat("b", user("hare"), 99)]
        slow, quick = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(slow, InputError) and "takes too long to render" in str(slow) and "\n" not in str(slow)
        assert list(quick.ids) == chat_ids(tokenizer, user("hare"), True)  # type: ignore[union-attr]

    asyncio.run(asked())


def test_turns_are_dropped_as_one_would_by_hand(encoder: Encoder, tokenizer: Tokenizer) -> None:
    talk = [{"role": ("user", "assistant")[i % 2], "content": f"word {i}"} for i in range(9)]
    head = [{"role": "system", "content": "be kind"}]

    async def asked() -> None:
        for start in (0, 2, 4):
            visible = [talk[i] for i in range(start, 9) if i != 5]
            expected = chat_ids(tokenizer, head + visible, True)
            assert await encoder.fit("a", "be kind", talk, [5], len(expected)) == (tuple(expected), start // 2)
        assert (await encoder.fit("a", "be kind", talk, [5], 3))[0] is None

    asyncio.run(asked())


def test_equal_tokenizers_share_a_process(tokenizer: Tokenizer) -> None:
    encoders = Encoders()
    same = Tokenizer(tokenizer._backend, tokenizer.settings)
    other = Tokenizer(tokenizer._backend, tokenizer.settings | {"chat_template": "{# #}" + CHAT_TEMPLATE})
    assert encoders.of(tokenizer) is encoders.of(same) and encoders.of(other) is not encoders.of(same)
    kept = encoders.of(other)
    encoders.keep({kept})
    assert encoders.of(other) is kept
    encoders.keep(set())


class Slow:
    """A child that answers when it is told to."""

    def __init__(self) -> None:
        self.go, self.order = threading.Semaphore(0), []

    def ask(self, job: str, seconds: float) -> str:
        self.go.acquire()
        self.order.append(job)
        return job

    def close(self) -> None:
        self.go.release(99)


def test_short_questions_go_first_and_callers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SHORT_IN_A_ROW", 3)
    child = Slow()
    shared = Worker(child)  # type: ignore[arg-type]
    first = shared.submit("x", 1, "first")
    while not first.running():
        pass
    asked = [shared.submit("a", 10**6, name) for name in ("long 1", "long 2")]
    asked += [shared.submit("b", 10**6, "long 3")]
    asked += [shared.submit("a", 1, f"a{i}") for i in range(4)] + [shared.submit("b", 1, "b0")]
    asked[0].cancel()  # its client has left
    child.go.release(99)
    assert asked[1].result(5) == "long 2"
    assert child.order == ["first", "a0", "b0", "a1", "a2", "a3", "long 3", "long 2"]
    shared.close()
    with pytest.raises(Overrun):
        shared.submit("a", 1, "late")


def test_a_queue_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CAPACITY", 4)
    shared = Worker(Slow())  # type: ignore[arg-type]
    with pytest.raises(ApiError) as refused:
        for _ in range(9):
            shared.submit("a", 1, "more")
    assert (refused.value.status_code, refused.value.reason) == (503, "engine_overloaded")
    assert not shared.submit("b", 1, "another caller's").done()
    shared.close()


def test_items_are_asked_about_in_pieces() -> None:
    items = [SimpleNamespace(size=size) for size in (5_000, 15_000, 1, 50_000, 3, 4)]
    found = [[item.size for item in piece] for piece in in_pieces(items, lambda item: item.size)]
    assert found == [[5_000, 15_000], [1], [50_000], [3, 4]] and in_pieces([], len) == []
