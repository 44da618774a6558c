"""DPO at work: what it learns, that its figures are those of the papers' formulas on another library's logits."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_reward import by_count, counted
from their_policy import TheirPolicy
from world import THINGS, World, files_in, interrupted, metrics, results, same_files, user, write_lines

from tutelage import cli
from tutelage.data.rankings import Ranking, held_out
from tutelage.data.records import Comparison
from tutelage.errors import InputError
from tutelage.model.parameters import trainable
from tutelage.runs.adapter import adapt
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.stages import dpo as stage
from tutelage.stages.dpo import DPOConfig, batch_logprobs, dpo, preference_loss, reference_logprobs

CPU = choose_device("cpu", "fp32")
DPO = DPOConfig(batch=4, lr=1e-3, heldout=0.2, dtype="fp32")
LORA = replace(DPO, lora_rank=4, lora_alpha=16.0, lora_dropout=0.1, lr=3e-3)


def mixed(path: Path) -> Path:
    """Rankings of two to five answers, with ties, some ranked by two annotators who do not agree."""
    chance = random.Random(5)
    records = []
    for i in range(24):
        said = [" ".join(chance.choices(THINGS, k=chance.randint(1, 5))) for _ in range(chance.randint(2, 5))]
        for annotator in ("ann", "bob")[: 1 + i % 2]:
            ranks = [chance.randint(1, 3) for _ in said]
            records.append({"prompt": [user(f"is it {i}?")], "responses": said, "ranks": ranks, "annotator": annotator})
    return write_lines(path, records)


@pytest.fixture(scope="module")
def learned(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    comparisons = counted(folder / "c.jsonl", 300, by_count)
    dpo(world.sft, (comparisons,), folder / "dpo", config=replace(DPO, batch=16, epochs=2))
    return folder / "dpo"


def test_a_preference_for_a_word_is_learned(world: World, learned: Path) -> None:
    """On prompts that training never saw: chosen above rejected, and it says the word."""
    found, lines = results(learned), metrics(learned)
    assert found["heldout_pairs"] > 250
    assert found["accuracy"] > 0.93 and found["length_matched_accuracy"] > 0.93
    assert found["heldout_loss"] < 0.3
    assert lines[-1]["reward_margin"] > 1.0 and lines[-1]["accuracy"] > 0.9
    assert lines[-1]["reward_margin"] == pytest.approx(
        lines[-1]["chosen_reward"] - lines[-1]["rejected_reward"], abs=1e-5
    )
    before, after = TheirPolicy(world.sft), TheirPolicy(learned)
    moved = [
        after.total("is it?", said) - before.total("is it?", said) for said in ("red red red red", "cat dog cat dog")
    ]
    assert moved[0] > moved[1] + 10


@pytest.mark.parametrize(("loss", "first"), [("dpo", math.log(2)), ("cdpo", math.log(2)), ("ipo", 25.0)])
def test_it_starts_at_the_reference(world: World, tmp_path: Path, loss: str, first: float) -> None:
    """D1, through the whole stage: before the first step no answer is preferred."""
    dpo(world.sft, (world.comparisons,), tmp_path / "out", config=replace(DPO, loss=loss))  # type: ignore[arg-type]
    line = metrics(tmp_path / "out")[0]
    assert line["loss"] == pytest.approx(first, abs=1e-4)
    assert line["chosen_reward"] == pytest.approx(0, abs=1e-5) == line["rejected_reward"]
    assert metrics(tmp_path / "out")[-1]["chosen_reward"] != pytest.approx(0, abs=1e-3)


def by_definition(loss: str, beta: float, w: tuple[list[float], list[float]], i: tuple[list[float], list[float]]):
    """A pair's loss in Python floats. Each response: the log-probabilities of its tokens by policy and by reference."""
    (policy_w, reference_w), (policy_l, reference_l) = w, i
    h = (sum(policy_w) - sum(reference_w)) - (sum(policy_l) - sum(reference_l))
    if loss == "ipo":
        return (h - 1 / (2 * beta)) ** 2
    if loss == "simpo":  # means instead of sums, no reference, a margin of .5
        means = sum(policy_w) / len(policy_w) - sum(policy_l) / len(policy_l)
        return -math.log(1 / (1 + math.exp(0.5 - beta * means)))
    wrong = 0.2 if loss == "cdpo" else 0.0
    right = -math.log(1 / (1 + math.exp(-beta * h)))
    return (1 - wrong) * right - wrong * math.log(1 / (1 + math.exp(beta * h)))


CASES: dict[str, tuple[DPOConfig, float]] = {
    "dpo": (DPO, 0.1),
    "cdpo": (replace(DPO, loss="cdpo", smoothing=0.2, beta=0.3), 0.3),
    "ipo": (replace(DPO, loss="ipo", beta=0.4), 0.4),
    "simpo": (replace(DPO, loss="simpo", gamma=0.5), 2.0),
    "lora": (replace(LORA, loss="dpo"), 0.1),
}


