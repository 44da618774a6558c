"""The cache of encoded segments: its bytes are limited, whatever users type."""

import sys

from tutelage.text.chat import chat_ids
from tutelage.text.segment_cache import SegmentCache
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer


def really(cache: SegmentCache) -> int:
    """What Python says the entries take: texts, ids and the containers."""
    sizes = (sys.getsizeof(k) + sys.getsizeof(k[1]) + sys.getsizeof(v) for k, v in cache._kept.items())
    return sum(sizes) + 32 * sum(map(len, cache._kept.values()))


def test_long_and_many_texts_stay_within_the_limit() -> None:
    calls: list[str] = []

    def encode(left: str, text: str, right: str) -> tuple[int, ...]:
        calls.append(text)
        return tuple(range(1000, 1000 + len(text)))

    cache = SegmentCache(encode, limit=100_000)
    for size in (1, 10, 100, 200, 1000):
        for number in range(200):
            cache("", chr(0x4E00 + number) * size, "")
            assert really(cache) <= cache.bytes <= 100_000
    cache("", "x" * 1000, "")
    assert len(cache("", "x" * 1000, "")) == 1000 and calls.count("x" * 1000) == 2  # too long to push out the others
    before = len(calls)
    assert cache("", chr(0x4E00 + 199) * 200, "") == tuple(range(1000, 1200)) and len(calls) == before


def test_a_long_conversation_is_rendered_once(tokenizer: Tokenizer, monkeypatch) -> None:
    rendered = []
    render = Template.render
    monkeypatch.setattr(Template, "render", lambda *given: (rendered.append(1), render(*given))[1])
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"hello {i}"} for i in range(2000)]
    for prompt in (True, False):
        assert len(chat_ids(tokenizer, turns, prompt)) > 4000
    assert len(rendered) == 2
