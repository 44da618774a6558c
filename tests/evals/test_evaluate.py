"""The table of models: each figure recomputed from the responses by other code, and what holds by definition."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from world import World, interrupted, named, results, rl_inputs

from tutelage.data.panel import Panel
from tutelage.errors import InputError
from tutelage.evals.bench import Bench, EvaluateConfig, ModelOutput, open_bench
from tutelage.evals.evaluate import evaluate
from tutelage.evals.judging import Responses, another_prompt, figures, logprobs, measure, own_and_other
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.runs.device import choose_device
from tutelage.sampling.sampler import Response
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
    """Two trained policies: their KL from SFT is not 0."""
    folder = tmp_path_factory.mktemp("policies")
    config = PPOConfig(
        iterations=3, batch=8, minibatch=8, max_tokens=24, max_prompt=32, ptx_windows=2, lr=3e-3, kl_budget=1e9,
        dtype="fp32",
    )  # fmt: skip
    ppo(rl_inputs(world, folder / "ppo-ptx"), config)
    ppo(replace(rl_inputs(world, folder / "ppo"), corpus=()), replace(config, ptx=False))
    return folder / "ppo", folder / "ppo-ptx"


def run_evaluate(
    world: World, policies: tuple[Path, ...], out: Path, config: EvaluateConfig = CONFIG
) -> dict[str, Any]:
    evaluate(
        policies, out, (world.prompts_test,), (), world.sft, world.base, named(world.reward), world.panel,
        (world.heldout,), config,
    )  # fmt: skip
    return json.loads((out / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def report(world: World, policies: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All responses are written to the file, so that every figure can be recomputed."""
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


def test_undefined_figures_are_null(report: dict[str, Any]) -> None:
    models = report["models"]
    assert models["sft"]["gold_win_rate_ci"] is None
    for name in MODELS:
        bound = name.startswith("best-of-")
        assert models[name]["kl_is_bound"] is bound
        assert (models[name]["bits_per_byte"] is None) is bound


def test_sft_has_no_kl_from_itself(report: dict[str, Any]) -> None:
    assert report["models"]["sft"]["kl"] == 0.0
    assert report["models"]["sft"]["gold_win_rate"] == 0.5


def test_sft_under_another_name_is_sft(world: World, tmp_path: Path) -> None:
    """Its KL is 0, every comparison is a tie, and its responses are the same."""
    twin = tmp_path / "twin"
    twin.symlink_to(world.sft)
    models = run_evaluate(world, (twin,), tmp_path / "out")["models"]
    assert models["twin"]["kl"] == pytest.approx(0.0, abs=1e-5)  # sampling and scoring round differently
    assert models["twin"]["gold_win_rate"] == 0.5
    assert models["twin"]["gold_win_rate_ci"] == [0.5, 0.5]
    same = KEYS - {"gold_win_rate_ci", "kl"}
    assert {k: models["twin"][k] for k in same} == {k: models["sft"][k] for k in same}


def test_bounds_of_best_of_n(report: dict[str, Any]) -> None:
    """log n - (n - 1)/n: .6363 for 4, 1.8351 for 16. The reward rises with n."""
    models = report["models"]
    assert models["best-of-4"]["kl"] == pytest.approx(0.6363, abs=1e-4)
    assert models["best-of-16"]["kl"] == pytest.approx(1.8351, abs=1e-4)
    assert models["best-of-16"]["reward"] > models["best-of-4"]["reward"] > models["sft"]["reward"]


def test_gold_and_win_rates_recomputed(world: World, report: dict[str, Any]) -> None:
    """From the responses in the file, with the panel's score of each."""
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


def test_prompts_come_from_the_pool_and_at_most_two_from_a_conversation(world: World, report: dict[str, Any]) -> None:
    pool = [json.loads(line) for line in world.prompts_test.read_text().splitlines()]
    by_text: dict[str, list[str]] = {}
    for record in pool:
        by_text.setdefault(json.dumps(record["prompt"]), []).append(record["conversation"])
    taken: dict[str, int] = {}
    for sample in report["samples"]:
        conversations = set(by_text[json.dumps(sample["prompt"])])
        if len(conversations) == 1:  # some questions occur in several
            taken[min(conversations)] = taken.get(min(conversations), 0) + 1
    assert taken and max(taken.values()) <= 2


