"""report.html and summary.json of a made-up recipe: complete, escaped, self-contained, reproducible."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.errors import InputError
from tutelage.recipe.report import ReportConfig, number, report, spelled_out
from tutelage.recipe.summary import write_summary

MODELS = ["base", "sft", "best-of-4", "best-of-16", "ppo", "ppo-ptx"]
FOLDERS = {
    "data": "data", "tokenizer": "tokenizer", "pretrain": "base", "sft": "sft", "rank": "comparisons.run",
    "reward": "reward", "ppo": "ppo", "ppo-ptx": "ppo-ptx", "evaluate": "evaluate",
}  # fmt: skip
SECONDS = {
    "data": 6.1, "tokenizer": 4.2, "pretrain": 151.0, "sft": 74.0, "rank": 22.0, "reward": 36.0, "ppo": 81.0,
    "ppo-ptx": 96.0, "evaluate": 33.0, "report": 2.5,
}  # fmt: skip
HOSTILE = "</dd><script>alert('&')</script> <img src=x onerror=alert(1)> {{ 7 * 7 }}"
VOID = {"meta", "link", "input", "br", "img", "hr"}


# --- a made-up recipe


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def make_recipe(folder: Path) -> Path:
    """A folder as the demo leaves it, with curves of the shapes that real runs have."""
    for stage, name in FOLDERS.items():
        write_json(folder / name / "run.json", run_record(folder, stage))
        lines = "".join(json.dumps(line) + "\n" for line in metrics(stage))  # json writes NaN, as a run's log does
        (folder / name / "metrics.jsonl").write_text(lines, encoding="utf-8")
    write_json(folder / "data" / "report.json", data_report())
    write_json(folder / "evaluate" / "evaluation.json", evaluation())
    measured = {stage: {"seconds": s, "peak_memory_bytes": 10**9 + int(s * 5e6)} for stage, s in SECONDS.items()}
    demo = {"seed": 3, "gemm_gflops": {"fp32": 92.1, "bf16": 240.5}, "stages": measured, "total_seconds": 507.8}
    write_json(folder / "demo.json", demo)
    return folder


def run_record(folder: Path, stage: str) -> dict[str, Any]:
    parents = {
        "sft": "base",
        "rank": "sft",
        "reward": "sft",
        "ppo": "reward",
        "ppo-ptx": "reward",
        "pretrain": "tokenizer",
    }
    results = {
        "pretrain": {"heldout_bits_per_byte": 1.61, "parameters": 4_200_192},
        "rank": {"prompts": 600, "comparisons": 780, "strict_pairs": 4561, "agreement": 0.728},
        "reward": {
            "accuracy": 0.694,
            "ceiling": 0.742,
            "length_matched_accuracy": 0.671,
            "heldout_loss": 0.59,
            "heldout_pairs": 702,
        },
        "tokenizer": {
            "vocab_size": 4096,
            "languages": {
                "en": {"documents": 4800, "bytes": 3_400_000, "tokens": 980_000, "bytes_per_token": 3.469},
                "zh": {"documents": 444, "bytes": 30_100, "tokens": 9_100, "bytes_per_token": 3.308},
            },
        },
    }
    source = {
        "path": str(folder / parents.get(stage, "../elsewhere/corpus.jsonl")),
        "sha256": f"{stage:x<6}".encode().hex() * 5,
    }
    return {
        "stage": stage,
        "config": {"seed": 3, "lr": 3e-4, "batch": 16, "device": "auto"}
        | ({"kl_budget": 8.0} if "ppo" in stage else {}),
        "inputs": {"policy": source},
        "fingerprint": "fedcba9876543210" * 4,
        "package_version": "0.1.0",
        "device": {"kind": "cpu", "dtype": "bfloat16", "threads": 2, "machine": "x86_64"},
        "finished": "2026-03-02T10:00:00+00:00",
        "wall_seconds": 1.25,
        "peak_memory_bytes": 2**30,
        "results": results.get(stage, {}),
    }


def metrics(stage: str) -> Iterator[dict[str, Any]]:
    noise = np.random.default_rng(len(stage)).normal
    if stage in ("pretrain", "sft", "reward"):
        start, end, steps = {"pretrain": (8.3, 3.6, 240), "sft": (3.9, 2.9, 120), "reward": (0.72, 0.57, 45)}[stage]
        for step in range(1, steps + 1):
            done = step / steps
            loss = end + (start - end) * math.exp(-6 * done) + noise(0, 0.03 * end)
            line = {"step": step, "time": step * 0.6, "loss": loss, "lr": 1e-3, "grad_norm": 1.0}
            line |= {"accuracy": 0.7 - 0.2 * math.exp(-5 * done) + noise(0, 0.04)} if stage == "reward" else {}
            if step % 20 == 0 or step == steps:
                line |= {"pretrain": {"heldout_bits_per_byte": loss * 0.45}, "sft": {"heldout_loss": loss + 0.03}}.get(
                    stage, {}
                )
            yield line
    elif stage in ("ppo", "ppo-ptx"):
        mixed = stage == "ppo-ptx"
        for step in range(1, 31):
            kl = (6.4 if mixed else 8.4) * (1 - math.exp(-step / 12)) + noise(0, 0.15)
            line = {
                "step": step, "time": step * 3.0, "score": 1.9 * (1 - math.exp(-step / 9)) + noise(0, 0.12), "kl": kl,
                "length": 11 + step / 5 + noise(0, 0.4), "end_of_turn_rate": min(1.0, 0.9 + step / 300),
                "entropy": 3.9 - step * 0.02, "clip_fraction": 0.06 + noise(0, 0.01),
                "explained_variance": -7.0 if step == 1 else 0.6 - 0.8 / step,
                "grad_norm": float("nan") if step == 2 else 0.9,
            }  # fmt: skip
            yield line | ({"ptx_gradient_ratio": 1 + noise(0, 0.1), "ptx_loss": 3.6 + 0.004 * step} if mixed else {})


def data_report() -> dict[str, Any]:
    splits = ("train", "valid", "test")
    return {
        "chitchat": {"conversations": 7168, "dropped_not_two_speakers": 3151, "kept": 4017},
        "redactions": {"phone": 4, "url": 87, "email": 4},
        "conversations": {"train": 3716, "valid": 57, "crossing": 75, "test": 169},
        "people": {"train": 1076, "valid": 38, "test": 81},
        "questions": {split: {"en": 1827, "zh": 444} for split in splits},
        "duplicates": {"corpus.train": 1016, "prompts.train": 115},
        "written": {f"{kind}.{split}": 5309 for kind in ("corpus", "demonstrations", "prompts") for split in splits},
        "panel": {"constants": "ab" * 32, "rating_correlation": {"conversations": 2183, "witty": -0.0445}},
    }


def evaluation() -> dict[str, Any]:
    rates = [0.148, 0.5, 0.664, 0.781, 0.741, 0.713]
    kls = [None, 0.0, math.log(4) - 3 / 4, math.log(16) - 15 / 16, 7.73, 6.12]
    models = {
        model: {
            "gold_win_rate": rate, "gold_win_rate_ci": [rate - 0.045, rate + 0.044] if model != "sft" else None,
            "gold": rate * 2 - 1, "reward": rate * 3 - 1.4, "kl": kl, "kl_is_bound": model.startswith("best"),
            "bits_per_byte": None if model.startswith("best") else 1.61 + 0.1 * (model == "ppo"),
            "length": 9 + 8 * rate,
            "end_of_turn_rate": 0.93, "distinct_1": 0.31, "distinct_2": 0.74,
            "answer_fit": rate if rate > 0.2 else None, "nats_under_base": 2.5 + rate,
        }
        for model, rate, kl in zip(MODELS, rates, kls)
    }  # fmt: skip
    models["base"]["reward"] = float("nan")
    said = [
        ("hey! how are you doing today?", "i'm good, thank you! what about you?"),
        ("do you have any pets", "yes, i have a dog. she is a good girl and she loves to run around in the park!"),
        ("i just moved to a new city and i don't know anybody here yet", "oh nice! where did you move to?"),
    ]
    samples = []
    for i in range(12):
        user, answer = said[i % 3]
        prompt = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "hi, who is this?"}]
        prompt = (prompt if i % 2 else []) + [{"role": "user", "content": HOSTILE if i == 11 else user}]
        answers = {model: answer[: 20 + 12 * k] for k, model in enumerate(MODELS)}
        samples.append({"prompt": prompt, "answers": answers | ({"base": "", "ppo": HOSTILE} if i == 11 else {})})
    return {"models": models, "samples": samples, "prompts": 300, "panel": "ab" * 32}


# --- the page


class Page(HTMLParser):
    """Checks that tags are balanced while it collects what is on the page."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, text: str) -> None:
        self.words += text


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_recipe(tmp_path_factory.mktemp("runs") / "demo")
    report(folder, ReportConfig())
    return folder


