"""The table of models: each figure recounted from the answers by other code, and what must hold by definition."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from world import World, interrupted, named, results

from tutelage.data.panel import Panel
from tutelage.errors import InputError
from tutelage.evals.evaluate import Bench, EvaluateConfig, answer_fit, evaluate, nats_under_base
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.sampling.sampler import Answer
from tutelage.stages.ppo import PPOConfig, ppo

transformers = pytest.importorskip("transformers")

CONFIG = EvaluateConfig(count=20, max_tokens=24, max_prompt=32, heldout_windows=4, samples=3, dtype="fp32")

KEYS = {
    "gold_win_rate", "gold_win_rate_ci", "gold", "reward", "kl", "kl_is_bound", "bits_per_byte", "length",
    "end_of_turn_rate", "distinct_1", "distinct_2", "answer_fit", "nats_under_base",
}  # fmt: skip
MODELS = ["base", "sft", "best-of-4", "best-of-16", "ppo", "ppo-ptx"]


@pytest.fixture(scope="module")
def policies(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two policies that have moved."""
    folder = tmp_path_factory.mktemp("policies")
    config = PPOConfig(
        iterations=3, batch=8, minibatch=8, max_tokens=24, max_prompt=32, ptx_windows=2, lr=3e-3, kl_budget=1e9,
        dtype="fp32",
    )  # fmt: skip
    ppo(world.sft, named(world.reward), (world.prompts,), folder / "ppo-ptx", (world.corpus,), config=config)
    ppo(world.sft, named(world.reward), (world.prompts,), folder / "ppo", (), config=replace(config, ptx=False))
    return folder / "ppo", folder / "ppo-ptx"


