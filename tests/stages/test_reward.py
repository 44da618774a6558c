"""The reward model at work: what it learns, what it cannot see, that other code reads the same score (R9 to R15)."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from world import PLACES, REWARD, THINGS, World, assistant, exchanges, metrics, results, user, write_lines

from tutelage.data.panel import Panel
from tutelage.data.rankings import Ranking, held_out, strict_pairs
from tutelage.data.records import Comparison, read_comparisons
from tutelage.errors import InputError
from tutelage.learning.losses import ranking_loss
from tutelage.model.shared_prefix import score_texts
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_scorer
from tutelage.stages import reward as stage
from tutelage.stages.reward import reward, score_rankings

transformers = pytest.importorskip("transformers")

WORD = "red"


def counted(path: Path, count: int, rank_of: Callable[[list[int], random.Random], list[int]]) -> Path:
    """Rankings of four answers of six words, with 0 to 4 times the word; `rank_of` their counts."""
    chance = random.Random(0)
    records = []
    for i, (question, _) in enumerate(exchanges(count, 11)):
        counts = chance.sample(range(5), 4)
        responses = []
        for n in counts:
            said = [WORD] * n + [chance.choice(THINGS + PLACES) for _ in range(6 - n)]
            chance.shuffle(said)
            responses.append(" ".join(said))
        record = {"prompt": [user(question)], "responses": responses, "ranks": rank_of(counts, chance)}
        records.append(record | {"annotator": "test", "conversation": f"k{i}"})
    return write_lines(path, records)


def by_count(counts: list[int], chance: random.Random) -> list[int]:
    return [sorted(counts, reverse=True).index(n) + 1 for n in counts]


def shuffled(counts: list[int], chance: random.Random) -> list[int]:
    return chance.sample([1, 2, 3, 4], 4)


class Theirs:
    """transformers' sequence classifier on a run's folder, and its tokenizer with the template spelt out."""

    def __init__(self, run: Path):
        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(run).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(run)
        self.mean = json.loads((run / "config.json").read_text())["reward_mean"]

    def ids(self, question: str, answer: str) -> list[int]:
        mark = self.tokenizer.convert_tokens_to_ids
        ask, say = self.tokenizer(question).input_ids, self.tokenizer(answer).input_ids
        return [mark("<|user|>"), *ask, mark("<|end|>"), mark("<|assistant|>"), *say, mark("<|end|>")]

    @torch.no_grad()
    def score(self, ids: list[int]) -> float:
        return self.model(torch.tensor([ids])).logits.item() - self.mean


@pytest.fixture(scope="module")
def separable(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("separable")
    comparisons = counted(folder / "c.jsonl", 300, by_count)
    config = replace(REWARD, epochs=5, batch=16)
    reward(world.sft, (comparisons,), folder / "reward", (world.demos,), config=config)
    return folder / "reward"


def test_a_preference_for_a_word_is_learned(separable: Path) -> None:
    """R14: on rankings of prompts that training never saw."""
    found = results(separable)
    assert found["heldout_pairs"] > 250
    assert found["accuracy"] > 0.99
    assert found["length_matched_accuracy"] > 0.99
    assert found["ceiling"] is None  # no panel was given
    assert metrics(separable)[-1]["accuracy"] > 0.95


def test_shuffled_ranks_teach_nothing(world: World, tmp_path: Path) -> None:
    """R15: six pairs of one ranking hang together, so that 60 rankings leave about .04 of chance."""
    comparisons = counted(tmp_path / "c.jsonl", 300, shuffled)
    reward(world.sft, (comparisons,), tmp_path / "out", (world.demos,), config=replace(REWARD, batch=16))
    assert results(tmp_path / "out")["accuracy"] == pytest.approx(0.5, abs=0.12)


def test_the_reported_accuracy_is_transformers(world: World, separable: Path) -> None:
    """Scored by another library, on the pairs of the conversations that were held out."""
    theirs = Theirs(separable)
    right, pairs = 0, 0
    for line in (separable.parent / "c.jsonl").read_text().splitlines():
        record = json.loads(line)
        if not held_out(Comparison(**record, source="test"), REWARD.heldout):
            continue
        scores = [theirs.score(theirs.ids(record["prompt"][0]["content"], r)) for r in record["responses"]]
        for a, b in [(a, b) for a in range(4) for b in range(4) if record["ranks"][a] < record["ranks"][b]]:
            right, pairs = right + (scores[a] > scores[b]), pairs + 1
    assert pairs == results(separable)["heldout_pairs"]
    assert right / pairs == pytest.approx(results(separable)["accuracy"], abs=2 / pairs)


def test_demonstrations_score_zero_on_average(world: World) -> None:
    """R13, by transformers on all demonstrations (each is one exchange and fits)."""
    theirs = Theirs(world.reward)
    told = [json.loads(line)["messages"] for line in world.demos.read_text().splitlines()]
    scores = [theirs.score(theirs.ids(m[0]["content"], m[1]["content"])) for m in told]
    assert sum(scores) / len(scores) == pytest.approx(0.0, abs=1e-4)
    assert results(world.reward)["reward_mean"] == theirs.mean != 0


def test_transformers_reads_the_same_score(world: World) -> None:
    """One label, no bias: logit - reward_mean, alone and in a padded batch."""
    ours, tokenizer = load_scorer(world.reward, choose_device("cpu", "fp32"))
    theirs = Theirs(world.reward)
    answers = [theirs.ids(q, a) for q, a in exchanges(6, 21)]
    with torch.no_grad():
        scores = torch.cat(score_texts(ours, [[answer] for answer in answers], tokenizer.pad_id))
    assert scores.tolist() == pytest.approx([theirs.score(ids) for ids in answers], abs=1e-5)
    assert [s.tolist() for s in theirs.model.score.parameters()] == [ours.score.weight.tolist()]


def test_padding_changes_no_score(world: World) -> None:
    """R10."""
    ours, tokenizer = load_scorer(world.reward, choose_device("cpu", "fp32"))
    short, long = (Theirs(world.reward).ids("hi?", a) for a in ("yes.", "it is on the table. " * 4))
    with torch.no_grad():
        alone = score_texts(ours, [[short]], tokenizer.pad_id)
        row, other_row = score_texts(ours, [[short], [long, short, short]], tokenizer.pad_id)
    assert row.tolist() == pytest.approx(alone[0].tolist(), abs=1e-6)
    assert other_row[1:].tolist() == pytest.approx(alone[0].tolist() * 2, abs=1e-6)


def test_the_score_is_read_at_the_end_of_turn(world: World) -> None:
    """R11: a token after it changes nothing, a token before it does."""
    ours, tokenizer = load_scorer(world.reward, choose_device("cpu", "fp32"))
    ids = Theirs(world.reward).ids("hi?", "it is red.")
    last = torch.tensor([len(ids) - 1])
    after = [torch.tensor([[*ids, extra]]) for extra in (tokenizer.pad_id, 70, 71)]
    with torch.no_grad():
        scores = [ours.at(row, last).item() for row in after]
        changed = ours.at(torch.tensor([[*ids[:-2], ids[-2] + 1, ids[-1], 70]]), last).item()
    assert scores[0] == scores[1] == scores[2]
    assert abs(changed - scores[0]) > 1e-4


def test_a_ranking_at_once_is_its_pairs_one_by_one(world: World) -> None:
    """R9: value and gradient of -log sigmoid(r_w - r_l), each pair with separate forward passes."""
    ours, tokenizer = load_scorer(world.reward, choose_device("cpu", "fp32"))
    theirs = Theirs(world.reward)
    rankings = [
        Ranking([theirs.ids("hi?", a) for a in ("yes.", "no.", "it is red. is yours?", "cat")], [2, 1, 3, 1], 5),
        Ranking([theirs.ids("is it?", a) for a in ("it is big.", "mat")], [2, 1], 5),
    ]
    ranking_loss(*score_rankings(ours, rankings, tokenizer.pad_id)).backward()
    grouped = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
    ours.zero_grad()
    per_prompt = []
    for ranking in rankings:
        losses = []
        for a, first in enumerate(ranking.sequences):
            for b, second in enumerate(ranking.sequences):
                if ranking.ranks[a] < ranking.ranks[b]:
                    w, loser = (ours(torch.tensor([ids]))[0, -1] for ids in (first, second))
                    losses.append(-F.logsigmoid(w - loser))
        assert len(losses) == len(strict_pairs(ranking.ranks)) in (5, 1)
        per_prompt.append(torch.stack(losses).mean())
    torch.stack(per_prompt).mean().backward()
    assert len(grouped) > 5
    for name, p in ours.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(grouped[name], p.grad, atol=1e-6, rtol=1e-4)


# What each weight of a block is called in transformers; some of ours are several of theirs, one below the other.
IN_A_BLOCK = {
    "attention_norm": ["input_layernorm"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.out": ["self_attn.o_proj"],
    "attention.q_norm": ["self_attn.q_norm"],
    "attention.k_norm": ["self_attn.k_norm"],
    "mlp_norm": ["post_attention_layernorm"],
    "mlp.up": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.down": ["mlp.down_proj"],
}
OTHERS = {"trunk.embedding": "model.embed_tokens", "trunk.final_norm": "model.norm", "score": "score"}
THEIR_NAMES = {name: [other] for name, other in OTHERS.items()} | {
    f"trunk.blocks.0.{name}": [f"model.layers.0.{other}" for other in others] for name, others in IN_A_BLOCK.items()
}


def test_a_ranking_of_nine_is_the_36_pairs_of_transformers(world: World) -> None:
    """Loss and gradient of every weight, where both sides of each pair are run whole, padded, by another library."""
    ours, tokenizer = load_scorer(world.reward, choose_device("cpu", "fp32"))
    theirs, chance = Theirs(world.reward).model, random.Random(0)
    prompt, *answers = ([chance.randrange(20, 290) for _ in range(n)] for n in (30, *range(24, 33)))
    texts, ranks = [[*prompt, *answer, tokenizer.end_of_turn_id] for answer in answers], chance.sample(range(1, 10), 9)
    loss = ranking_loss(*score_rankings(ours, [Ranking(texts, ranks, 30)], tokenizer.pad_id))
    loss.backward()
    pairs = [(texts[a], texts[b]) for a in range(9) for b in range(9) if ranks[a] < ranks[b]]
    better, worse = zip(*pairs, strict=True)
    ids = pad_sequence([*map(torch.tensor, better + worse)], batch_first=True, padding_value=tokenizer.pad_id)
    scores = theirs(ids, attention_mask=ids != tokenizer.pad_id).logits[:, 0]
    expected = -F.logsigmoid(scores[:36] - scores[36:]).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    gradients = {name.removesuffix(".weight"): p.grad for name, p in theirs.named_parameters()}
    assert {name for names in THEIR_NAMES.values() for name in names} == gradients.keys()
    for name, p in ours.named_parameters():
        same = torch.cat([gradients[other] for other in THEIR_NAMES[name.removesuffix(".weight")]])
        torch.testing.assert_close(p.grad, same, atol=1e-6, rtol=1e-4)


def test_no_conversation_is_on_both_sides(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three annotators' rankings of one prompt, and two prompts of one conversation, stay together."""
    seen: dict[str, list[Any]] = {}
    train, report = stage.train, stage.accuracy_report
    monkeypatch.setattr(stage, "train", lambda *a, **k: seen.update(kept=a[3]) or train(*a, **k))
    monkeypatch.setattr(stage, "accuracy_report", lambda *a, **k: seen.update(held=a[2]) or report(*a, **k))
    reward(world.sft, (world.comparisons,), tmp_path / "out", (world.demos,), world.panel, REWARD)
    told = [json.loads(line) for line in world.comparisons.read_text().splitlines()]
    held = {c.conversation for c in seen["held"]}
    strict = [r for r in told if len(set(r["ranks"])) > 1]
    assert 0 < len(seen["held"]) < len(strict) == len(seen["held"]) + len(seen["kept"])
    assert len(seen["kept"]) == sum(r["conversation"] not in held for r in strict)


