"""Rankings and pairs in every accepted shape, and the pairs in a ranking. Expected values are worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.data.pairs import UnpairedError
from tutelage.data.rankings import strict_pairs, teaches
from tutelage.data.records import Comparison, comparison_from, read_comparisons, read_feedback
from tutelage.errors import InputError

HI, YO, SO = (
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "so"},
)
CONTEXT = [HI, YO, SO]
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
SYSTEM = {"role": "system", "content": "be kind"}
TALK = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}, {"from": "human", "value": "so"}]
SHAREGPT = {
    "conversations": TALK,
    "chosen": {"from": "gpt", "value": "good"},
    "rejected": {"from": "gpt", "value": "bad"},
}
TRANSCRIPT = "\n\nHuman: hi\n\nAssistant: yo\n\nHuman: so\n\nAssistant:"


def hh(*turns: str) -> str:
    """A transcript as HH writes it: Human and Assistant in turn."""
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {turn}" for i, turn in enumerate(turns))


def words(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def test_strict_pairs_by_hand():
    assert strict_pairs([2, 1, 2, 3]) == [(1, 0), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert strict_pairs([1, 1, 1]) == []
    assert len(strict_pairs(range(9))) == 36


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": CONTEXT, "responses": ["good", "bad"], "ranks": [1, 2]},
        {"prompt": CONTEXT, "responses": [words("good"), words("bad")], "ranks": [1, 2], "chosen": None},
        SHAREGPT,
        {"conversations": TALK[:2] + [{"from": "user", "value": "so"}], "chosen": "good", "rejected": "bad"},
        {"messages": CONTEXT, "chosen": "good", "rejected": "bad"},
        # TRL: explicit prompt, implicit prompt, and a prompt that both repeat
        {"prompt": CONTEXT, "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": CONTEXT, "chosen": GOOD, "rejected": "bad"},
        {"chosen": [*CONTEXT, GOOD], "rejected": [*CONTEXT, BAD]},
        {"prompt": None, "chosen": [*CONTEXT, GOOD], "rejected": [*CONTEXT, BAD]},
        {"prompt": CONTEXT, "chosen": [*CONTEXT, GOOD], "rejected": [*CONTEXT, BAD]},
        {"prompt": CONTEXT, "chosen": [*CONTEXT, GOOD], "rejected": [BAD]},
        {"prompt": CONTEXT, "chosen": "good", "rejected": [*CONTEXT, BAD]},
        {"prompt": CONTEXT[:2], "chosen": [SO, GOOD], "rejected": [SO, BAD]},
        {"chosen": [*TALK, {"from": "gpt", "value": "good"}], "rejected": [*CONTEXT, BAD]},
        # a prompt that is one question of the conversation: UltraFeedback names the first, others the last
        {"prompt": "hi", "chosen": [*CONTEXT, GOOD], "rejected": [*CONTEXT, BAD], "messages": [*CONTEXT, GOOD]},
        {"prompt": " so\n", "chosen": [*CONTEXT, GOOD], "rejected": [*CONTEXT, BAD]},
        # HH, as published and with the prompt apart
        {"chosen": hh("hi", "yo", "so", "good"), "rejected": hh("hi", "yo", "so", "bad")},
        {"prompt": "", "chosen": hh("hi", "yo", "so", "good").strip(), "rejected": hh("hi", "yo", "so", "bad") + "\n"},
        {"prompt": TRANSCRIPT, "chosen": " good", "rejected": " bad"},
        {"prompt": TRANSCRIPT, "chosen": TRANSCRIPT + " good", "rejected": TRANSCRIPT + " bad"},
        {"prompt": "hi", "chosen": TRANSCRIPT + " good", "rejected": TRANSCRIPT + " bad"},
        {"prompt": CONTEXT, "chosen": hh("hi", "yo", "so", "good"), "rejected": "bad"},
        {"chosen": hh("hi", "yo", "so", "good").replace("\n", "\r\n"), "rejected": hh("hi", "yo", "so", "bad")},
        {"chosen": hh("hi", "yo", "so", "good").replace("\n", "\r"), "rejected": hh("hi", "yo", "so", "bad")},
        # text parts
        {"prompt": [{**m, "content": words(m["content"])} for m in CONTEXT], "chosen": words("good"),
         "rejected": ["bad"]},
        # Alpaca's way to write pairs, as LLaMA-Factory reads it
        {"instruction": "so", "history": [["hi", "yo"]], "chosen": "good", "rejected": "bad"},
    ],
)  # fmt: skip
def test_shapes(record: dict[str, Any]) -> None:
    comparison = comparison_from(record, "f, line 1")
    assert (comparison.prompt, comparison.responses, comparison.ranks) == (CONTEXT, ["good", "bad"], [1, 2])


@pytest.mark.parametrize(
    ("record", "prompt", "responses"),
    [
        ({"prompt": "hi", "chosen": "good", "rejected": "bad"}, [HI], ["good", "bad"]),
        # a text is never taken to repeat the prompt: an answer may start like its question
        ({"prompt": "hi", "chosen": "hi there", "rejected": "hi, hi"}, [HI], ["hi there", "hi, hi"]),
        ({"prompt": "hi", "chosen": hh("you", "me"), "rejected": "bad"}, [HI], [hh("you", "me"), "bad"]),
        ({"prompt": "Play this: " + TRANSCRIPT, "chosen": "a", "rejected": "b"}, None, ["a", "b"]),
        # the system message
        ({"system": "be kind", "question": "hi", "chosen": "a", "rejected": "b"}, [SYSTEM, HI], ["a", "b"]),
        ({"chosen": [SYSTEM, HI, GOOD], "rejected": [SYSTEM, HI, BAD]}, [SYSTEM, HI], ["good", "bad"]),
        ({"prompt": [SYSTEM, HI], "chosen": [HI, GOOD], "rejected": [BAD]}, [SYSTEM, HI], ["good", "bad"]),
        ({"prompt": "hi", "chosen": [SYSTEM, HI, GOOD], "rejected": [SYSTEM, HI, BAD]}, [SYSTEM, HI], ["good", "bad"]),
        ({"chosen": "be kind" + hh("hi", "good"), "rejected": "be kind" + hh("hi", "bad")}, [SYSTEM, HI],
         ["good", "bad"]),
        # HH: empty answers; a name within a line, or at the start of one; one speaker twice
        ({"chosen": hh("hi", "good"), "rejected": "\n\nHuman: hi\n\nAssistant:"}, [HI], ["good", ""]),
        ({"chosen": hh("hi", "a\nHuman: b"), "rejected": hh("hi", "a Human: c")}, [HI], ["a\nHuman: b", "a Human: c"]),
        ({"chosen": hh("hi", "one\n\ntwo"), "rejected": hh("hi", "bad")}, [HI], ["one\n\ntwo", "bad"]),
        ({"chosen": hh("hi", "a\n\nAssistant: b"), "rejected": hh("hi", "a\n\nAssistant: c")}, [HI],
         ["a\n\nb", "a\n\nc"]),
        ({"instruction": "add", "input": "1, 2", "chosen": "3", "rejected": "4"},
         [{"role": "user", "content": "add\n\n1, 2"}], ["3", "4"]),
    ],
)  # fmt: skip
def test_prompt_and_responses(record: dict[str, Any], prompt: Any, responses: list[str]) -> None:
    comparison = comparison_from(record, "f, line 1")
    assert comparison.prompt == (prompt or [{"role": "user", "content": record["prompt"]}])
    assert comparison.responses == responses and comparison.ranks == [1, 2]


@pytest.mark.parametrize(
    ("chosen", "rejected", "says"),
    [
        (hh("hi", "yo", "so", "a"), hh("hi", "no", "so", "b"), "differ from turn 2 on"),
        (hh("hi", "a"), hh("hi", "a", "so", "b"), "differ from turn 3 on"),
        (hh("hi", "a"), hh("ho", "a"), "differ from turn 1 on"),
        (hh("hi", "a", "so"), hh("hi", "a", "so"), '"chosen" ends with a user turn'),
        ([HI, YO, SO, GOOD], [HI, GOOD], "differ from turn 2 on"),
        ([HI, GOOD], [HI, YO, SO], '"rejected" ends with a user turn'),
    ],
)
def test_conversations_that_are_no_pair(chosen: Any, rejected: Any, says: str, tmp_path: Path) -> None:
    """They are left out if there are others, and each is named with file and line."""
    path, good = tmp_path / "x.jsonl", {"prompt": "hi", "chosen": "a", "rejected": "b"}
    path.write_text("".join(json.dumps(r) + "\n" for r in (good, {"chosen": chosen, "rejected": rejected}, good)))
    for read, count in ((read_comparisons, 2), (read_feedback, 4)):
        unpaired: list[str] = []
        assert len(read([path], unpaired)) == count
        assert len(unpaired) == 1 and unpaired[0].startswith(f"{path}, line 2: ") and says in unpaired[0]
        with pytest.raises(UnpairedError, match="line 2"):
            read([path])


def test_equal_responses_are_tied() -> None:
    tied = comparison_from({"chosen": hh("hi", "same"), "rejected": hh("hi", "same") + "\n"}, "f, line 1")
    assert tied.ranks == [1, 1] and not teaches(tied)
    assert not teaches(Comparison([HI], ["a", "b", "b"], [1, 1, 1], "", ""))
    assert teaches(Comparison([HI], ["b", "a", "a"], [1, 1, 2], "", ""))
    assert not teaches(Comparison([HI], ["a", "a"], [1, 2], "", ""))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"text": "x"}, 'neither a ranking ("prompt", "responses", "ranks") nor a pair'),
        ({"chosen": "a", "rejected": "b"}, "a pair needs its prompt"),
        ({"chosen": "\n\nAssistant: a", "rejected": "b"}, "a pair needs its prompt"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "a pair needs its prompt"),
        ({"prompt": "x", "chosen": 1, "rejected": "b"}, '"chosen" must be a string, a message or messages'),
        ({"prompt": "x", "chosen": "a"}, '"rejected" must be a string, a message or messages, but it is missing'),
        ({"prompt": "x", "chosen": [], "rejected": "b"}, "an empty list"),
        (
            {"prompt": [HI], "chosen": [SO, GOOD], "rejected": [SO, BAD]},
            'conversation in "chosen" does not contain',
        ),
        ({"prompt": [HI, YO], "chosen": "a", "rejected": "b"}, "ends with a turn of role assistant"),
        ({"conversations": [{"from": "cat", "value": "x"}], "chosen": "a", "rejected": "b"}, "human, gpt or system"),
        ({"conversations": [{"from": "human"}], "chosen": "a", "rejected": "b"}, '"value" must be a string'),
        ({"conversations": [], "chosen": "a", "rejected": "b"}, "empty list"),
        ({"prompt": "x", "chosen": "\udc00", "rejected": "b"}, "surrogate"),
        ({"prompt": "x", "chosen": [{"type": "image_url"}], "rejected": "b"}, 'part 1: content of type "image_url"'),
        ({"instruction": "x", "history": 5, "chosen": "a", "rejected": "b"}, '"history" must be'),
        ({"instruction": "x", "history": [["a"]], "chosen": "a", "rejected": "b"}, '"history" must be'),
    ],
)
def test_bad_pairs(record: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match="^f, line 7") as caught:
        comparison_from(record, "f, line 7")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"prompt": [HI], "response": "good", "thumb": 1}, [("good", 1)]),
        ({"prompt": "hi", "response": words("good"), "thumb": -1, "label": True}, [("good", -1)]),
        ({"prompt": "hi", "completion": "good", "label": True}, [("good", 1)]),  # TRL
        ({"prompt": [HI], "completion": [GOOD], "label": False}, [("good", -1)]),
        ({"prompt": [HI], "completion": [HI, GOOD], "label": 0, "response": None}, [("good", -1)]),
        ({"messages": [HI, GOOD], "label": False}, [("good", -1)]),  # LLaMA-Factory
        ({"conversations": [TALK[0], {"from": "gpt", "value": "good"}], "kto_tag": True}, [("good", 1)]),
        ({"instruction": "hi", "input": "", "output": "good", "kto_tag": True}, [("good", 1)]),
        ({"chosen": hh("hi", "good"), "rejected": hh("hi", "bad")}, [("good", 1), ("bad", -1)]),  # as TRL reads pairs
        ({"chosen": hh("hi", "good"), "rejected": hh("hi", "good")}, []),
    ],
)
def test_shapes_of_thumbs(record: dict[str, Any], told: list[tuple[str, int]], tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([record]))
    found = read_feedback([path])
    assert [(f.response, f.thumb) for f in found] == told
    assert all(f.prompt == [HI] and f.where == f"{path}, line 1" for f in found)
    tied: list[str] = []
    assert read_feedback([path], tied=tied) == found and tied == [f"{path}, line 1"] * (not told)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"messages": [HI, GOOD], "label": "true"}, '"label" must be true or false, but it is "true"'),
        ({"messages": [HI, GOOD], "label": 2}, '"label" must be true or false'),
        ({"messages": [HI, GOOD]}, '"thumb" must be 1 (up) or -1 (down), but it is null'),
        ({"messages": [HI], "label": True}, "ends with a user turn"),
        ({"messages": [GOOD], "label": True}, '"prompt" must be a list of at least one message'),
    ],
)
def test_bad_thumbs(record: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([record], indent=1))
    with pytest.raises(InputError) as caught:
        read_feedback([path])
    assert says in str(caught.value) and f"{path}, line 2" in str(caught.value)
