"""What a reward model gives degenerate responses: its numbers by transformers, its warning, and what helps."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from ppo_bench import PLAIN, run_ppo
from test_reward import Theirs
from world import PLACES, REWARD, THINGS, World, exchanges, results, user, write_lines

from tutelage.cli import main
from tutelage.data.degenerate import STOCK, degenerate_responses
from tutelage.data.degenerate_rankings import demonstrations_first, with_loser
from tutelage.data.rankings import Ranking, encode_response, held_out
from tutelage.data.records import Comparison
from tutelage.evals.reward_probe import probe, probe_figure, probe_table, probe_warnings, winners
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_scorer
from tutelage.stages.reward import reward

FOUND = {
    "good": {"score": 0.0}, "empty": {"score": 1.05, "wins": 0.75}, "OK.": {"score": 0.1, "wins": 0.5},
    "I'm sorry.": {"score": 2.714, "wins": 0.98}, "copied": {"score": -1.0, "wins": 0.25},
}  # fmt: skip


def shorter_is_better(path: Path, count: int) -> Path:
    """Rankings of four responses of 2 to 9 words."""
    chance = random.Random(0)
    records = []
    for i, (question, _) in enumerate(exchanges(count, 11)):
        sizes = chance.sample(range(2, 10), 4)
        responses = [" ".join(chance.choice(THINGS + PLACES) for _ in range(n)) for n in sizes]
        ranks = [sorted(sizes).index(n) + 1 for n in sizes]
        records.append({"prompt": [user(question)], "responses": responses, "ranks": ranks, "conversation": f"k{i}"})
    return write_lines(path, records)


def test_the_numbers_of_the_probe_are_transformers(world: World) -> None:
    """Mean score and share of wins of every response, on the demonstrations' prompts."""
    theirs, (ours, tokenizer) = Theirs(world.reward), load_scorer(world.reward, choose_device("cpu", "fp32"))
    told = [json.loads(line)["messages"] for line in world.demos.read_text().splitlines()[:8]]
    found = probe(ours, tokenizer, told)
    good = [theirs.score(theirs.ids(m[0]["content"], m[1]["content"])) for m in told]
    assert found["good"] == {"score": pytest.approx(sum(good) / 8, abs=1e-4)}
    assert list(found) == ["good", "empty", "one word", *STOCK, "repeated", "copied"]
    for name in list(found)[1:]:
        scores = [theirs.score(theirs.ids(m[0]["content"], degenerate_responses(m)[name])) for m in told]
        assert found[name]["score"] == pytest.approx(sum(scores) / 8, abs=1e-4), name
        wins = sum(score > other for score, other in zip(scores, good, strict=True)) / 8
        assert found[name]["wins"] == pytest.approx(wins, abs=0.13), name  # one near tie may round otherwise
    assert results(world.reward)["probe"].keys() == found.keys()


def test_without_demonstrations_the_best_ranked_responses_are_the_good_ones(world: World, tmp_path: Path) -> None:
    """The world has fewer than 64, so they score 0 on average; by transformers, each best response once."""
    reward(world.sft, (world.comparisons,), tmp_path / "out", config=REWARD)
    theirs, told = Theirs(tmp_path / "out"), map(json.loads, world.comparisons.read_text().splitlines())
    best = {
        (r["prompt"][0]["content"], r["responses"][r["ranks"].index(min(r["ranks"]))])
        for r in told
        if len(set(r["ranks"])) > 1 and not held_out(Comparison(**r), REWARD.heldout)
    }
    found = results(tmp_path / "out")["probe"]
    assert 1 < len(best) < 64 and found["good"]["score"] == pytest.approx(0.0, abs=1e-4)
    empty = [theirs.score(theirs.ids(question, "")) for question, _ in best]
    assert found["empty"]["score"] == pytest.approx(sum(empty) / len(empty), abs=1e-4)


def test_what_does_not_fit_the_context_is_left_out(world: World) -> None:
    """The response fits, but repeated or copied it would not, nor would 64 tokens of anything."""
    ours, tokenizer = load_scorer(world.reward, choose_device("cpu", "fp32"))
    long = [user("cat " * 25), {"role": "assistant", "content": "i"}]
    found = probe(ours, tokenizer, [long, [user("hi"), {"role": "assistant", "content": "it is on the mat."}]])
    assert found.keys() == {"good", "empty", "one word", *STOCK, "repeated", "copied"}
    assert "copied" not in probe(ours, tokenizer, [long])


