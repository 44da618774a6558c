"""Pretraining against sources whose entropy is known (T1, T3, A2, A4), and bits per byte by hand."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from world import PRETRAIN, SHAPE, World, metrics, results, write_texts

from tutelage.data.packing import stream
from tutelage.errors import InputError
from tutelage.evals.perplexity import bits_per_byte
from tutelage.learning import optimizer as optimizer_module
from tutelage.model.gpt import GPT
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.stages.pretrain import PretrainConfig, pretrain, window_order

transformers = pytest.importorskip("transformers")

ENTROPY = 0.325083  # nats: H(.9) of the symmetric two-state chain that stays with probability .9
LETTERS = "0123456789"  # single digits are single tokens whatever the merges: the pattern splits numbers


def chain(count: int, seed: int) -> str:
    """A sample of the chain, written as 0 and 1."""
    chance, state, said = random.Random(seed), 0, []
    for _ in range(count):
        state = state if chance.random() < 0.9 else 1 - state
        said.append(str(state))
    return "".join(said)


def noise(count: int, seed: int) -> str:
    chance = random.Random(seed)
    return "".join(chance.choice(LETTERS) for _ in range(count))


def nats_per_token(run: Path) -> float:
    """From the last held-out figure: every digit is one byte and one token."""
    return results(run)["heldout_bits_per_byte"] * math.log(2)


def learn(world: World, tmp_path: Path, source: Any, tokens: int, **changed: Any) -> Path:
    """Pretrain on one long document of the source, with another one held out."""
    corpus = write_texts(tmp_path / "corpus.jsonl", [source(160_000, 1)])
    unseen = write_texts(tmp_path / "heldout.jsonl", [source(20_000, 2)])
    config = replace(PRETRAIN, tokens=tokens, heldout_windows=300, evaluate_every=1000, **changed)
    pretrain(world.tokenizer, (corpus,), tmp_path / "out", (unseen,), config)
    return tmp_path / "out"


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_markov_chain_is_learned_down_to_its_entropy(world: World, tmp_path: Path, optimizer: Any) -> None:
    """T1: below the unigram's ln 2 and near the rate, from above: 19,200 held-out tokens are good to .006 nats."""
    run = learn(world, tmp_path, chain, 64 * 8 * 300, optimizer=optimizer)
    reached = nats_per_token(run)
    assert ENTROPY - 0.015 < reached < ENTROPY + 0.03
    assert metrics(run)[-1]["loss"] < math.log(2) - 0.2


def test_random_tokens_teach_nothing_but_their_number(world: World, tmp_path: Path) -> None:
    """T3: the floor is ln 10. Anything lower would mean that the model sees what it predicts."""
    run = learn(world, tmp_path, noise, 64 * 8 * 200)
    assert nats_per_token(run) == pytest.approx(math.log(10), abs=0.03)
    assert nats_per_token(run) > math.log(10) - 0.005
    assert min(line["loss"] for line in metrics(run)) > math.log(10) - 0.1


def test_the_first_loss_is_that_of_a_model_that_knows_nothing(world: World) -> None:
    """A2."""
    first = metrics(world.base)[0]
    assert first["loss"] == pytest.approx(math.log(300), abs=0.1)
    assert metrics(world.base)[-1]["loss"] < first["loss"] - 1


def test_one_batch_is_memorised(world: World, tmp_path: Path) -> None:
    """A4: a corpus of one batch of noise, many times."""
    corpus = write_texts(tmp_path / "corpus.jsonl", [noise(64 * 4 + 1, 3)])
    config = replace(PRETRAIN, width=64, hidden=128, batch=4, tokens=64 * 4 * 200)
    pretrain(world.tokenizer, (corpus,), tmp_path / "out", config=config)
    assert results(tmp_path / "out")["steps"] == 200
    assert metrics(tmp_path / "out")[-1]["loss"] < 0.01


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_is_in_exactly_one_optimizer(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: Any
) -> None:
    """Recorded where the optimizer takes its step."""
    seen: list[Any] = []
    step = optimizer_module.clipped_step
    monkeypatch.setattr(optimizer_module, "clipped_step", lambda o, p, c: step(seen.append(o) or o, [*p], c))
    made: list[GPT] = []
    initialise = GPT.initialise
    monkeypatch.setattr(GPT, "initialise", lambda self, g: made.append(self) or initialise(self, g))
    config = replace(PRETRAIN, tokens=64 * 8, optimizer=optimizer)
    pretrain(world.tokenizer, (world.corpus,), tmp_path / "out", config=config)
    groups = [group for one in seen[0] for group in one.param_groups]
    inside = [p for group in groups for p in group["params"]]
    assert sorted(map(id, inside)) == sorted(id(p) for p in made[0].parameters())
    if optimizer == "muon":  # query, key and value together, out, gate and up together, down: and nothing else
        assert {tuple(p.shape) for p in groups[0]["params"]} == {(64, 32), (32, 32), (96, 32), (32, 48)}


