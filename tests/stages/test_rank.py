"""Ranking: K answers to each prompt, records that anybody can read, the same seed the same file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from world import RANK, World, interrupted, results, user, write_lines

from tutelage.data.records import read_comparisons
from tutelage.errors import InputError
from tutelage.stages.rank import rank


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("answers", [3, 10])
def test_a_ranking_has_four_to_nine_answers(world: World, tmp_path: Path, answers: int) -> None:
    with pytest.raises(InputError, match=f"--answers {answers}: give 4 to 9 responses per prompt"):
        rank(tmp_path / "r.jsonl", world.sft, (world.prompts,), world.panel, config=replace(RANK, answers=answers))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answers", [4, 9])
def test_so_many_answers_are_ranked(world: World, tmp_path: Path, answers: int) -> None:
    out = tmp_path / "r.jsonl"
    rank(out, world.sft, (world.prompts,), world.panel, config=replace(RANK, answers=answers, count=3))
    assert {len(r["responses"]) for r in records(out)} == {answers}
    assert {len(r["ranks"]) for r in records(out)} == {answers}


def test_records_are_comparisons(world: World) -> None:
    """They are read back as they were written, and their prompts are the pool's."""
    told = records(world.comparisons)
    read = read_comparisons((world.comparisons,))
    assert [(c.prompt, c.responses, c.ranks, c.annotator, c.conversation) for c in read] == [
        (r["prompt"], r["responses"], r["ranks"], r["annotator"], r["conversation"]) for r in told
    ]
    pool = [json.dumps(r["prompt"]) for r in records(world.prompts)]
    assert {json.dumps(r["prompt"]) for r in told} <= set(pool)
    for r in told:
        assert min(r["ranks"]) == 1
        assert set(r["ranks"]) == set(range(1, max(r["ranks"]) + 1))


def test_some_prompts_are_ranked_by_all_three(world: World, tmp_path: Path) -> None:
    """Of 16 prompts at a share of .15 the first three; the others are dealt out in turn."""
    by_prompt: dict[str, list[str]] = {}
    for r in records(world.comparisons):
        by_prompt.setdefault(json.dumps([r["prompt"], r["responses"]]), []).append(r["annotator"])
    everyone = ["simulated:1", "simulated:2", "simulated:3"]
    shared = [names for names in by_prompt.values() if len(names) > 1]
    assert len(by_prompt) == 16
    assert shared == [everyone] * 3
    alone = [names[0] for names in by_prompt.values() if len(names) == 1]
    assert {alone.count(name) for name in everyone} <= {4, 5}
    assert results(world.comparisons.with_suffix(".run"))["comparisons"] == 3 * 3 + 13


def test_agreement_and_pairs_recounted(world: World) -> None:
    """Of the pairs that two annotators both rank strictly: how many alike. Counted here pair by pair."""
    told = records(world.comparisons)
    strict, alike, both = 0, 0, 0
    for r in told:
        strict += sum(a < b for a in r["ranks"] for b in r["ranks"])
    for i, first in enumerate(told):
        for second in told[i + 1 :]:
            if (first["prompt"], first["responses"]) != (second["prompt"], second["responses"]):
                continue
            for a in range(4):
                for b in range(a):
                    x, y = first["ranks"][a] - first["ranks"][b], second["ranks"][a] - second["ranks"][b]
                    both += x * y != 0
                    alike += x * y > 0
    found = results(world.comparisons.with_suffix(".run"))
    assert found["strict_pairs"] == strict
    assert found["agreement"] == pytest.approx(alike / both, abs=1e-4)


def test_same_seed_same_file(world: World, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        config = replace(RANK, seed=seed)
        rank(tmp_path / f"{name}.jsonl", world.sft, (world.prompts,), world.panel, config=config)
    assert (tmp_path / "a.jsonl").read_bytes() == world.comparisons.read_bytes()
    assert (tmp_path / "b.jsonl").read_bytes() != world.comparisons.read_bytes()


def test_rankings_from_elsewhere(world: World, tmp_path: Path) -> None:
    """--from: our own records, and pairs in two other styles, leave as rankings."""
    own = write_lines(
        tmp_path / "own.jsonl",
        [{"prompt": [user("hi")], "responses": ["a", "b", "c"], "ranks": [2, 1, 2], "annotator": "a", "source": "x"}],
    )
    pairs = tmp_path / "pairs.json"
    pairs.write_text(
        json.dumps(
            [
                {"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "yes"},
                 "rejected": {"from": "gpt", "value": "no"}},
                {"prompt": "hi", "chosen": "yes", "rejected": "no"},
            ]
        )
    )  # fmt: skip
    rank(tmp_path / "out.jsonl", rankings=(own, pairs))
    told = records(tmp_path / "out.jsonl")
    assert told[0] == records(own)[0]
    for r in told[1:]:
        assert (r["prompt"], r["responses"], r["ranks"]) == ([user("hi")], ["yes", "no"], [1, 2])


def test_rankings_from_elsewhere_are_checked(tmp_path: Path) -> None:
    bad = write_lines(
        tmp_path / "bad.jsonl",
        [
            {"prompt": [user("hi")], "responses": ["a", "b"], "ranks": [1, 2]},
            {"prompt": [user("hi")], "responses": ["a", "b"], "ranks": [1, 2, 3]},
        ],
    )
    with pytest.raises(InputError, match="line 2: 2 responses but 3 ranks"):
        rank(tmp_path / "out.jsonl", rankings=(bad,))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_deleted_file_is_made_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record alone does not make the stage finished."""
    out = tmp_path / "r.jsonl"

    def call() -> None:
        rank(out, world.sft, (world.prompts,), world.panel, config=RANK)

    interrupted(call, monkeypatch, 16)
    call()
    told = out.read_bytes()
    out.unlink()
    call()
    assert out.read_bytes() == told == world.comparisons.read_bytes()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--policy, --prompts and --panel .* or --from"):
        rank(tmp_path / "r.jsonl")
