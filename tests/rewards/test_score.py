"""`tutelage score` prints a scorer's shape, with the numbers that transformers computes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ppo_bench import PLAIN, run_ppo
from scorer_server import by, letters, serving
from test_bad_input import refused
from test_reward import Theirs
from world import World, assistant, files_in, user, write_lines

from tutelage import cli


def scored(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    capsys.readouterr()
    cli.main(["score", *map(str, words)])
    return json.loads(capsys.readouterr().out)


def test_a_runs_scores_are_transformers(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = Theirs(world.reward)
    demos = [json.loads(line)["messages"] for line in world.demos.read_text().splitlines()]
    answer = scored(capsys, world.reward, world.demos, "--dtype", "fp32")
    assert set(answer) == {"object", "data", "model"}
    assert (answer["object"], answer["model"]) == ("list", str(world.reward))
    assert [item["index"] for item in answer["data"]] == list(range(len(demos)))
    expected = [theirs.score(theirs.ids(q["content"], a["content"])) for q, a in demos]
    assert [item["score"] for item in answer["data"]] == pytest.approx(expected, abs=1e-4)


def test_every_answer_of_a_line_counts(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All shapes of input line, scored by a server that records what it receives."""
    long = [user("hi"), assistant("yes"), user("so?"), assistant("it is")]
    lines = write_lines(
        tmp_path / "in.jsonl",
        [
            {"messages": long},
            {"prompt": long[:3], "responses": ["a", "ee", ""], "ranks": [1, 2, 3]},
            {"prompt": long[:1], "responses": ["not ranked"]},
            {"prompt": long[:1], "response": "one", "thumb": 1},
            {"instruction": "say", "input": "it", "output": "it"},
        ],
    )
    with serving(by(letters)) as scorer:
        answer = scored(capsys, scorer.url + "#mine", lines)
        (body,) = scorer.asked
    said = [talk[-1]["content"] for talk in body["input"]]
    assert said == ["it is", "a", "ee", "", "not ranked", "one", "it"]
    assert body["input"][1] == [*long[:3], assistant("a")] and body["model"] == "mine"
    assert [item["score"] for item in answer["data"]] == pytest.approx([letters(talk) for talk in body["input"]])


def test_a_key_is_sent_and_kept_nowhere(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret-key\n")
    with serving(by(letters)) as scorer:
        scored(capsys, scorer.url, world.demos, "--reward-key-file", key)
        assert {headers["Authorization"] for headers in scorer.headers} == {"Bearer s3cret-key"}
        scorer.headers.clear()
        scored(capsys, scorer.url, world.demos)
        assert scorer.headers and not any("Authorization" in headers for headers in scorer.headers)
        config = replace(PLAIN, iterations=1, reward_key_file=key)
        run_ppo(world, tmp_path / "ppo", config, reward=scorer.url)
        assert scorer.headers[-1]["Authorization"] == "Bearer s3cret-key"
        run_ppo(world, tmp_path / "ppo", replace(config, reward_key_file=None), reward=scorer.url)  # the same run
    for name in files_in(tmp_path / "ppo"):
        assert b"s3cret" not in (tmp_path / "ppo" / name).read_bytes(), name
    for content, said in ((b"", "holds no key"), (b"a\nb", "holds no key"), (b"\xff", "cannot be read")):
        key.write_bytes(content)
        assert said in refused(["score", "http://h/", str(world.demos), "--reward-key-file", str(key)], capsys)


def test_an_ensemble_and_a_file(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.py").write_text("def f(talks):\n    return [1.0] * len(talks)\n")
    (tmp_path / "two.py").write_text("def f(talks):\n    return [i / 2 for i, _ in enumerate(talks)]\n")
    both = f"{tmp_path / 'one.py'}:f", f"{tmp_path / 'two.py'}:f"
    lines = write_lines(tmp_path / "in.jsonl", [{"prompt": [user("hi")], "responses": list("abcdef")}])
    out = tmp_path / "out.json"
    cli.main(["score", both[0], str(lines), "--members", both[1], "--ensemble", "wco", "--out", str(out)])
    assert capsys.readouterr().out == ""
    answer = json.loads(out.read_text())
    assert [item["score"] for item in answer["data"]] == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert answer["model"] == f"wco({both[0]}, {both[1]})"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"messages": [user("a"), assistant("b"), user("c")]}, "in.jsonl, line 1: ends with a user turn"),
        ({"prompt": [user("a")]}, 'line 1: holds no response to score; give "messages"'),
        ({"prompt": [user("a")], "responses": []}, '"responses" must be a list of texts, it is an empty list'),
        ({"prompt": [user("a")], "responses": ["b", 3]}, '"responses" must be a list of texts'),
        ({"prompt": [user("a"), assistant("b")], "response": "c"}, "the prompt ends with a turn of role assistant"),
        (
            {"messages": [user("cat " * 99), assistant("b")]},
            "in.jsonl, line 1: the last question and the response exceed the reward model's context of 64 tokens",
        ),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: dict, said: str
) -> None:
    lines = write_lines(tmp_path / "in.jsonl", [line])
    assert said in refused(["score", str(world.reward), str(lines)], capsys)