def test_bits_per_byte_by_hand() -> None:
    """A model that always says the same distribution, on four tokens of 1, 2, 3 and 0 bytes."""
    shares = [0.5, 0.25, 0.125, 0.125]
    sizes = [1, 2, 3, 0]  # token 3 ends a document: it has no bytes, but its loss counts
    ids = stream([[0, 1, 2], [2, 2], [1, 0]], 3)  # 0 1 2 3 2 2 3 1 0 3

    class Constant:
        config = type("Shape", (), {"context": 4})
        embedding = type("Table", (), {"weight": torch.zeros(1)})
        head_weight = torch.tensor(shares).log()[:, None]

        def trunk(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.ones(*ids.shape, 1)

    targets = [1, 2, 3, 2, 2, 3, 1, 0]  # two windows of four; the last token fills no window
    bits = sum(-math.log2(shares[t]) for t in targets)
    size = sum(sizes[t] for t in targets)
    assert (bits, size) == (2 + 3 + 3 + 3 + 3 + 3 + 2 + 1, 2 + 3 + 3 + 3 + 2 + 1)
    measured = bits_per_byte(Constant(), ids, sizes, 99, 4)  # type: ignore[arg-type]
    assert measured == pytest.approx(20 / 14, rel=1e-6)
    assert bits_per_byte(Constant(), ids, sizes, 1, 4) == pytest.approx(11 / 8, rel=1e-6)  # type: ignore[arg-type]


def test_bits_per_byte_is_what_transformers_finds(world: World) -> None:
    """The logged figure, recomputed on the saved folder by another library on the same windows."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(world.base).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(world.base)
    separator = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids: list[int] = []
    for line in world.heldout.read_text().splitlines():
        ids += [*tokenizer(json.loads(line)["text"]).input_ids, separator]
    nats, size = 0.0, 0
    for row in range(PRETRAIN.heldout_windows):
        piece = torch.tensor([ids[row * 64 : row * 64 + 65]])
        with torch.no_grad():
            logits = theirs(piece[:, :-1]).logits[0]
        nats += float(torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum"))
        size += sum(len(tokenizer.decode([i]).encode()) for i in piece[0, 1:].tolist() if i != separator)
    assert results(world.base)["heldout_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_an_epoch_shows_every_window_once(world: World) -> None:
    """T6: with a budget of two epochs each window comes twice, in two orders."""
    ids = np.arange(64 * 16 + 1, dtype=np.int32)
    config = replace(PRETRAIN, tokens=64 * 32)
    order = window_order(ids, config, torch.Generator().manual_seed(0)).tolist()
    assert sorted(order[:16]) == sorted(order[16:]) == list(range(16))
    assert order[:16] != order[16:]


def test_same_seed_same_bytes_other_seed_other_bytes(world: World, tmp_path: Path) -> None:
    config = replace(PRETRAIN, tokens=64 * 8 * 3)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(world.tokenizer, (world.corpus,), tmp_path / name, config=replace(config, seed=seed))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_the_saved_model_is_the_trained_one(world: World) -> None:
    """transformers reads the folder, and its logits are ours."""
    ours, tokenizer = load_policy(world.base, choose_device("cpu", "fp32"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(world.base).eval()
    ids = torch.tensor([tokenizer.encode("Ann: where is the cat?\nBob: it is")])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokens": 64 * 7}, "the corpus holds .* windows of 64 tokens and the budget 0, one batch needs 8"),
        ({"heads": 3, "kv_heads": 2}, "3 heads .*; change --heads"),
        ({"context": 100_000, "tokens": 10_000_000}, "the corpus holds 0 windows"),
    ],
)
def test_settings_that_disagree(world: World, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    config = PretrainConfig(**({**SHAPE, "tokens": 64 * 8, "batch": 8} | changed))
    with pytest.raises(InputError, match=said):
        pretrain(world.tokenizer, (world.corpus,), tmp_path / "out", config=config)
    assert not (tmp_path / "out" / "model.safetensors").exists()
