"""Rankings from other sources, in every accepted shape, and the pairs in a ranking."""

import json
from pathlib import Path

import pytest

from tutelage.data.foreign_rankings import read_rankings
from tutelage.data.rankings import strict_pairs
from tutelage.errors import InputError

SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "hi"},
        {"from": "gpt", "value": "yo"},
        {"from": "human", "value": "so"},
    ],
    "chosen": {"from": "gpt", "value": "good"},
    "rejected": {"from": "gpt", "value": "bad"},
}
CONTEXT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "so"},
]


def test_strict_pairs_by_hand():
    assert strict_pairs([2, 1, 2, 3]) == [(1, 0), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert strict_pairs([1, 1, 1]) == []
    assert len(strict_pairs(range(9))) == 36


@pytest.mark.parametrize(
    "record",
    [
        SHAREGPT,
        {"messages": CONTEXT, "chosen": "good", "rejected": "bad"},
        {"prompt": CONTEXT, "chosen": [{"role": "assistant", "content": "good"}], "rejected": "bad"},
        {"prompt": CONTEXT, "responses": ["good", "bad"], "ranks": [1, 2]},
    ],
)
def test_shapes(record, tmp_path: Path):
    array, lines = tmp_path / "x.json", tmp_path / "x.jsonl"
    array.write_text(json.dumps([record, record], indent=1))
    lines.write_text(json.dumps(record) + "\n")
    for comparison in read_rankings(array) + read_rankings(lines):
        assert (comparison.prompt, comparison.responses, comparison.ranks) == (CONTEXT, ["good", "bad"], [1, 2])
    assert len(read_rankings(array)) == 2


def test_a_plain_text_prompt(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "hi", "chosen": "good", "rejected": "bad"}))
    assert read_rankings(path)[0].prompt == CONTEXT[:1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("[]", "empty"),
        ("[{}", "not JSON"),
        ('[\n{"chosen": "a",\n"rejected": "b",\n"prompt": "c"},\n\n  3]', "line 6: must be a JSON object"),
        ('[\n{"chosen": "a", "rejected": "b"}]', "line 2: a pair needs its prompt"),
        ('{"text": "x"}', "line 1: neither a ranking"),
        ('{"prompt": "x", "chosen": 1, "rejected": "b"}', "chosen"),
        ('{"conversations": [{"from": "cat", "value": "x"}], "chosen": "a", "rejected": "b"}', "human, gpt or system"),
        ('{"conversations": [{"from": "human"}], "chosen": "a", "rejected": "b"}', "content"),
        ('{"conversations": [], "chosen": "a", "rejected": "b"}', "empty list"),
    ],
)
def test_bad_input(text: str, says: str, tmp_path: Path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_rankings(path)
    assert says in str(caught.value) and str(path) in str(caught.value)