def test_the_ceiling_is_the_share_that_gold_orders_alike(world: World) -> None:
    """Recounted on a panel whose gold score we read off one by one."""
    panel = Panel.load(world.panel)
    gold: list[float] = []
    for line in world.comparisons.read_text().splitlines():
        r = json.loads(line)
        if held_out(Comparison(**r), REWARD.heldout):
            liked = [panel.utility(r["prompt"], answer) for answer in r["responses"]]
            pairs = [(a, b) for a in range(4) for b in range(4) if r["ranks"][a] < r["ranks"][b]]
            gold += [0.5 if abs(liked[a] - liked[b]) < 1e-9 else float(liked[a] > liked[b]) for a, b in pairs]
    found = results(world.reward)
    assert found["heldout_pairs"] == len(gold) > 0
    assert found["ceiling"] == pytest.approx(sum(gold) / len(gold))
    assert found["accuracy_of_ceiling"] == pytest.approx(found["accuracy"] / found["ceiling"])


def test_ties_alone_teach_nothing(world: World, tmp_path: Path) -> None:
    ties = write_lines(tmp_path / "t.jsonl", [{"prompt": [user("hi")], "responses": ["a", "b"], "ranks": [1, 1]}])
    with pytest.raises(InputError, match="no ranking with a strict order"):
        reward(world.sft, (ties,), tmp_path / "out", (world.demos,), config=REWARD)


def test_too_long_for_the_context(world: World, tmp_path: Path) -> None:
    long = write_lines(
        tmp_path / "l.jsonl",
        [{"prompt": [user("hi"), assistant("cat " * 80), user("and?")], "responses": ["a", "b"], "ranks": [1, 2]}],
    )
    with pytest.raises(InputError, match=r"none of the rankings \(1\) fits .* 64 tokens; .*l.jsonl, line 1, needs \d+"):
        reward(world.sft, (long,), tmp_path / "out", (world.demos,), config=replace(REWARD, heldout=0.0))
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_model_that_cannot_tell_is_right_half_of_the_time(world: World) -> None:
    """A head of zeros gives all answers the same score: neither all pairs wrong nor, the other way round, all right."""
    model, tokenizer = load_scorer(world.reward, choose_device("cpu", "fp32"))
    torch.nn.init.zeros_(model.score.weight)
    found = stage.accuracy_report(model, tokenizer, read_comparisons((world.comparisons,)), None)
    assert found["accuracy"] == 0.5 and found["length_matched_accuracy"] == 0.5 and found["heldout_pairs"] > 20