@pytest.fixture(scope="module")
def text(made: Path) -> str:
    return (made / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_page_asks_for_nothing_and_runs_nothing(text: str, page: Page) -> None:
    assert "http:" not in text.replace(HOSTILE, "") and "https:" not in text and "@import" not in text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object", "form", "image"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        places = [attributes.get(name) or "#" for name in ("href", "src", "xlink:href")]
        assert all(place.startswith("#") for place in places), (tag, places)
        assert "url(" not in (attributes.get("style") or "")
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_what_models_and_people_wrote_is_escaped(page: Page) -> None:
    assert page.words.count(HOSTILE) == 2  # once as a prompt and once as a response, shown literally


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("href", "xlink:href", "clip-path", "for"):
            if target := attributes.get(name):
                assert re.sub(r"^(#|url\(#)|\)$", "", target) in ids, (name, target)


def test_everything_is_said_in_both_languages(page: Page) -> None:
    english = [attributes for _, attributes in page.tags if "en" in (attributes.get("class") or "").split()]
    chinese = [attributes for _, attributes in page.tags if "zh" in (attributes.get("class") or "").split()]
    assert len(english) == len(chinese) > 100
    assert {a["lang"] for a in english} == {"en"} and {a["lang"] for a in chinese} == {"zh-Hans"}


def test_every_chart_is_there_and_colours_are_the_pages_own(text: str, page: Page) -> None:
    assert [tag for tag, _ in page.tags].count("svg") == 5 + 9 + 1
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(href|id)="[^"]*"', "", drawn)) and "nan" not in drawn.lower()
    named, defined = set(re.findall(r"var\(--([\w-]+)", text)), set(re.findall(r"--([\w-]+):", text))
    assert named <= defined