def run_evaluate(
    world: World, policies: tuple[Path, ...], out: Path, config: EvaluateConfig = CONFIG
) -> dict[str, Any]:
    evaluate(
        policies, world.base, world.sft, named(world.reward), world.panel, (world.prompts_test,), (world.heldout,), out,
        config,
    )  # fmt: skip
    return json.loads((out / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def report(world: World, policies: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All answers are printed, so that every figure can be recounted."""
    out = tmp_path_factory.mktemp("evaluate") / "out"
    return run_evaluate(world, policies, out, replace(CONFIG, samples=20)) | {"out": out}


def test_the_keys_are_those_of_the_contract(report: dict[str, Any]) -> None:
    assert set(report) - {"out"} == {"models", "samples", "prompts", "panel"}
    assert list(report["models"]) == MODELS
    for name, row in report["models"].items():
        assert set(row) == KEYS, name
    assert report["prompts"] == 20
    assert len(report["panel"]) == 64
    for sample in report["samples"]:
        assert set(sample) == {"prompt", "answers"}
        assert list(sample["answers"]) == MODELS
        assert sample["prompt"][-1]["role"] == "user"
    assert results(report["out"]) == {name: report["models"][name]["gold_win_rate"] for name in MODELS}


def test_what_is_undefined_is_null(report: dict[str, Any]) -> None:
    models = report["models"]
    assert models["sft"]["gold_win_rate_ci"] is None
    for name in MODELS:
        bound = name.startswith("best-of-")
        assert models[name]["kl_is_bound"] is bound
        assert (models[name]["bits_per_byte"] is None) is bound


def test_sft_is_not_far_from_itself(report: dict[str, Any]) -> None:
    assert report["models"]["sft"]["kl"] == 0.0
    assert report["models"]["sft"]["gold_win_rate"] == 0.5


def test_sft_under_another_name_is_sft(world: World, tmp_path: Path) -> None:
    """Its KL is exactly 0, it ties with itself everywhere, and says the same."""
    twin = tmp_path / "twin"
    twin.symlink_to(world.sft)
    found = run_evaluate(world, (twin,), tmp_path / "out")["models"]
    assert found["twin"]["kl"] == 0.0
    assert found["twin"]["gold_win_rate"] == 0.5
    assert found["twin"]["gold_win_rate_ci"] == [0.5, 0.5]
    same = KEYS - {"gold_win_rate_ci"}
    assert {k: found["twin"][k] for k in same} == {k: found["sft"][k] for k in same}


def test_bounds_of_best_of_n(report: dict[str, Any]) -> None:
    """log n - (n - 1)/n: .6363 for 4, 1.8351 for 16; and the more to choose from, the better the reward."""
    models = report["models"]
    assert models["best-of-4"]["kl"] == pytest.approx(0.6363, abs=1e-4)
    assert models["best-of-16"]["kl"] == pytest.approx(1.8351, abs=1e-4)
    assert models["best-of-16"]["reward"] > models["best-of-4"]["reward"] > models["sft"]["reward"]


def test_gold_and_win_rates_recounted(world: World, report: dict[str, Any]) -> None:
    """From the printed answers, with the panel's score of each."""
    panel = Panel.load(world.panel)
    gold = {name: [panel.utility(s["prompt"], s["answers"][name]) for s in report["samples"]] for name in MODELS}
    for name in MODELS:
        row = report["models"][name]
        assert row["gold"] == pytest.approx(sum(gold[name]) / 20)
        wins = [0.5 if abs(a - b) < 1e-9 else float(a > b) for a, b in zip(gold[name], gold["sft"], strict=True)]
        assert row["gold_win_rate"] == pytest.approx(sum(wins) / 20)
        if row["gold_win_rate_ci"]:
            low, high = row["gold_win_rate_ci"]
            assert 0 <= low <= row["gold_win_rate"] <= high <= 1


def test_prompts_are_the_pools_and_at_most_two_of_a_conversation(world: World, report: dict[str, Any]) -> None:
    pool = [json.loads(line) for line in world.prompts_test.read_text().splitlines()]
    by_text: dict[str, list[str]] = {}
    for record in pool:
        by_text.setdefault(json.dumps(record["prompt"]), []).append(record["conversation"])
    taken: dict[str, int] = {}
    for sample in report["samples"]:
        conversations = set(by_text[json.dumps(sample["prompt"])])
        if len(conversations) == 1:  # some questions stand in several
            taken[min(conversations)] = taken.get(min(conversations), 0) + 1
    assert taken and max(taken.values()) <= 2


class Fixed:
    """The parts of a bench that answer_fit looks at, with a model that transformers has as well."""

    def __init__(self, prompts: list[list[int]]):
        shape = GPTConfig(
            vocab_size=20, width=16, layers=1, heads=2, kv_heads=1, head_width=8, hidden=24, context=32, qk_norm=True
        )
        self.model = GPT(shape).initialise(torch.Generator().manual_seed(0))
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        words: Any = type("Words", (), {"pad_id": 0})
        self.bench = Bench(words, [], prompts, self.model.eval(), self.model, None, None, CONFIG)  # type: ignore[arg-type]

    @torch.no_grad()
    def logprob(self, prompt: list[int], answer: list[int]) -> float:
        """By definition: each token's log-probability given everything before it, one forward pass a token."""
        total = 0.0
        for t in range(len(answer)):
            logits = self.model(torch.tensor([[*prompt, *answer[:t]]]))[0, -1]
            total += float(logits.log_softmax(-1)[answer[t]])
        return total


def test_nats_under_base_by_hand() -> None:
    fixed = Fixed([[1, 2, 3], [4, 5]])
    answers = [[6, 7, 8, 9], [10, 11]]
    expected = -sum(fixed.logprob(p, a) for p, a in zip(fixed.bench.asked, answers, strict=True)) / 6
    measured = nats_under_base(fixed.bench, [Answer(a, [], True) for a in answers])
    assert measured == pytest.approx(expected, rel=1e-5)


def test_answer_fit_by_hand() -> None:
    """Two prompts: the only shuffle is to swap them. Three answers: one of the two cycles."""
    prompts, answers = [[3, 4, 5], [6, 7]], [[8, 9, 2], [10, 2]]
    fixed = Fixed(prompts)
    better = [fixed.logprob(prompts[i], answers[i]) > fixed.logprob(prompts[1 - i], answers[i]) for i in range(2)]
    assert fit_of(fixed, prompts, answers) == sum(better) / 2
    prompts, answers = [[3, 4, 5], [6, 7], [11]], [[8, 9, 2], [10, 2], [12, 13, 14]]
    fixed = Fixed(prompts)
    cycles = [
        sum(fixed.logprob(prompts[i], answers[i]) > fixed.logprob(prompts[(i + d) % 3], answers[i]) for i in range(3))
        / 3
        for d in (1, 2)
    ]
    assert fit_of(fixed, prompts, answers) in cycles


def fit_of(fixed: Fixed, prompts: list[list[int]], answers: list[list[int]]) -> float:
    own = torch.tensor([fixed.logprob(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
    return answer_fit(fixed.bench, [Answer(a, [], True) for a in answers], own)


def test_kl_and_length_recounted(
    world: World, policies: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy's own answers, caught as they are sampled, under transformers' two models."""
    from tutelage.evals import evaluate as stage

    caught: list[Any] = []
    generate = stage.generate

    def catching(model: Any, asked: Any, *given: Any) -> Any:
        found = generate(model, asked, *given)
        caught.append((asked, found))
        return found

    monkeypatch.setattr(stage, "generate", catching)
    found = run_evaluate(world, policies, tmp_path / "out", replace(CONFIG, best_of=()))["models"]
    assert len(caught) == 4  # base, sft, ppo, ppo-ptx: 20 prompts are one batch
    mine, sft = (transformers.AutoModelForCausalLM.from_pretrained(run) for run in (policies[1], world.sft))
    drift, lengths, ended = [], [], []
    for prompt, (answer,) in zip(*caught[3], strict=True):
        ids = torch.tensor([[*prompt, *answer.ids]])
        with torch.no_grad():
            own, theirs = (
                m(ids)
                .logits[0, len(prompt) - 1 : -1]
                .log_softmax(-1)
                .gather(1, ids[0, len(prompt) :, None])
                .sum()
                .item()
                for m in (mine, sft)
            )
        drift.append(own - theirs)
        lengths.append(len(answer.ids))
        ended.append(answer.ids[-1] == 5)
    row = found["ppo-ptx"]
    assert row["kl"] == pytest.approx(sum(drift) / 20, abs=1e-3)
    assert row["kl"] != 0.0
    assert row["length"] == sum(lengths) / 20
    assert row["end_of_turn_rate"] == sum(ended) / 20
    # Every model got the same prompts, and the same luck: SFT's answers are the same whatever else is measured.
    assert all(asked == caught[0][0] for asked, _ in caught)


def test_bits_per_byte_is_the_pretraining_stages(world: World, report: dict[str, Any]) -> None:
    """The base model's figure, on the same windows, was logged when it was trained."""
    assert report["models"]["base"]["bits_per_byte"] == pytest.approx(
        results(world.base)["heldout_bits_per_byte"], rel=1e-6
    )
    assert all(math.isfinite(report["models"][name]["bits_per_byte"]) for name in ("sft", "ppo", "ppo-ptx"))


def test_a_stopped_evaluation_goes_on(
    world: World, policies: tuple[Path, Path], report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    config = replace(CONFIG, samples=20)
    interrupted(lambda: run_evaluate(world, policies, out, config), monkeypatch, 3)
    assert not (out / "evaluation.json").exists()
    run_evaluate(world, policies, out, config)
    assert (out / "evaluation.json").read_bytes() == (report["out"] / "evaluation.json").read_bytes()


def test_two_models_of_one_name(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="same folder name"):
        run_evaluate(world, (tmp_path / "a" / "ppo", tmp_path / "b" / "ppo"), tmp_path / "out")
