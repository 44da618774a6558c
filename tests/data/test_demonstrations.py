"""Windows of a conversation, with a tokenizer of known lengths: one token per letter and one per turn."""

from hypothesis import given
from hypothesis import strategies as st

from tutelage.data import corpus, demonstrations
from tutelage.data.sources import Conversation, QuestionAnswers


def size(messages) -> int:
    return sum(len(m["content"]) + 1 for m in messages)


def turns(*contents: str, first: str = "user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]


def test_cut_between_exchanges():
    messages = turns("aaaa", "bbbb", "cccc", "dddd", "e", "f", "trailing")
    pieces, dropped = demonstrations.windows(messages, size, max_tokens=14)
    assert pieces == [messages[:2], messages[2:6]] and dropped == 0  # 10 tokens, then 10 + 4


def test_an_exchange_too_long_leaves_a_gap():
    messages = turns("a", "b", "c" * 50, "d", "e", "f")
    pieces, dropped = demonstrations.windows(messages, size, max_tokens=20)
    assert pieces == [messages[:2], messages[4:]] and dropped == 2


def test_a_system_turn_stands_before_every_piece():
    system = {"role": "system", "content": "ss"}
    messages = turns("aaa", "bbb", "ccc", "ddd")
    pieces, _ = demonstrations.windows([system, *messages], size, max_tokens=11)
    assert pieces == [[system, *messages[:2]], [system, *messages[2:]]]


def test_nothing_to_learn():
    for messages in ([], turns("only a question"), turns("only an answer", first="assistant")):
        assert demonstrations.windows(messages, size, max_tokens=100) == ([], 0)


@given(st.lists(st.text("ab", max_size=9)), st.sampled_from(["user", "assistant"]), st.integers(1, 40))
def test_laws_of_windows(contents, first, limit):
    messages = turns(*contents, first=first)
    pieces, dropped = demonstrations.windows(messages, size, limit)
    assert all(p[0]["role"] == "user" and p[-1]["role"] == "assistant" for p in pieces)
    assert all(size(p) <= limit for p in pieces)
    assert sum(map(len, pieces)) + dropped == len(demonstrations.trimmed(messages))


def test_one_demonstration_and_one_document_for_each_answer():
    entry = QuestionAnswers("Why?", ("Because.", "Why not?"), "en")
    found = demonstrations.from_questions(entry)
    assert [d.messages for d in found] == [turns("Why?", "Because."), turns("Why?", "Why not?")]
    assert [d.text for d in corpus.from_questions(entry)] == ["Why?\nBecause.", "Why?\nWhy not?"]


def test_a_document_has_one_line_per_turn_and_nobodys_name():
    conversation = Conversation("id", ("p", "q"), turns("hi", "hello", "bye"), None)
    assert corpus.from_conversation(conversation).text == "hi\nhello\nbye"
