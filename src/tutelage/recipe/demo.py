"""The whole recipe, stage after stage: from raw dialogue to an aligned chat model.

    data -> tokenizer -> pretrain -> SFT -> rank -> reward -> PPO, PPO-ptx -> evaluate -> report

Every stage is the very command a person would type (`step.py`), run in a process of its own (`conductor.py`).
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tutelage.recipe.conductor import Conductor, read_record, write_record
from tutelage.recipe.preset import BASED, PRESETS, Preset, seeded
from tutelage.recipe.step import Step
from tutelage.recipe.summary import write_summary
from tutelage.runs.base import find_base
from tutelage.runs.device import DTYPES, choose_device
from tutelage.runs.log import clock
from tutelage.runs.machine import gemm_rate, name_of
from tutelage.runs.run import RunConfig
from tutelage.stages.collect import source_files
from tutelage.stages.import_model import ImportConfig

# Not all of the time is products: 820 -> 125 GFLOP/s (bf16 -> fp32) made SmolLM2's stages 3.2 to 5 times as long.
PRODUCTS = 0.75


@dataclass(frozen=True)
class Start:
    """What the user brings: a base model made elsewhere, demonstrations and pretraining text beside the demo's."""

    base: Path | None = None
    demos: tuple[Path, ...] = ()
    corpus: tuple[Path, ...] = ()


def steps(out: Path, preset: Preset, seed: int, start: Start = Start()) -> list[Step]:
    """The recipe in order."""
    data = out / "data"
    train, valid = start.corpus or (data / "corpus.train.jsonl",), data / "corpus.valid.jsonl"
    asked, demos = data / "prompts.train.jsonl", (data / "demonstrations.train.jsonl", *start.demos)
    ranked, panel = out / "comparisons.jsonl", data / "panel.json"
    tokenizer, sft, reward = out / "tokenizer", out / "sft", out / "reward"
    base = out / "imported" if start.base else out / "base"

    def step(name: str, verb: str, to: Path, config: RunConfig, **inputs: Path | tuple[Path, ...]) -> Step:
        return Step(name, verb, inputs, to, to.with_suffix(".run") if to.suffix else to, seeded(config, seed))

    rl: dict[str, Any] = {"policy": sft, "reward": reward, "prompts": (asked,), "judge": panel}
    taxed = start.corpus or (valid,)  # what alignment costs is measured on the text that the base is to keep
    tested: dict[str, Any] = {"panel": panel, "prompts": (data / "prompts.test.jsonl",), "heldout": taxed}
    if isinstance(preset.base, ImportConfig):
        assert start.base is not None
        made = [step("import", "import-model", base, preset.base, base=start.base)]
    else:
        tokenizer_config, pretrain_config = preset.base
        made = [
            step("tokenizer", "tokenizer", tokenizer, tokenizer_config, corpus=train),
            step("pretrain", "pretrain", base, pretrain_config, tokenizer=tokenizer, corpus=train, heldout=(valid,)),
        ]
    return [
        replace(step("data", "collect", data, preset.collect), found=source_files()),
        *made,
        step("sft", "sft", sft, preset.sft, base=base, demos=demos, heldout=(data / "demonstrations.valid.jsonl",)),
        step("rank", "rank", ranked, preset.rank, policy=sft, panel=panel, prompts=(asked,)),
        step("reward", "reward", reward, preset.reward, base=sft, comparisons=(ranked,), demos=demos, panel=panel),
        step("ppo", "ppo", out / "ppo", replace(preset.ppo, ptx=False), **rl),
        step("ppo-ptx", "ppo", out / "ppo-ptx", preset.ppo, **rl, corpus=train),
        step(
            "evaluate", "evaluate", out / "evaluate", preset.evaluate,
            policies=(out / "ppo", out / "ppo-ptx"), base=base, sft=sft, reward=reward, **tested,
        ),
        Step("report", "report", {}, out, out, None),
    ]  # fmt: skip


def demo(
    out: Path | None = None,
    seed: int = 0,
    preset: Literal["demo", "toy"] = "demo",
    base: Path | None = None,
    demos: tuple[Path, ...] = (),
    corpus: tuple[Path, ...] = (),
) -> None:
    """Raise a small ChatGPT from raw dialogue: the whole recipe, in minutes on two cores.

    Run it again after an interruption: it goes on where it was.

    out: runs/demo, or runs/demo-BASE with a base.
    base: start from this model (folder, GGUF file, smollm2, hub id) and train adapters, instead of pretraining one.
    demos: your own demonstrations, beside the demo's.
    corpus: your own pretraining text, instead of the demo's.

    Example: tutelage demo --out runs/demo --seed 0
    """
    begun = time.monotonic()
    out = out or Path("runs") / (f"demo-{base.resolve().name.removesuffix('.gguf')}" if base else "demo")
    sizes = (BASED if base else PRESETS)[preset]
    start = Start(find_base(base) if base else None, demos, corpus)
    record = read_record(out) or {"seed": seed, "stages": {}}
    device = choose_device()
    measured = {name: gemm_rate(dtype, device.torch_device) for name, dtype in DTYPES.items()}
    record |= {"seed": seed, "gemm_gflops": {name: round(rate) for name, rate in measured.items()}}
    rates = ", ".join(f"{name} {rate}" for name, rate in record["gemm_gflops"].items())
    print(f"tutelage demo -> {out}   {os.cpu_count()} cores, matrix products in GFLOP/s: {rates}", flush=True)
    pace = pace_of(sizes, measured[name_of(device.compute_dtype)])
    conductor = Conductor(out, record, steps(out, sizes, seed, start), sizes.seconds, pace)
    conductor.run_all()
    record["total_seconds"] = round(sum(s["seconds"] for s in record["stages"].values()), 1)
    write_record(out, record)
    write_summary(out)
    sitting = clock(time.monotonic() - begun)
    print(
        f"\ndone in {sitting} (all sittings: {clock(record['total_seconds'])}). "
        f"Read {out / 'report.html'}, and talk to it:\n"
    )
    print(f"    tutelage chat {out / 'ppo-ptx'}\n")


def pace_of(sizes: Preset, rate: float) -> float:
    """How many seconds one of the plan's may take here, where products run at `rate` GFLOP/s."""
    return max(1.0, sizes.gflops / rate) ** PRODUCTS