@pytest.mark.parametrize("case", CASES)
def test_held_out_figures_are_the_papers_on_their_logits(world: World, tmp_path: Path, case: str) -> None:
    """D7: loss and accuracy of the trained run, from the two folders alone, pair by pair, ties and all."""
    config, beta = CASES[case]
    comparisons = mixed(tmp_path / "c.jsonl")
    dpo(world.sft, (comparisons,), tmp_path / "out", config=replace(config, heldout=0.4, epochs=2))
    policy, reference = TheirPolicy(tmp_path / "out"), TheirPolicy(world.sft)
    losses, right = [], []
    for line in comparisons.read_text().splitlines():
        record = json.loads(line)
        if not held_out(Comparison(**record, source="test"), 0.4):
            continue
        question, ranks = record["prompt"][0]["content"], record["ranks"]
        each = [(policy.logprobs(question, a), reference.logprobs(question, a)) for a in record["responses"]]
        pairs = [(w, i) for w, i in permutations(range(len(each)), 2) if ranks[w] < ranks[i]]
        per_pair = [by_definition(config.loss, beta, each[w], each[i]) for w, i in pairs]
        losses += [sum(per_pair) / len(per_pair)] if pairs else []
        if config.loss == "simpo":
            values = [sum(p) / len(p) for p, _ in each]
        else:
            values = [sum(p) - sum(q) for p, q in each]
        right += [values[w] > values[i] for w, i in pairs]
    found = results(tmp_path / "out")
    assert found["heldout_pairs"] == len(right) > 20
    assert found["heldout_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))


def rankings_of(policy: TheirPolicy) -> list[Ranking]:
    def ranking(question: str, answers: list[str], ranks: list[int]) -> Ranking:
        prompt = policy.prompt(question)
        return Ranking([prompt + policy.answer(a) for a in answers], ranks, len(prompt))

    return [
        ranking("hi?", ["yes.", "no.", "it is red. is yours?", "it is big."], [2, 1, 3, 1]),
        ranking("is it?", ["it is big.", "mat"], [2, 1]),
    ]


def test_a_ranking_at_once_is_its_pairs_one_by_one(world: World) -> None:
    """Value and gradient of -log sigmoid(beta h), each answer of each pair with separate forward passes."""
    ours, tokenizer = load_policy(world.base, CPU)  # another model than the reference, so that h is not 0
    theirs = TheirPolicy(world.sft)
    rankings = rankings_of(theirs)
    reference = reference_logprobs(load_policy(world.sft, CPU)[0], rankings, DPO, tokenizer.pad_id)
    preference_loss(batch_logprobs(ours, rankings, reference, tokenizer.pad_id), DPO).backward()
    grouped = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
    ours.zero_grad()

    def logprob(text: list[int], start: int) -> torch.Tensor:
        rows = ours(torch.tensor([text[:-1]]))[0].log_softmax(-1)[start - 1 :]
        return rows.gather(-1, torch.tensor(text[start:])[:, None]).sum()

    per_prompt, by_hand = [], []
    for ranking, row in zip(rankings, reference.tolist(), strict=True):
        losses = []
        for w, i in permutations(range(len(ranking.sequences)), 2):
            if ranking.ranks[w] < ranking.ranks[i]:
                chosen, rejected = (logprob(ranking.sequences[k], ranking.prompt_length) - row[k] for k in (w, i))
                losses.append(-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)))
        per_prompt.append(torch.stack(losses).mean())
        by_hand.append(len(losses))
    assert by_hand == [5, 1]
    torch.stack(per_prompt).mean().backward()
    assert len(grouped) > 5
    for name, p in ours.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(grouped[name], p.grad, atol=1e-6, rtol=1e-4)


def test_the_reference_is_the_policy_without_its_adapters(world: World) -> None:
    """Also when the adapters are far from nothing."""
    model, tokenizer = load_policy(world.sft, CPU)
    adapt(model, LORA, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.5)
    theirs = TheirPolicy(world.sft)
    rankings = rankings_of(theirs)
    found = reference_logprobs(model.train(), rankings, LORA, tokenizer.pad_id)
    expected = [theirs.total("hi?", a) for a in ("yes.", "no.", "it is red. is yours?", "it is big.")]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-3)
    assert found[1, 2:].tolist() == [0, 0]
    batch = batch_logprobs(model.eval(), rankings, found, tokenizer.pad_id)
    assert (batch.logprobs - batch.ref_logprobs)[0].abs().min() > 1


def test_the_reward_models_prompts_are_held_out(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Any]] = {}
    report = stage.accuracy_report
    monkeypatch.setattr(stage, "accuracy_report", lambda *a: seen.update(held=a[2]) or report(*a))
    dpo(world.sft, (world.comparisons,), tmp_path / "out", config=DPO)
    found, theirs = results(tmp_path / "out"), results(world.reward)
    for name in ("rankings", "rankings_held_out", "heldout_pairs"):
        assert found[name] == theirs[name] > 0
    assert len(seen["held"]) == found["rankings_held_out"]