def test_a_reward_that_is_none_is_one_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for reward, said in {
        world.sft: "holds a language model, not a reward model",
        "nosuch": "no config.json here",
        "nosuch:f": "No module named 'nosuch'",
        "http://": "names no host",
    }.items():
        assert said in refused(["score", str(reward), str(world.demos)], capsys)


def latest(theirs: Theirs, exchanges: list[tuple[str, str]], room: int = 64) -> list[int]:
    """As many of the last exchanges as fit the model's context, one more tried at a time."""
    ids: list[int] = []
    for question, answer in reversed(exchanges):
        longer = theirs.ids(question, answer) + ids
        if len(longer) > room:
            break
        ids = longer
    return ids


def talk(exchanges: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [turn for question, answer in exchanges for turn in (user(question), assistant(answer))]


def test_older_turns_make_room(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores equal transformers' for as many of the last turns as fit; responses of one line keep the same turns."""
    theirs = Theirs(world.reward)
    old = [(f"where is the {'red ' * n}cat?", f"it is on {'the big ' * n}mat.") for n in range(6, -1, -1)]
    short, long = ("is it new?", "yes."), ("is it new?", "no, it is old. " * 3)
    alone = [("is it new?", "yes, it is. " * 99)]
    several = {"prompt": [*talk(old), user("is it new?")], "responses": [short[1], long[1]], "ranks": [1, 2]}
    lines = [{"messages": talk(t)} for t in ([short], [*old, short], alone, [*old[:1], *alone], [*old[3:], long])]
    path = write_lines(tmp_path / "in.jsonl", [*lines, several])
    kept = latest(theirs, [*old, long])
    expected = {
        0: theirs.ids(*short),
        1: latest(theirs, [*old, short]),
        4: kept,
        5: kept[: -len(theirs.ids(*long))] + theirs.ids(*short),
        6: kept,
    }
    assert len(expected[1]) > len(theirs.ids(*short)) and len(kept) > len(theirs.ids(*long))
    assert len(expected[5]) < len(expected[1])  # alone it would have had room for more turns
    assert [len(latest(theirs, some)) for some in (alone, [*old[:1], *alone])] == [0, 0]
    cli.main(["score", str(world.reward), str(path), "--dtype", "fp32"])
    said = capsys.readouterr()
    found = {item["index"]: item["score"] for item in json.loads(said.out)["data"]}
    assert found == pytest.approx({index: theirs.score(ids) for index, ids in expected.items()}, abs=1e-4)
    cut, over = said.err.splitlines()[-2:]
    assert cut.startswith(f"{path}, line 2: scored without the oldest turns") and "(3 of 6 lines)" in cut
    assert (
        over.startswith(f"{path}, line 3: the last question and the response exceed")
        and "not scored (2 of 6 lines)" in over
    )


def test_the_context_is_used_to_its_last_token(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exchange that grows by a token at a time, after one that never fits, is kept up to 64 tokens in total."""
    theirs, last = Theirs(world.reward), ("is it new?", "yes.")
    grown = [[("red cat? " * 20, "no."), ("z" * n, "yes."), last] for n in range(30, 60)]
    path = write_lines(tmp_path / "in.jsonl", [{"messages": talk(exchanges)} for exchanges in grown])
    expected = [latest(theirs, exchanges) for exchanges in grown]
    assert {64, len(theirs.ids(*last))} <= set(map(len, expected))
    found = scored(capsys, world.reward, path, "--dtype", "fp32")["data"]
    assert [item["score"] for item in found] == pytest.approx([theirs.score(ids) for ids in expected], abs=1e-4)


def test_rewards_without_a_context_score_whole_conversations(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = talk([("where is the cat?", "on the mat.")] * 40)
    path = write_lines(tmp_path / "in.jsonl", [{"messages": whole}])
    with serving(by(letters)) as scorer:
        scored(capsys, scorer.url, path)
        assert scorer.asked[0]["input"] == [whole]
        scored(capsys, scorer.url, path, "--members", scorer.url)
        assert scorer.asked[-1]["input"] == [whole]