def test_what_is_said_of_a_probe(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the end of the training and by the doctor. A tie is no win."""
    assert winners(FOUND) == ["empty", "I'm sorry."]
    (warning,), (again,) = probe_warnings(FOUND, False), probe_warnings(FOUND, True)
    assert "beat good ones (0.00): empty on 75% (score 1.05), I'm sorry. on 98% (score 2.71) of the prompts" in warning
    assert "--reject-degenerate" in warning and "--min-answer" in warning and "--reject-degenerate" not in again
    assert probe_warnings({"good": {"score": 0.0}, "empty": {"score": -1.0, "wins": 0.1}}, False) == []
    line = "degenerate responses preferred to good ones 98% (empty 75%, OK. 50%, I'm sorry. 98%, copied 25%)"
    assert probe_figure(FOUND).line == line
    assert probe_table(FOUND)[1:3] == ["good          0.00", "empty         1.05     75%"]
    main(["doctor", str(world.reward)])
    said = capsys.readouterr().out
    assert (
        said.startswith("response") and f"\nempty       {results(world.reward)['probe']['empty']['score']:6.2f}" in said
    )
    main(["doctor", str(run_ppo(world, tmp_path / "ppo", replace(PLAIN, iterations=1)))])
    assert capsys.readouterr().out == f"{tmp_path / 'ppo'}: iteration 1 was kept\nthe monitor found nothing\n"
    for folder, problem in ((world.sft, "is a run of sft"), (tmp_path, "is not a finished run")):
        with pytest.raises(SystemExit):
            main(["doctor", str(folder)])
        error = capsys.readouterr().err
        assert error.startswith(f"doctor: {folder} {problem}; give one of reward, ppo") and error.count("\n") == 1


def test_a_loser_is_last_and_no_response_twice() -> None:
    ranking = Ranking([[1, 2, 9], [1, 3, 9]], [2, 1], 1)
    assert with_loser(ranking, [1, 9], 8) == Ranking([[1, 2, 9], [1, 3, 9], [1, 9]], [2, 1, 3], 1)
    assert with_loser(ranking, [1, 3, 9], 8) == with_loser(ranking, [1] * 9, 8) == ranking


def test_a_demonstration_stands_before_a_loser(world: World) -> None:
    """The ids are those of the whole conversations; a loser that does not fit is left out with its demonstration."""
    _, tokenizer = load_scorer(world.reward, choose_device("cpu", "fp32"))
    told = [[user(f"who is {i} ?"), {"role": "assistant", "content": "it is the cat on the mat"}] for i in range(20)]
    rankings = demonstrations_first(told, tokenizer, 64, "0")
    whole = [encode_response(c[:1], c[1]["content"], tokenizer) for c in told]
    assert [r.sequences[0] for r in rankings] == whole and {tuple(r.ranks) for r in rankings} == {(1, 2)}
    losers = {tokenizer.decode(r.sequences[1][r.prompt_length : -1]).strip() for r in rankings}
    assert "" in losers and any(loser.startswith("it is the it is the") for loser in losers) and len(losers) > 4
    assert len(demonstrations_first(told, tokenizer, min(map(len, whole)), "0")) < 20


@pytest.mark.slow
def test_training_against_degenerate_responses_helps(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People who prefer the shorter response teach a reward model to prefer none at all.

    Copies aside: in rankings of random words a question is the only sentence. The good responses are demonstrations.
    """
    comparisons, config = shorter_is_better(tmp_path / "c.jsonl", 300), replace(REWARD, epochs=4, batch=16)
    for name, reject in (("plain", False), ("rejecting", True)):
        rejecting = replace(config, reject_degenerate=reject)
        reward(world.sft, (comparisons,), tmp_path / name, (world.demos,), config=rejecting)
    plain, rejecting = (results(tmp_path / name) for name in ("plain", "rejecting"))
    plain_said, rejecting_said = capsys.readouterr().err.split(f"{tmp_path / 'plain'}: trained")[1].split("rejecting:")
    assert "warning: degenerate responses beat good ones" in plain_said
    assert "empty on" in plain_said and "empty on" not in rejecting_said
    assert min(plain["probe"][name]["wins"] for name in ("empty", "one word", "OK.")) > 0.6
    assert all(figures.get("wins", 0.0) < 0.3 for name, figures in rejecting["probe"].items() if name != "copied")
    assert rejecting["accuracy"] > 0.85 and plain["accuracy"] > 0.9
