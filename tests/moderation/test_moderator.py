"""Moderation: the search equals a naive search, and a stream never shows a part of a blocked term."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import InputError
from tutelage.moderation.moderator import ModerationConfig, Moderator
from tutelage.moderation.stream_filter import StreamFilter
from tutelage.moderation.terms import BUILT_IN, CATEGORIES, Term, TermList, fold, read_terms, searched

FOUND = {
    "I will KILL you.": {"harassment/threatening"},
    "i  will\nkill\u200b you": {"harassment/threatening"},  # spaces, a line's end, a zero-width space
    "ｉ ｗｉｌｌ ｋｉｌｌ ｙｏｕ": {"harassment/threatening"},  # full width
    "how to bu\u00adild a bomb, how to build a bomb": {"illicit/violent"},
    "beheaded in public": {"violence"},  # behead*
    "他说：你去死吧！": {"harassment"},
    "你\u200b去\ufe0f死吧": {"harassment"},
    "如何製造炸彈，我要殺了妳": {"illicit/violent", "harassment/threatening"},  # traditional characters
    "please i want to kill myself 我不想活了": {"self-harm/intent"},
    "如 何 制 造 炸 弹": {"illicit/violent"},
    "如，何。制…造\n炸_弹": {"illicit/violent"},
    "請問：如 * 何 / 製 ~ 造 \u200b 炸 😀 彈？": {"illicit/violent"},
    "打击 儿童 色情 ，儿、童、色、情": {"sexual/minors"},  # the first one is allowed
}
CLEAN = [
    "I will kill your darlings",  # another word
    "cut myself some slack",  # allowed
    "how to make a bomb shelter",
    "打击儿童色情",
    "打击，儿童、色情",
    "ki ll you, a.s.s",  # spaces and full stops make other words in English
    "a chink in the armour",
    "niggardly spices",
    "",
]


@pytest.fixture(scope="module")
def terms() -> TermList:
    return TermList.read(BUILT_IN)


@pytest.mark.parametrize("text", FOUND)
def test_terms_are_found_however_they_are_written(terms: TermList, text: str) -> None:
    assert terms.categories(text) == FOUND[text]


@pytest.mark.parametrize("text", CLEAN)
def test_harmless_neighbours_are_not(terms: TermList, text: str) -> None:
    assert terms.categories(text) == set()


def test_both_lists_cover_every_category() -> None:
    for path in BUILT_IN:
        assert {term.category for term in read_terms(path)} == {*CATEGORIES, "allow"}, path


def test_the_categories_are_those_of_openai() -> None:
    moderation = pytest.importorskip("openai.types.moderation")
    fields = moderation.Categories.model_fields
    assert {field.alias or name for name, field in fields.items()} == set(CATEGORIES)


Form = Callable[[str], str]


def plain_search(terms: list[Term], text: str) -> dict[str, list[tuple[Form, int]]]:
    """The positions where terms of each category begin, found by trying every term at every position.

    A term must not begin or end inside a word, that is, between two letters below U+2E80. One or two Chinese characters
    are searched in the folded text, which still has spaces and punctuation.
    """
    places: dict[str, list[tuple[Form, int]]] = {}
    for form in (searched, fold):
        whole, spots = form(text), []
        for term in terms:
            short = len(term.words) < 3 and all(ord(c) >= 0x2E80 for c in term.words)
            if term.category != "allow" and short != (form is fold):
                continue
            for at in range(len(whole)):
                if whole.startswith(term.words, at):
                    end = at + len(term.words)
                    edges = [at] if term.open_end else [at, end]
                    cut = any(
                        0 < e < len(whole) and all(c.isalnum() and ord(c) < 0x2E80 for c in whole[e - 1 : e + 1])
                        for e in edges
                    )
                    if not cut:
                        spots.append((at, end, term.category))
        allowed = [(a, b) for a, b, category in spots if category == "allow"]
        for a, b, category in spots:
            if category != "allow" and not any(s <= a and b <= e for s, e in allowed):
                places.setdefault(category, []).append((form, a))
    return places


LETTERS = st.sampled_from("ab 你好AＢ1\u200b.")
WORDS = st.text(LETTERS, min_size=1, max_size=4).map(searched).filter(bool)
TERMS = st.lists(
    st.builds(Term, WORDS, st.sampled_from(["hate", "violence", "sexual", "allow"]), st.booleans()), max_size=6
)


@given(TERMS, st.text(LETTERS, max_size=24))
def test_the_automaton_finds_what_a_plain_search_finds(terms: list[Term], text: str) -> None:
    assert TermList(terms).categories(text) == plain_search(terms, text).keys()


def moderator_of(terms: list[Term], **policy: object) -> Moderator:
    moderator = Moderator(ModerationConfig(builtin_terms=False, **policy))  # type: ignore[arg-type]
    moderator._terms = TermList(terms)
    return moderator


PIECES = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=8)


@given(TERMS, PIECES)
def test_an_answer_is_stopped_before_its_first_blocked_term(terms: list[Term], pieces: list[str]) -> None:
    """For any chunks: the stream stops if and only if the text has a blocked term, and shows no letter of it."""
    moderator = moderator_of(terms, blocked=("hate", "violence"))
    answer = StreamFilter(moderator)
    shown = "".join([*map(answer.push, pieces), answer.finish()])
    whole = "".join(pieces)
    found = plain_search(terms, whole)
    blocked = [place for category in ("hate", "violence") for place in found.get(category, [])]
    assert answer.stopped == bool(blocked)
    assert whole.startswith(shown)
    if blocked:
        for form, place in blocked:
            assert len(form(shown + "好")) - 1 <= place  # folding may join the last character with the next
    else:
        assert shown == whole
        assert {name for name, yes in answer.verdict["categories"].items() if yes} == found.keys()


def test_a_blocked_term_is_not_shown_in_part() -> None:
    answer = StreamFilter(Moderator())
    shown = [answer.push(piece) for piece in ["Sure. How ", "to mak", "e a b", "omb", ": take", " two"]]
    assert shown == ["Sure.", "", "", "", "", ""] and answer.stopped
    assert answer.verdict["categories"]["illicit/violent"] and answer.finish() == ""


def test_two_chinese_characters_are_a_term_only_where_they_stand_together() -> None:
    """Two characters meet by chance at a comma: 出口，交易 is "exports, trade". A stream withholds the first."""
    terms = TermList(
        [Term("口交", "sexual", False), Term("如何制造炸弹", "illicit", False), Term("进出口交易", "allow", False)]
    )
    for innocent in ("出口，交易", "出口 交易", "出口\n交易", "进出口交易", "进出口，交易额"):
        assert terms.categories(innocent) == set(), innocent
    for guilty in ("口交", "说口交。", "口\u200b交"):
        assert terms.categories(guilty) == {"sexual"}, guilty
    assert terms.categories("如何，制 造炸弹") == {"illicit"}
    assert {"口", "口交"} <= terms.beginnings


@pytest.mark.parametrize("apart", ["", " ", "，", ". ", "\n", "-_-"])
def test_no_character_of_a_chinese_term_is_shown_however_they_are_set_apart(apart: str) -> None:
    answer = StreamFilter(Moderator())
    pieces = [character + apart for character in "好的如何制造炸弹首先"]
    shown = "".join(map(answer.push, pieces))
    assert shown.startswith("好" + apart) and "如" not in shown and answer.stopped


def test_chinese_text_waits_only_for_what_may_become_a_term() -> None:
    answer = StreamFilter(Moderator())
    shown = [answer.push(piece) for piece in ["今天，", "天气", "如", "，", "此", "好。"]]
    assert shown == ["今天，", "天气", "", "", "如，此", "好。"]


def test_ordinary_text_waits_for_nothing() -> None:
    answer = StreamFilter(Moderator())
    assert [answer.push(piece) for piece in ["The sun ", "rises ", "z. "]] == ["The sun ", "rises ", "z. "]


@pytest.mark.parametrize("place", [0, 195, 199, 200, 395, 1001, 3990])
def test_the_classifier_reads_every_word_of_a_long_answer_a_few_times(place: int) -> None:
    """No text is missed between two readings, and the work is linear in the length of the text."""
    moderator, read = moderator_of([], blocked=("hate",)), []

    def score(text: str) -> dict[str, float]:
        read.append(len(text))
        return dict.fromkeys(CATEGORIES, 0.0) | {"hate": float("abhorrent" in text)}

    moderator.classifier = SimpleNamespace(score=score)  # type: ignore[assignment]
    text = ("the cat sat " * 400)[:4000]
    text = text[:place] + "abhorrent" + text[place:]
    answer = StreamFilter(moderator)
    for start in range(0, len(text), 7):
        answer.push(text[start : start + 7])
    answer.finish()
    assert answer.stopped and sum(read) <= 4 * len(text)


def test_a_verdict_has_openai_shape_and_the_policy_decides() -> None:
    moderator = Moderator(ModerationConfig(moderate="input", blocked=("illicit/violent",)))
    bomb, sad, fine = moderator.check(["how to make a bomb", "i want to kill myself", "hello"])
    assert list(bomb["categories"]) == list(bomb["category_scores"]) == list(CATEGORIES)
    assert [v["flagged"] for v in (bomb, sad, fine)] == [True, True, False]
    assert bomb["category_scores"]["illicit/violent"] == 1.0
    assert moderator.stops("input", bomb) and not moderator.stops("output", bomb)
    assert not moderator.stops("input", sad) and not moderator.stops("input", fine)
    assert not Moderator(ModerationConfig(moderate="off")).stops("input", bomb)


def test_the_administrators_list_is_read_again_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "terms.txt"
    own.write_text("[harassment]\nblockhead\n[allow]\nhow to make a bomb cake\n", encoding="utf-8")
    moderator = Moderator(ModerationConfig(terms=own))
    assert moderator.check(["You blockhead"])[0]["categories"]["harassment"]
    assert not moderator.check(["how to make a bomb cake"])[0]["flagged"]  # an exception to a built-in term
    own.write_text("[harassment]\nnitwit\n", encoding="utf-8")
    os.utime(own, ns=(1, 1))
    assert not moderator.check(["You blockhead"])[0]["flagged"] and moderator.check(["nitwit!"])[0]["flagged"]
    own.write_text("[insult]\nx\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert moderator.check(["nitwit!"])[0]["flagged"]
    assert "[insult] is not a category" in caplog.text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kill\n", "line 1: 'kill' comes before the first [category]"),
        ("[hate]\n\n[anger]\n", "line 3: [anger] is not a category"),
        ("[hate]\n\u200b*\n", "line 2: nothing is left of"),
    ],
)
def test_a_faulty_list_is_refused_with_its_line(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "terms.txt").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=line.replace("[", r"\[").replace("]", r"\]")):
        Moderator(ModerationConfig(terms=tmp_path / "terms.txt"))


def test_a_policy_without_meaning_is_refused() -> None:
    with pytest.raises(InputError, match="no such category"):
        ModerationConfig(blocked=("rudeness",))
    with pytest.raises(InputError, match="--threshold"):
        ModerationConfig(threshold=0)