class Fixed:
    """The parts of a bench that the scorers use, with a small random model."""

    def __init__(self, prompts: list[list[int]]):
        shape = GPTConfig(
            vocab_size=20, width=16, layers=1, heads=2, kv_heads=1, head_width=8, hidden=24, context=32, qk_norm=True
        )
        self.model = GPT(shape).initialise(torch.Generator().manual_seed(0))
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        self.model.eval()
        tokenizer: Any = type("Words", (), {"pad_id": 0})
        rest: Any = [None] * 6
        self.bench = Bench(tokenizer, [], prompts, *rest, config=CONFIG)

    @torch.no_grad()
    def logprob(self, prompt: list[int], response: list[int]) -> float:
        """By definition: each token's log-probability given everything before it, one forward pass per token."""
        total = 0.0
        for t in range(len(response)):
            logits = self.model(torch.tensor([[*prompt, *response[:t]]]))[0, -1]
            total += float(logits.log_softmax(-1)[response[t]])
        return total


PROMPTS = [[3, 4, 5], [6, 7], [11]]
RESPONSES = [
    [[8, 9, 2], [8, 9, 2]],
    [[10, 2], [10, 12, 13, 2]],
    [[12, 13, 14], [2]],
]  # [prompt][response]; one occurs twice


def as_responses(ids_by_prompt: list[list[list[int]]]) -> Responses:
    return [[Response(ids, [], True) for ids in group] for group in ids_by_prompt]


