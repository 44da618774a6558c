"""What the stages leave out of their data, what they say about it, and where an error says it is."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from world import REWARD, SFT, World, assistant, exchanges, metrics, results, user, write_demos, write_lines

from tutelage import cli
from tutelage.data.prompts import choose_fitting
from tutelage.data.rankings import held_out
from tutelage.data.records import read_comparisons, read_prompts
from tutelage.data.training_set import read_ranking_sets, read_thumb_sets
from tutelage.errors import InputError
from tutelage.rewards.score import conversations_in, fit_all
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.stages.dpo import DPOConfig, dpo
from tutelage.stages.kto import KTOConfig, kto
from tutelage.stages.rank import rank
from tutelage.stages.reward import best, demonstrations, reward
from tutelage.stages.sft import SFTConfig, read_examples, sft
from tutelage.text.chat import encode_answer
from tutelage.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

CPU = choose_device("cpu", "fp32")
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must take turns') }}{% endif %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def hh(question: str, response: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {response}"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pairs as HH writes them, the chosen response with the word `red`. Line 3 is too long, 5 equal, 7 no pair."""
    told = [{"chosen": hh(q, f"{a} red red"), "rejected": hh(q, a)} for q, a in exchanges(40, 31)]
    told.insert(2, {"chosen": hh("so?", "cat " * 90), "rejected": hh("so?", "no")})
    told.insert(4, {"chosen": hh("so?", "no"), "rejected": hh("so?", "no")})
    told.insert(6, {"chosen": hh("so?", "no"), "rejected": hh("and?", "yes")})
    return write_lines(tmp_path_factory.mktemp("hh") / "hh.jsonl", told)


def check_counts(noun: str, found: dict[str, Any], said: str, path: Path) -> None:
    assert (found[f"{noun}_too_long"], found[f"{noun}_unpaired"]) == (1, 1)
    every = 82 if noun == "thumbs" else 41  # a pair is two thumbs
    assert f"left out 1 of {every} records that exceed the model's context of 64 tokens" in said
    assert f"the first, {path}, line 3, needs " in said
    assert f"left out 1 pair; {path}, line 7: chosen and rejected differ from turn 1 on" in said
    tied = "pair of two equal responses" if noun == "thumbs" else "ranking without a preference between two"
    assert found[f"{noun}_tied"] == 1 and f"left out 1 {tied}" in said and f"; the first is {path}, line 5" in said


