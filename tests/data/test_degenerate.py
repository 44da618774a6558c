"""Degenerate responses, by hand."""

from tutelage.data.degenerate import STOCK, WORDS, degenerate_response, degenerate_responses
from tutelage.data.records import Comparison


def asked(question: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": response}]


def test_the_responses_of_the_probe() -> None:
    found = degenerate_responses(asked("where is the cat, please?", "it is on the mat, I think."))
    assert list(found) == ["empty", "one word", *STOCK, "repeated", "copied"]
    assert found["empty"] == "" and found["one word"] in WORDS["en"]
    assert [found[phrase] for phrase in STOCK] == ["I'm sorry.", "OK.", "好的。"] == list(STOCK)
    assert found["repeated"] == "it is on it is on it is on it is on"
    assert found["copied"] == "where is the cat, please?"


def test_a_response_without_spaces_is_repeated_by_characters() -> None:
    found = degenerate_responses(asked("猫在哪里？", "它在桌子下面的盒子里睡觉。"))
    assert found["repeated"] == "它在桌子下面" * 4 and found["one word"] in WORDS["zh"]


def test_repeated_and_copied_are_about_as_long_as_the_response() -> None:
    found = degenerate_responses(asked("why? " * 100, "because the cat sat down there " * 10))
    assert found["copied"] == ("why? " * 100)[:310] and 290 <= len(found["repeated"]) <= 310
    assert degenerate_responses(asked("why? " * 100, ""))["copied"] == "why? " * 8
    assert degenerate_responses(asked("hi", ""))["repeated"] == ""


def test_losers_are_of_all_kinds_and_the_same_for_all_annotators() -> None:
    comparisons = [
        Comparison(asked(f"where is cat {i}?", "")[:1], ["it is on the mat.", "no."], [1, 2], "a", "s")
        for i in range(200)
    ]
    losers = [degenerate_response(comparison, "0") for comparison in comparisons]
    others = [degenerate_response(Comparison(c.prompt, c.responses, [2, 1], "b", "s"), "0") for c in comparisons]
    assert losers == others != [degenerate_response(comparison, "1") for comparison in comparisons]
    copies = [comparison.prompt[0]["content"] for comparison in comparisons]
    kinds = [
        losers.count(""), sum(loser in WORDS["en"] for loser in losers), losers.count("it is on " * 3 + "it is on"),
        sum(loser == copy for loser, copy in zip(losers, copies, strict=True)),
    ]  # fmt: skip
    assert all(20 <= kind <= 60 for kind in [*kinds, 200 - sum(kinds)])