def test_a_chart_of_zeros_is_left_out(tmp_path: Path) -> None:
    """Where a rollout makes one step, the clip fraction is always 0: a line on the axis would show nothing."""
    folder = make_recipe(tmp_path / "demo")
    for stage in ("ppo", "ppo-ptx"):
        path = folder / stage / "metrics.jsonl"
        lines = [json.loads(line) | {"clip_fraction": 0.0} for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    report(folder, ReportConfig())
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("svg") == 5 + 8 + 1
    assert "Clip fraction" not in page.words and "Explained variance" in page.words


def test_the_page_explains_its_terms_in_two_sentences_each(text: str) -> None:
    terms = dict(
        re.findall(r'<dt><span class="en" lang="en">(.*?)</span>.*?<dd><span class="en" lang="en">(.*?)</span>', text)
    )
    for term in ("SFT", "Reward", "KL", "Gold", "Alignment tax", "Why PPO-ptx"):
        explained = terms[term] if term != "KL" else text.split("The KL says")[1].split("</span>")[0]
        assert len(re.findall(r"[.](?: |$)", explained)) == 2, term
    assert "Best-of-16 has a gold win rate of" in terms["Why PPO-ptx"]


def test_figures_of_the_table(page: Page) -> None:
    words = " ".join(page.words.split())
    for figure in (
        "71 %",
        "67–76 %",
        "≤ 0.64",
        "≤ 1.84",
        "6.12",
        "8:26",
        "8 min 26 s",
        "8 分 26 秒",
        "69.4 %",
        "74.2 %",
        "4.2M",
        "−0.04",
        "1,076",
    ):
        assert figure in words, figure


def test_zero_is_a_figure_like_any_other(tmp_path: Path) -> None:
    folder = make_recipe(tmp_path / "demo")
    never = evaluation()
    never["models"]["ppo-ptx"] |= {"gold_win_rate": 0.0, "gold_win_rate_ci": [0.0, 0.0], "kl": -0.004}
    write_json(folder / "evaluate" / "evaluation.json", never)
    write_json(folder / "demo.json", {"seed": 0})
    report(folder, ReportConfig())
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "--at: 0.0; --low: 0.0; --high: 0.0" in text and "<strong>0\N{NO-BREAK SPACE}%</strong>" in text
    assert "<td>0.00</td>" in text and "−0.00" not in text  # no minus before zero
    assert "随机种子</span> 0" in text


def test_how_figures_are_written() -> None:
    assert [number(v) for v in (-1.5, 1234.567, -0.001, None, "x")] == ["−1.50", "1,234.57", "0.00", "–", "–"]
    assert spelled_out(45.2, "h", "min", "s") == "0 min 45 s"
    assert spelled_out(3725, "h", "min", "s") == "1 h 2 min 5 s"


def test_the_same_folder_gives_the_same_page(made: Path, text: str) -> None:
    report(made, ReportConfig())
    assert (made / "report.html").read_text(encoding="utf-8") == text


def test_a_page_can_open_in_chinese(made: Path, tmp_path: Path) -> None:
    folder = make_recipe(tmp_path / "demo")
    report(folder, ReportConfig(language="zh"))
    radios = [a for tag, a in Page((folder / "report.html").read_text(encoding="utf-8")).tags if tag == "input"]
    assert [a["id"] for a in radios if "checked" in a] == ["zh"]


def test_paths_of_the_machine_stay_off_the_page(made: Path, text: str) -> None:
    assert str(made.parent) not in text and "corpus.jsonl" in text


# --- summary.json


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def read_summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_summary_has_exactly_the_agreed_keys(made: Path) -> None:
    summary = read_summary(made)
    assert set(summary) == {
        "models", "stages", "reward_model", "total_seconds", "seed", "gemm_gflops", "package_version"
    }  # fmt: skip
    assert list(summary["models"]) == MODELS
    for figures in summary["models"].values():
        assert set(figures) == {
            "gold_win_rate", "gold_win_rate_ci", "reward", "kl", "kl_is_bound", "bits_per_byte", "length",
            "end_of_turn_rate", "distinct_1", "distinct_2", "answer_fit", "nats_under_base",
        }  # fmt: skip
    assert list(summary["stages"]) == list(SECONDS)
    assert all(set(cost) == {"seconds", "peak_memory_bytes"} for cost in summary["stages"].values())
    assert summary["reward_model"] == {"accuracy": 0.694, "ceiling": 0.742}
    assert (summary["total_seconds"], summary["seed"], summary["package_version"]) == (505.8, 3, "0.1.0")
    assert summary["gemm_gflops"] == {"fp32": 92.1, "bf16": 240.5}


def test_summary_figures_are_those_of_the_files(made: Path) -> None:
    summary, models = read_summary(made), evaluation()["models"]
    assert summary["models"]["ppo-ptx"] == {k: v for k, v in models["ppo-ptx"].items() if k != "gold"}
    assert summary["models"]["base"]["reward"] is None  # NaN in the file
    assert summary["stages"]["pretrain"] == {"seconds": 151.0, "peak_memory_bytes": 10**9 + 755_000_000}


def test_without_the_demo_the_runs_own_seconds_count(tmp_path: Path) -> None:
    folder = make_recipe(tmp_path / "demo")
    (folder / "demo.json").unlink()
    write_summary(folder)
    summary = read_summary(folder)
    assert summary["stages"]["sft"] == {"seconds": 1.25, "peak_memory_bytes": 2**30}
    assert summary["stages"]["report"] == {"seconds": None, "peak_memory_bytes": None}
    assert (summary["total_seconds"], summary["seed"], summary["gemm_gflops"]) == (round(9 * 1.25, 1), 3, None)


# --- folders that are not complete


@pytest.mark.parametrize(
    "kept", [["pretrain"], ["data", "tokenizer"], ["evaluate"], ["ppo"], [s for s in FOLDERS if s != "ppo"]]
)
def test_a_missing_stage_is_said_and_the_rest_is_shown(tmp_path: Path, kept: list[str]) -> None:
    folder = make_recipe(tmp_path / "demo")
    (folder / "demo.json").unlink()
    for stage, name in FOLDERS.items():
        if stage not in kept:
            for path in (folder / name).iterdir():
                path.unlink()
    report(folder, ReportConfig())
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    for stage in ("data", "tokenizer", "pretrain", "sft", "reward", "evaluate"):
        assert (f"The stage {stage} has not finished" in page.words) == (stage not in kept), stage
    assert set(read_summary(folder)["models"]) == set(MODELS)


def test_a_run_that_logged_nothing_finite_is_no_chart(tmp_path: Path) -> None:
    folder = make_recipe(tmp_path / "demo")
    lines = [json.dumps({"step": step, "time": 1.0, "score": float("nan"), "kl": float("inf")}) for step in (1, 2)]
    for name in ("ppo", "ppo-ptx"):
        (folder / name / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 3, "sc', encoding="utf-8")
    report(folder, ReportConfig())
    assert "The stage ppo has not finished" in (folder / "report.html").read_text(encoding="utf-8")


def test_findings_are_shown_and_so_is_their_absence(tmp_path: Path) -> None:
    """A run without a monitor, from an older version, has neither."""
    folder = make_recipe(tmp_path / "demo")
    for stage, findings in (
        ("ppo", [{"iteration": 7, "name": "entropy low", "words": "fell <b>; do y"}]),
        ("ppo-ptx", []),
    ):
        record = json.loads((folder / stage / "run.json").read_text())
        assert "findings" not in record["results"]
        write_json(folder / stage / "run.json", record | {"results": record["results"] | {"findings": findings}})
    report(folder, ReportConfig())
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "from iteration 7 on: " in text and "自第 7 次迭代起：" in text and "fell &lt;b&gt;; do y" in text
    assert text.count("no problem was found") == 1
    report(make_recipe(tmp_path / "old"), ReportConfig())
    assert "no problem was found" not in (tmp_path / "old" / "report.html").read_text(encoding="utf-8")


def test_why_a_run_ended_and_what_it_kept_is_shown(tmp_path: Path) -> None:
    """An older run does not record what it kept; a run that was not stopped shows neither."""
    folder = make_recipe(tmp_path / "demo")
    for stage, told in (("ppo", {}), ("ppo-ptx", {"kept_iteration": 25})):
        record = json.loads((folder / stage / "run.json").read_text())
        results = record["results"] | {"stopped": "judge below its start at iteration 42"} | told
        write_json(folder / stage / "run.json", record | {"results": results})
    report(folder, ReportConfig())
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.count("judge below its start at iteration 42") == 2
    assert text.count("the policy of iteration 25 is kept") == text.count("保留第 25 次迭代的策略") == 1
    assert text.count("is kept") == 1
    report(make_recipe(tmp_path / "whole"), ReportConfig())
    assert "ended early" not in (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")


def test_a_run_that_learned_nothing_is_named(tmp_path: Path) -> None:
    folder = make_recipe(tmp_path / "demo")
    record = json.loads((folder / "ppo" / "run.json").read_text())
    for kept, times in ((0, 1), (3, 0)):
        write_json(folder / "ppo" / "run.json", record | {"results": record["results"] | {"kept_iteration": kept}})
        report(folder, ReportConfig())
        text = (folder / "report.html").read_text(encoding="utf-8")
        assert text.count("learned nothing: iteration 0 was kept") == text.count("什么也没有学到") == times


def test_siblings_in_the_folder_are_shown_beside_ppo(tmp_path: Path) -> None:
    """RLOO and DPO in folders of any name: curves, findings, costs, table. The recipe's total time does not change."""
    folder = make_recipe(tmp_path / "demo")
    for name, stage, like in (("my $rloo<", "rloo", "ppo"), ("dpo-2", "dpo", "reward"), ("else", "tasks", "ppo")):
        found = (
            {"findings": [{"iteration": 4, "name": "entropy low", "words": "fell; do y"}]} if stage == "rloo" else {}
        )
        record = run_record(folder, stage) | {"results": found, "peak_memory_bytes": 2**40}
        write_json(folder / name / "run.json", record)
        lines = "".join(json.dumps(line) + "\n" for line in metrics(like))
        (folder / name / "metrics.jsonl").write_text(lines, encoding="utf-8")
    measured = evaluation()
    measured["models"]["my $rloo<"] = measured["models"]["ppo"] | {"reward": 3.21}
    write_json(folder / "evaluate" / "evaluation.json", measured)
    report(folder, ReportConfig())
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "my $rloo<" in page.words and "3.21" in page.words and "<b>my $rloo&lt;</b>" in text
    assert "PPO, PPO-ptx and other policies" in page.words and "Without a reward model" in page.words
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawn) == 5 + 9 + 1 + 1
    assert [sum(f"var(--other-{i})" in drawing for drawing in drawn) for i in (1, 2)] == [
        1 + 7 + 1,
        0,
    ]  # each the first
    stages = read_summary(folder)["stages"]
    assert {"my $rloo<", "dpo-2"} < set(stages) and "else" not in stages
    assert read_summary(folder)["models"]["my $rloo<"]["reward"] == 3.21
    report(plain := make_recipe(tmp_path / "plain"), ReportConfig())
    assert text.count("1,024.00") == 2  # in their own rows, not as the recipe's peak
    assert read_summary(folder)["total_seconds"] == read_summary(plain)["total_seconds"]


@pytest.mark.parametrize("content", ["{", "[1]", b"\xff\xfe"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str | bytes) -> None:
    folder = make_recipe(tmp_path / "demo")
    path = folder / "evaluate" / "evaluation.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match="evaluation.json.*run its stage again"):
        report(folder, ReportConfig())
    assert not (folder / "report.html").exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="holds no finished run"):
            report(folder, ReportConfig())
    assert not list(tmp_path.iterdir())


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    folder = make_recipe(tmp_path / "demo")
    code = "import sys; from tutelage.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "report", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout and (folder / "summary.json").exists()