def test_nothing_held_out_is_no_figure(world: World, tmp_path: Path) -> None:
    dpo(world.sft, (world.comparisons,), tmp_path / "out", config=replace(DPO, heldout=0.0))
    assert results(tmp_path / "out")["accuracy"] is None and results(tmp_path / "out")["heldout_pairs"] == 0


def test_answers_that_two_ranked_are_run_once_in_one_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[Ranking]] = []
    original = stage.batch_logprobs
    monkeypatch.setattr(
        stage, "batch_logprobs", lambda m, rankings, *a: steps.append(rankings) or original(m, rankings, *a)
    )
    dpo(world.sft, (mixed(tmp_path / "c.jsonl"),), tmp_path / "out", config=replace(DPO, batch=1, heldout=0.0))
    told = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    strict = [r for r in told if len(set(r["ranks"])) > 1]
    assert sum(len(some) for some in steps) == len(strict)
    assert len(steps) == len({tuple(r["responses"]) for r in strict}) < len(strict)
    assert all(len({tuple(map(tuple, r.sequences)) for r in some}) == 1 for some in steps)


@pytest.mark.parametrize("config", [DPO, LORA, replace(DPO, loss="simpo")], ids=["all weights", "lora", "simpo"])
def test_an_interruption_changes_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: DPOConfig
) -> None:
    """The reference, too, is the one from before the first step."""

    def call(out: Path) -> None:
        dpo(world.sft, (world.comparisons,), out, config)

    call(tmp_path / "whole")
    interrupted(lambda: call(tmp_path / "parts"), monkeypatch, 2)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    saved = [name for name in files_in(tmp_path / "parts") if name.endswith("state.safetensors")]
    frozen = [key for name in saved for key in load_file(tmp_path / "parts" / name) if "embedding" in key]
    assert bool(frozen) != config.adapted
    call(tmp_path / "parts")
    names = ["model.safetensors", "config.json"] + ["adapter/adapter_model.safetensors"] * config.adapted
    same_files(tmp_path / "whole", tmp_path / "parts", names)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert len(metrics(tmp_path / "whole")) > 2
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert not (tmp_path / "parts" / "checkpoints").exists()


def test_the_adapter_alone_is_the_same_model(world: World, tmp_path: Path) -> None:
    for name, config in (("whole", LORA), ("alone", replace(LORA, adapter_only=True))):
        dpo(world.sft, (world.comparisons,), tmp_path / name, config)
    assert not (tmp_path / "alone" / "model.safetensors").exists()
    same_files(tmp_path / "whole", tmp_path / "alone", ["adapter/adapter_model.safetensors"])
    ids = torch.tensor([[15, 17, 260, 33, 8]])
    theirs = TheirPolicy(tmp_path / "whole").model(ids).logits
    torch.testing.assert_close(load_policy(tmp_path / "alone", CPU)[0](ids), theirs, atol=1e-4, rtol=1e-4)


def test_as_a_command(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dpo", "--policy", str(world.sft), "--comparisons", str(world.comparisons), "--out", str(tmp_path / "out")]
    cli.main([*words, "--loss", "ipo", "--beta", "0.5", "--dtype", "fp32"])
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["stage"] == "dpo" and record["config"]["loss"] == "ipo" and record["config"]["beta"] == 0.5
    assert set(record["inputs"]) == {"policy", "comparisons-0"}
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([*words[:-1], str(tmp_path / "other"), "--loss", "orpo"])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


BAD: list[tuple[list[dict[str, Any]], str]] = [
    ([{"prompt": [user("hi")], "responses": ["a", "b"], "ranks": [1, 1]}], "no ranking with a strict order"),
    (
        [{"prompt": [user("cat " * 80)], "responses": ["a", "b"], "ranks": [1, 2]}],
        r"none of the rankings \(1\) fits the model's context of 64 tokens; the shortest, .*c.jsonl, line 1, needs \d+",
    ),
    ([{"prompt": [user("hi")], "responses": ["a"], "ranks": [1]}], "c.jsonl, line 1: a ranking has 2 to 9"),
]


@pytest.mark.parametrize(("records", "said"), BAD)
def test_bad_rankings(world: World, tmp_path: Path, records: list[dict[str, Any]], said: str) -> None:
    bad = write_lines(tmp_path / "c.jsonl", records)
    with pytest.raises(InputError, match=said):
        dpo(world.sft, (bad,), tmp_path / "out", config=replace(DPO, heldout=0.0))
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DPOConfig(smoothing=0.5), "--smoothing 0.5: must be below 0.5"),
        (lambda: DPOConfig(beta=-1.0), "--beta -1: must be at least 0"),
        (lambda: DPOConfig(adapter_only=True), "give --lora-rank"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], DPOConfig], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()