def test_pairs_are_a_reward_model_in_one_command(
    world: World, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best-ranked responses score 0 on average, as transformers reads the run."""
    out = tmp_path / "reward"
    words = ["reward", "--base", str(world.sft), "--comparisons", str(pairs), "--out", str(out), "--dtype", "fp32"]
    cli.main([*words, "--epochs", "4", "--lr", "3e-3", "--heldout", "0.3"])
    found = results(out)
    assert found["rankings"] + found["rankings_held_out"] == 40 and found["rankings_held_out"] > 3
    assert found["accuracy"] > 0.8
    check_counts("rankings", found, capsys.readouterr().err, pairs)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    scores = []
    for comparison in read_comparisons([pairs], unpaired=[]):
        if comparison.ranks == [1, 2] and len(comparison.responses[0]) < 100 and not held_out(comparison, 0.3):
            told = [*comparison.prompt, assistant(comparison.responses[0])]
            ids = tokenizer.apply_chat_template(told, tokenize=True, return_dict=False)
            with torch.no_grad():
                logit = float(model(torch.tensor([ids])).logits)
            scores.append(logit - config["reward_mean"])
    assert len(set(scores)) > 10
    unique = list(dict.fromkeys(scores))  # an exchange that comes twice is scored once
    assert sum(unique) / len(unique) == pytest.approx(0.0, abs=1e-3)


def test_the_number_of_best_responses_is_limited(world: World, pairs: Path) -> None:
    sets = read_ranking_sets([pairs], Tokenizer.load(world.reward), 64, 0.0, "reward")
    assert len(best(sets, replace(REWARD, demonstrations=7), torch.Generator())) == 7


def test_dpo_and_kto_leave_out_the_same(
    world: World, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dpo(world.sft, (pairs,), tmp_path / "dpo", DPOConfig(heldout=0.0, dtype="fp32"))
    check_counts("rankings", results(tmp_path / "dpo"), capsys.readouterr().err, pairs)
    assert results(tmp_path / "dpo")["rankings"] == 40
    kto(world.sft, (pairs,), tmp_path / "kto", KTOConfig(heldout=0.0, dtype="fp32"))
    found = results(tmp_path / "kto")
    check_counts("thumbs", found, capsys.readouterr().err, pairs)
    assert (found["thumbs_up"], found["thumbs_down"]) == (40, 41)  # the short half of the long pair stays


def test_rank_imports_what_is_a_pair(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rank(tmp_path / "r.jsonl", rankings=(pairs,))
    comparisons = read_comparisons([tmp_path / "r.jsonl"])
    assert len(comparisons) == 42 and comparisons[4].ranks == [1, 1]
    said = capsys.readouterr().err
    assert "imported 42 rankings" in said and f"left out 1 pair; {pairs}, line 7" in said
    bad = write_lines(tmp_path / "bad.jsonl", [{"chosen": hh("so?", "no"), "rejected": hh("and?", "yes")}])
    with pytest.raises(InputError, match="bad.jsonl, line 1: chosen and rejected differ"):
        rank(tmp_path / "none.jsonl", rankings=(bad,))
    assert not (tmp_path / "none.jsonl").exists()


def test_one_ranking_that_was_held_out(world: World, tmp_path: Path) -> None:
    """Whichever set the hash chooses, the message says so, and what it advises works."""
    tokenizer = load_policy(world.sft, CPU)[1]
    asked = [f"question {i}?" for i in range(40)]
    files = [
        write_lines(tmp_path / f"{i}", [{"prompt": q, "chosen": "yes", "rejected": "no"}]) for i, q in enumerate(asked)
    ]
    taken = [path for path in files if held_out(read_comparisons([path])[0], 0.12)]
    assert 0 < len(taken) < 20
    with pytest.raises(InputError, match=r"reward: the held-out set took the only 1 ranking.*--heldout 0 ") as caught:
        reward(world.sft, (taken[0],), tmp_path / "out", config=replace(REWARD, heldout=0.12))
    assert "\n" not in str(caught.value)
    assert len(read_ranking_sets([taken[0]], tokenizer, 64, 0.0, "dpo").kept) == 1
    with pytest.raises(InputError, match="kto: the held-out set took the only 2 thumbs"):
        read_thumb_sets([taken[0]], tokenizer, 64, 0.12)


def test_batches_hold_something_to_learn(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """48 answers of fewer tokens than --min-answer and one longer one: only this one makes rows and steps."""
    told = [("What falls from clouds?", "ok")] * 48 + [
        ("And so?", "Rain and snow and hail fall from the clouds above.")
    ]
    demos = write_demos(tmp_path / "d.jsonl", told)
    sft(
        world.base, (demos,), tmp_path / "out", (demos,), replace(SFT, batch=1, tokens=640, min_answer=5, max_answer=50)
    )
    losses = [line["loss"] for line in metrics(tmp_path / "out")]
    assert len(losses) == results(tmp_path / "out")["steps"] == 10 and min(losses) > 0
    found = results(tmp_path / "out")
    assert found["conversations"] == 1 and found["conversations_unlearned"] > 0
    assert f"1 conversation ({found['conversations_unlearned']} others have no turn within" in capsys.readouterr().err


def test_turns_too_long_for_a_row_are_said(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demos = write_demos(tmp_path / "d.jsonl", [*exchanges(20, 5), ("and?", "cat " * 90)])
    sft(world.base, (demos,), tmp_path / "out", config=replace(SFT, tokens=640))
    assert results(tmp_path / "out")["turns_dropped"] == 2
    assert "warning: left out 2 turns in exchanges too long for a row" in capsys.readouterr().err
    with pytest.raises(InputError, match="no demonstration fits the context of 64 tokens; all 2 turns"):
        long = write_demos(tmp_path / "long.jsonl", [("and?", "cat " * 90)])
        sft(world.base, (long,), tmp_path / "none", config=SFT)


@pytest.fixture(scope="module")
def strict(world: World, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The world's tokenizer with a template that insists on turns, as Gemma's and Mistral's do."""
    folder = tmp_path_factory.mktemp("strict") / "run"
    shutil.copytree(world.sft, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": STRICT}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return load_policy(folder, CPU)[1]


ODD = [user("hi"), user("are you there?")]
SCORER: Any = SimpleNamespace(trunk=SimpleNamespace(config=SimpleNamespace(context=64)))


def read_sft(path: Path, tokenizer: Tokenizer) -> Any:
    return read_examples((path,), tokenizer, SFTConfig(), 64, 10**9, torch.Generator())


def read_scored(path: Path, tokenizer: Tokenizer) -> Any:
    encode = partial(encode_answer, tokenizer)
    model: Any = SimpleNamespace(tokenizer=tokenizer, model=SCORER, encode=lambda messages: encode(messages).ids)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    places = [(f"{path}, line {i}", conversations_in(r, f"{path}, line {i}")) for i, r in enumerate(lines, start=1)]
    return fit_all(places, [model])


def centre_on(path: Path, tokenizer: Tokenizer) -> Any:
    return demonstrations(SCORER, tokenizer, (path,), 9, torch.Generator())


@pytest.mark.parametrize(
    ("read", "record"),
    [
        (read_sft, {"messages": [*ODD, assistant("yes")]}),
        (centre_on, {"messages": [*ODD, assistant("yes")]}),
        (read_scored, {"messages": [*ODD, assistant("yes")]}),
        (
            lambda p, t: read_ranking_sets([p], t, 64, 0.0, "dpo"),
            {"prompt": ODD, "responses": ["a", "b"], "ranks": [1, 2]},
        ),
        (lambda p, t: read_thumb_sets([p], t, 64, 0.0), {"prompt": ODD, "response": "a", "thumb": 1}),
        (lambda p, t: choose_fitting(read_prompts([p]), t, 9, 64, "ppo"), {"prompt": ODD}),
    ],
)
def test_a_templates_complaint_names_file_and_line(
    strict: Tokenizer, tmp_path: Path, read: Callable[[Path, Tokenizer], Any], record: dict[str, Any]
) -> None:
    (field, odd), *others = record.items()
    good = {field: [user("hi"), *odd[2:]], **dict(others)}
    path = write_lines(tmp_path / "x.jsonl", [good, good, record, good])
    with pytest.raises(InputError) as caught:
        read(path, strict)
    said = str(caught.value)
    assert said.startswith(f"{path}, line 3: ") and "roles must take turns" in said and said.count("line 3") == 1