def test_logprobs_by_hand() -> None:
    fixed = Fixed(PROMPTS)
    expected = [[fixed.logprob(p, ids) for ids in group] for p, group in zip(PROMPTS, RESPONSES, strict=True)]
    measured = logprobs(fixed.bench, fixed.model, as_responses(RESPONSES))
    torch.testing.assert_close(measured, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_after_another_prompt_by_hand() -> None:
    """Three prompts: one of the two cycles, the same for all models. Two prompts: they swap."""
    for count in (2, 3):
        fixed, responses = Fixed(PROMPTS[:count]), RESPONSES[:count]
        own, other = own_and_other(fixed.bench, fixed.model, as_responses(responses))
        hosts = another_prompt(count, CONFIG.seed)
        assert sorted(hosts) == list(range(count)) and all(host != i for i, host in enumerate(hosts))
        for i, group in enumerate(responses):
            for k, ids in enumerate(group):
                assert float(own[i, k]) == pytest.approx(fixed.logprob(PROMPTS[i], ids), rel=1e-5)
                assert float(other[i, k]) == pytest.approx(fixed.logprob(PROMPTS[hosts[i]], ids), rel=1e-5)


def test_figures_by_hand() -> None:
    """Two prompts; every expected number follows from the few given here."""
    bench: Any = type("B", (), {})()
    bench.tokenizer = type("Words", (), {"decode": staticmethod(lambda ids: " ".join(map(str, ids)))})
    bench.panel = type("P", (), {"utility": staticmethod(lambda prompt, text: float(len(text)))})
    bench.prompts, bench.config = [type("Q", (), {"prompt": []})] * 2, replace(CONFIG, best_of=(2,))

    def one(*ids: int, logprob: float) -> Response:
        return Response(list(ids), [logprob] * len(ids), True)

    sft = ModelOutput(
        [one(1, logprob=-1.0), one(2, logprob=-2.0)],
        [[one(3, 4, logprob=0), one(5, logprob=0)], [one(6, logprob=0), one(7, 8, logprob=0)]],
        1.5,
    )
    ppo = ModelOutput([one(1, 2, logprob=-0.5), one(3, 4, logprob=-1.5)], [[], []], 2.5)
    scores = {
        "reward": torch.tensor([[0.0, 5.0, 3.0, 7.0], [1.0, 2.0, 4.0, 9.0]]),  # sft, its candidates, ppo
        "sft": torch.tensor([[[-1.0, -3.0, -4.0], [-2.0, -2.5, -5.0]], [[-2.0, -3.5, -3.0], [-1.0, -4.0, -6.0]]]),
        "base": torch.tensor([[-1.0, -2.0, -6.0], [-5.0, -3.0, -2.0]]),
    }
    rows = figures(bench, {"sft": sft, "ppo": ppo}, scores)
    assert list(rows) == ["sft", "best-of-2", "ppo"]
    assert rows["best-of-2"]["texts"] == ["3 4", "7 8"]
    assert [row["reward"] for row in rows.values()] == [0.5, 4.5, 8.0]
    assert [row["kl"] for row in rows.values()] == [0.0, pytest.approx(math.log(2) - 0.5), (3.0 + 2.0) / 2]
    assert [row["answer_fit"] for row in rows.values()] == [0.5, 1.0, 0.5]
    assert [row["nats_under_base"] for row in rows.values()] == [6 / 2, 5 / 4, 8 / 4]
    assert [row["bits_per_byte"] for row in rows.values()] == [1.5, None, 2.5]


def test_one_model_measured_alone(world: World, policies: tuple[Path, Path], report: dict[str, Any]) -> None:
    """`measure`, which benchmarks/reward_kl.py uses, gives the figures of the table."""
    files = (world.base, world.sft, named(world.reward), world.panel, (world.prompts_test,), (world.heldout,))
    row = measure(open_bench(CONFIG, choose_device("cpu", "fp32"), *files), policies[1])
    expected = report["models"]["ppo-ptx"]
    assert set(expected) - set(row) == {"gold_win_rate", "gold_win_rate_ci"}
    for name in set(row) & set(expected):
        assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_kl_and_length_recomputed(
    world: World, policies: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy's responses, caught as they are sampled, under the two models as transformers loads them."""
    from tutelage.evals import bench as stage

    caught: list[Any] = []
    generate = stage.generate

    def catching(model: Any, prompts: Any, *rest: Any) -> Any:
        responses = generate(model, prompts, *rest)
        caught.append((prompts, responses))
        return responses

    monkeypatch.setattr(stage, "generate", catching)
    models = run_evaluate(world, policies, tmp_path / "out", replace(CONFIG, best_of=()))["models"]
    assert len(caught) == 4  # base, sft, ppo, ppo-ptx: 20 prompts are one batch
    mine, sft = (transformers.AutoModelForCausalLM.from_pretrained(run) for run in (policies[1], world.sft))
    log_ratios, lengths, ended = [], [], []
    for prompt, (response,) in zip(*caught[3], strict=True):
        ids = torch.tensor([[*prompt, *response.ids]])
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
        log_ratios.append(own - theirs)
        lengths.append(len(response.ids))
        ended.append(response.ids[-1] == 5)
    row = models["ppo-ptx"]
    assert row["kl"] == pytest.approx(sum(log_ratios) / 20, abs=1e-3)
    assert row["kl"] != 0.0
    assert row["length"] == sum(lengths) / 20
    assert row["end_of_turn_rate"] == sum(ended) / 20
    # Every model got the same prompts.
    assert all(prompts == caught[0][0] for prompts, _ in caught)


def test_bits_per_byte_is_the_pretraining_stages(world: World, report: dict[str, Any]) -> None:
    """The base model's figure, on the same windows, was logged when it was trained."""
    assert report["models"]["base"]["bits_per_byte"] == pytest.approx(
        results(world.base)["heldout_bits_per_byte"], rel=1e-6
    )
    assert all(math.isfinite(report["models"][name]["bits_per_byte"]) for name in ("sft", "ppo", "ppo-ptx"))


def test_a_stopped_evaluation_resumes(
    world: World, policies: tuple[Path, Path], report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while a model responds, and while a scorer scores."""
    out = tmp_path / "out"
    config = replace(CONFIG, samples=20)
    for step in (3, 5):
        interrupted(lambda: run_evaluate(world, policies, out, config), monkeypatch, step)
    assert not (out / "evaluation.json").exists()
    run_evaluate(world, policies, out, config)
    assert (out / "evaluation.json").read_bytes() == (report["out"] / "evaluation.json").read_bytes()


def test_two_models_of_one_name(world: World, tmp_path: Path) -> None:
    """They are told apart by the folders that they are in; the same run twice is a mistake."""
    for name in ("a/ppo", "b/ppo", "sft"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(world.sft)
    given = tuple(tmp_path / name for name in ("a/ppo", "b/ppo", "sft"))
    report = run_evaluate(world, given, tmp_path / "out", replace(CONFIG, best_of=(), count=4))
    assert list(report["models"]) == ["base", "sft", "a/ppo", "b/ppo", f"{tmp_path.name}/sft"]
    with pytest.raises(InputError, match="a run is given twice"):
        run_evaluate(world, (given[0], given[0]), tmp_path / "twice")
