"""KTO at work: what it learns, and that a step is the paper's formula on another library's logits."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from their_policy import TheirPolicy
from world import PLACES, THINGS, World, exchanges, interrupted, metrics, results, same_files, user, write_lines

from tutelage import cli
from tutelage.data.rankings import Thumb, encode_thumb, held_out
from tutelage.data.records import Feedback
from tutelage.errors import InputError
from tutelage.model.parameters import trainable
from tutelage.runs.adapter import adapt
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.stages.kto import (
    Batch,
    KTOConfig,
    batch_logprobs,
    feedback_loss,
    kto,
    make_batches,
    mismatched_of,
    reference_logprobs,
)

CPU = choose_device("cpu", "fp32")
KTO = KTOConfig(batch=8, lr=1e-3, heldout=0.2, dtype="fp32")
LORA = replace(KTO, lora_rank=4, lora_alpha=16.0, lora_dropout=0.1, lr=3e-3)


def thumbs(path: Path, count: int = 60, ups: float = 0.55, honest: bool = True) -> Path:
    """Answers of six words, about so many with the word `red` in them: these are liked, or none knows why."""
    chance = random.Random(3)
    records = []
    for i, (question, _) in enumerate(exchanges(count, 12)):
        liked = chance.random() < ups
        said = ["red"] * (3 if liked else 0)
        said += [chance.choice(THINGS + PLACES) for _ in range(6 - len(said))]
        chance.shuffle(said)
        liked = liked if honest else chance.random() < ups
        record = {"prompt": [user(question)], "response": " ".join(said), "thumb": 1 if liked else -1}
        records.append(record | {"annotator": "test", "conversation": f"k{i}"})
    return write_lines(path, records)


@pytest.fixture(scope="module")
def learned(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kto")
    kto(world.sft, (thumbs(folder / "t.jsonl", 400),), folder / "kto", replace(KTO, epochs=2))
    return folder / "kto"


def test_what_was_liked_becomes_likelier_than_what_was_not(world: World, learned: Path) -> None:
    found, lines = results(learned), metrics(learned)
    assert found["accuracy"] > 0.95 and found["heldout_thumbs"] > 50
    assert found["thumbs_up"] + found["thumbs_down"] + found["heldout_thumbs"] == 400
    last = lines[-1]
    assert last["accuracy"] > 0.9 and last["reward_margin"] > 1.0 and last["loss"] < 0.35
    assert last["reward_margin"] == pytest.approx(last["chosen_reward"] - last["rejected_reward"], abs=1e-5)
    assert last["reference_point"] > 0
    before, after = TheirPolicy(world.sft), TheirPolicy(learned)
    moved = [after.total("is it?", a) - before.total("is it?", a) for a in ("red mat red cat red", "cat mat cat dog")]
    assert moved[0] > moved[1] + 10


@pytest.mark.parametrize("config", [KTO, LORA], ids=["all weights", "lora"])
def test_the_reported_accuracy_is_transformers(world: World, tmp_path: Path, config: KTOConfig) -> None:
    """Over all pairs of a held-out thumb up and a held-out thumb down, which chance has given: about half are right."""
    told = thumbs(tmp_path / "t.jsonl", 100, honest=False)
    kto(world.sft, (told,), tmp_path / "out", config)
    policy, reference = TheirPolicy(tmp_path / "out"), TheirPolicy(world.sft)
    ratios: dict[int, list[float]] = {1: [], -1: []}
    for line in told.read_text().splitlines():
        r = json.loads(line)
        if held_out(Feedback(**r, source="test"), 0.2):
            question = r["prompt"][0]["content"]
            ratios[r["thumb"]].append(policy.total(question, r["response"]) - reference.total(question, r["response"]))
    pairs = [(a, b) for a in ratios[1] for b in ratios[-1]]
    assert len(ratios[1]) + len(ratios[-1]) == results(tmp_path / "out")["heldout_thumbs"]
    right = sum(a > b for a, b in pairs) / len(pairs)
    assert 0.2 < right < 0.8
    assert right == pytest.approx(results(tmp_path / "out")["accuracy"], abs=1 / len(pairs))


def test_it_starts_at_the_reference(world: World, tmp_path: Path) -> None:
    """Before the first step z0 and all log ratios are 0: the loss is half the mean weight."""
    config = replace(KTO, desirable=1.2, undesirable=2.0)
    kto(world.sft, (thumbs(tmp_path / "t.jsonl"),), tmp_path / "out", config)
    first, second = metrics(tmp_path / "out")[:2]
    share = (2 * first["loss"] - 2.0) / (1.2 - 2.0)  # of thumbs up in the batch
    assert share * 8 == pytest.approx(round(share * 8), abs=1e-3) and 0 < share < 1
    assert first["reference_point"] == pytest.approx(0, abs=1e-4)
    assert first["chosen_reward"] == pytest.approx(0, abs=1e-5) == first["rejected_reward"]
    assert second["chosen_reward"] != pytest.approx(0, abs=1e-4)


SAID = [
    ("hi?", "yes.", True),
    ("hi?", "it is red. is yours?", False),
    ("is it?", "it is on the mat.", True),
    ("where is the cat?", "no.", False),
]


def encoded(theirs: TheirPolicy) -> list[Thumb]:
    return [Thumb(theirs.prompt(question), theirs.answer(answer), liked) for question, answer, liked in SAID]


def test_a_step_is_the_papers_formula_on_their_logits(world: World) -> None:
    """Ethayarajh et al. 2024, section 4.1, with z0 from the batch's own prompts and another one's responses."""
    policy, reference = TheirPolicy(world.base), TheirPolicy(world.sft)  # far from each other, so that z0 counts
    ours, tokenizer = load_policy(world.base, CPU)
    thumbs = encoded(policy)
    batch = Batch(thumbs, mismatched_of(thumbs, 64))
    known = reference_logprobs(load_policy(world.sft, CPU)[0], [batch], [], tokenizer.pad_id)
    config = replace(KTO, beta=0.05, desirable=1.3, undesirable=0.7)

    def ratio(question: str, answer: str) -> float:
        return policy.total(question, answer) - reference.total(question, answer)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    next_to_another = [SAID[2][1], SAID[2][1], SAID[3][1], SAID[0][1]]
    log_ratios = [ratio(question, other) for (question, _, _), other in zip(SAID, next_to_another)]
    for sign in (1, -1):  # forwards z0 is what it is; with policy and reference swapped it would be below 0
        z0 = max(0.0, sign * sum(log_ratios) / len(log_ratios))
        expected = []
        for question, answer, liked in SAID:
            gain = 0.05 * (sign * ratio(question, answer) - z0)
            expected.append(1.3 * (1 - sigmoid(gain)) if liked else 0.7 * (1 - sigmoid(-gain)))
        if sign == 1:
            judged = batch_logprobs(ours, batch, known, tokenizer.pad_id)
        else:
            swapped = reference_logprobs(ours, [batch], [], tokenizer.pad_id)
            judged = batch_logprobs(load_policy(world.sft, CPU)[0], batch, swapped, tokenizer.pad_id)
        assert feedback_loss(judged, config).item() == pytest.approx(sum(expected) / 4, abs=1e-5)
        assert judged.z0.item() == pytest.approx(z0, abs=1e-3)
    assert abs(sum(log_ratios)) > 4  # in one of the two directions z0 is clamped


def test_no_gradient_goes_through_the_reference_point(world: World) -> None:
    """The same gradient as with z0 written in as a number, each response with a separate forward pass."""
    theirs = TheirPolicy(world.base)
    ours, tokenizer = load_policy(world.sft, CPU)
    thumbs = encoded(theirs)
    batch = Batch(thumbs, mismatched_of(thumbs, 64))
    known = reference_logprobs(load_policy(world.base, CPU)[0], [batch], [], tokenizer.pad_id)
    judged = batch_logprobs(ours, batch, known, tokenizer.pad_id)
    feedback_loss(judged, KTO).backward()
    z0 = judged.z0.item()
    assert z0 != 0
    grouped = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
    ours.zero_grad()
    losses = []
    for thumb, before in zip(thumbs, known.tolist(), strict=False):
        ids = torch.tensor([thumb.prompt + thumb.response])
        rows = ours(ids)[0, len(thumb.prompt) - 1 : -1].log_softmax(-1)
        ratio = rows.gather(-1, torch.tensor(thumb.response)[:, None]).sum() - before
        gain = 0.1 * (ratio - z0)
        losses.append(1 - torch.sigmoid(gain if thumb.liked else -gain))
    torch.stack(losses).mean().backward()
    for name, p in ours.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(grouped[name], p.grad, atol=1e-6, rtol=1e-3)


def test_mismatched_texts_by_hand() -> None:
    """The next one to another prompt that fits, round the end of the batch; none where there is none."""
    a, b, c = [1, 2], [3], [4, 5, 6]
    thumbs = [Thumb(a, [10], True), Thumb(a, [11, 11, 11], False), Thumb(b, [12, 12], True), Thumb(c, [13, 13], False)]
    assert [(t.prompt, t.response) for t in mismatched_of(thumbs, 64)] == [
        (a, [12, 12]), (a, [12, 12]), (b, [13, 13]), (c, [10]),
    ]  # fmt: skip
    assert [(t.prompt, t.response) for t in mismatched_of(thumbs[1:], 5)] == [
        (a, [12, 12]), (b, [13, 13]), (c, [12, 12]),
    ]  # fmt: skip
    assert mismatched_of(thumbs[:2], 64) == []
    assert mismatched_of([thumbs[1], thumbs[3]], 5) == [Thumb(a, [13, 13], False)]


def test_every_thumb_once_an_epoch() -> None:
    made = [Thumb([i], [i], True) for i in range(10)]
    batches = make_batches(made, replace(KTO, batch=5, epochs=2), 64, torch.Generator().manual_seed(0))
    assert [len(batch.thumbs) for batch in batches] == [5] * 4
    for epoch in (batches[:2], batches[2:]):
        assert sorted(t.prompt[0] for batch in epoch for t in batch.thumbs) == list(range(10))
    assert [t.prompt for t in batches[0].thumbs] != [[i] for i in range(5)]
    sizes = {n: [len(b.thumbs) for b in make_batches(made[:n], KTO, 64, torch.Generator())] for n in (3, 8, 10)}
    assert sizes == {3: [3], 8: [8], 10: [8]}


@pytest.mark.parametrize("config", [KTO, LORA], ids=["all weights", "lora"])
def test_an_interruption_changes_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: KTOConfig
) -> None:
    told = thumbs(tmp_path / "t.jsonl")

    def call(out: Path) -> None:
        kto(world.sft, (told,), out, config)

    call(tmp_path / "whole")
    interrupted(lambda: call(tmp_path / "parts"), monkeypatch, 2)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    call(tmp_path / "parts")
    names = ["model.safetensors", "config.json"] + ["adapter/adapter_model.safetensors"] * config.adapted
    same_files(tmp_path / "whole", tmp_path / "parts", names)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert len(metrics(tmp_path / "whole")) > 3
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert not (tmp_path / "parts" / "checkpoints").exists()


def test_the_reference_is_the_policy_without_its_adapters(world: World) -> None:
    """Also when the adapters are far from nothing. A response is its own tokens and the end of its turn."""
    model, tokenizer = load_policy(world.sft, CPU)
    adapt(model, LORA, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.5)
    theirs = TheirPolicy(world.sft)
    made = [encode_thumb(Feedback([user(q)], a, 1 if up else -1, "", ""), tokenizer) for q, a, up in SAID]
    assert made == encoded(theirs)
    expected = [theirs.total(question, answer) for question, answer, _ in SAID]
    found = reference_logprobs(model.train(), [Batch(made[:1], []), Batch(made[1:3], [])], made[3:], tokenizer.pad_id)
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    assert batch_logprobs(model.eval(), Batch(made, []), found, tokenizer.pad_id).log_ratios.abs().min() > 1


def test_the_adapter_alone_is_a_run(world: World, tmp_path: Path) -> None:
    kto(world.sft, (thumbs(tmp_path / "t.jsonl"),), tmp_path / "out", replace(LORA, adapter_only=True))
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert metrics(tmp_path / "out")[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert metrics(tmp_path / "out")[-1]["loss"] < 0.49
    load_policy(tmp_path / "out", CPU)


def test_weights_out_of_balance_are_said(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = thumbs(tmp_path / "t.jsonl", ups=0.8)
    words = ["kto", "--policy", str(world.sft), "--feedback", str(told), "--out", str(tmp_path / "out")]
    cli.main([*words, "--batch", "8", "--dtype", "fp32"])
    found = results(tmp_path / "out")
    ratio = found["thumbs_up"] / found["thumbs_down"]
    assert found["weight_ratio"] == pytest.approx(ratio) and ratio > 2
    advice = f"{found['thumbs_up']} thumbs up and {found['thumbs_down']} down weigh {ratio:.2f} to 1"
    said = capsys.readouterr().err
    assert advice in said and f"--undesirable {ratio:.3g}" in said
    cli.main([*words[:-1], str(tmp_path / "even"), "--undesirable", f"{ratio:.3g}", "--dtype", "fp32"])
    assert "the paper advises" not in capsys.readouterr().err
    assert results(tmp_path / "even")["weight_ratio"] == pytest.approx(1.0, abs=5e-3)
    cli.main([*words[:-1], str(tmp_path / "low"), "--undesirable", f"{2 * ratio:.6g}", "--dtype", "fp32"])
    assert "weigh 0.50 to 1" in (said := capsys.readouterr().err) and "--desirable 2\n" in said


def told(question: str, response: str, thumb: Any) -> dict[str, Any]:
    return {"prompt": [user(question)], "response": response, "thumb": thumb}


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([told("hi", "a", 1), told("so", "b", 1)], "2 thumbs up and 0 down are left to train on; it takes both"),
        ([told("hi", "a", -1)], "0 thumbs up and 1 down"),
        ([told("hi", "a", 1), told("hi", "b", -1)], "all 2 thumbs are for one prompt, z0 takes two"),
        ([told("hi", "a", 1), told("so", "b", 0)], 't.jsonl, line 2: "thumb" must be 1'),
        (
            [told("hi", "cat " * 80, 1), told("so", "b", -1)],
            r"0 thumbs up and 1 down .*; left out 1 of 2 records .* 64 tokens; the first, .*t.jsonl, line 1, needs \d+",
        ),
        (
            [told("hi", "cat " * 90, 1), told("so", "cat " * 80, -1)],
            r"none of the thumbs \(2\) fits .* context of 64 tokens; the shortest, .*t.jsonl, line 2, needs \d+",
        ),
    ],
)
def test_bad_feedback(world: World, tmp_path: Path, records: list[dict[str, Any]], said: str) -> None:
    bad = write_lines(tmp_path / "t.jsonl", records)
    with pytest.raises(InputError, match=said):
        kto(world.sft, (bad,), tmp_path / "out", replace(KTO, heldout=0.0))
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: KTOConfig(batch=1), "--batch 1: must be at least 2; z0 takes a response to another prompt"),
        (lambda: KTOConfig(beta=0.0), "--beta 0"),
        (lambda: KTOConfig(undesirable=0.0), "--undesirable 0"),
        (lambda: KTOConfig(desirable=-1.0), "--desirable -1: must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], KTOConfig], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()
