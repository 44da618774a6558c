"""The whole recipe, one stage after another: from raw dialogue to an aligned chat model.

    data -> tokenizer -> pretrain -> SFT -> rank -> reward -> PPO, PPO-ptx -> evaluate -> report

Every stage is the command that a person would type (`step.py`), run in a separate process (`conductor.py`).
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

# Exponent of the machine's speed. Matrix products are not all of the time: going from 820 to 125 GFLOP/s (bf16 to fp32)
# made SmolLM2's stages take 3.2 to 5 times as long.
PRODUCTS = 0.75


@dataclass(frozen=True)
class Start:
    """The user's own inputs: a base model, demonstrations added to the demo's, and pretraining text instead of its."""

    base: Path | None = None
    demos: tuple[Path, ...] = ()
    corpus: tuple[Path, ...] = ()


def steps(out: Path, preset: Preset, seed: int, start: Start = Start()) -> list[Step]:
    """The recipe's stages in order."""
    data = out / "data"
    train, valid = start.corpus or (data / "corpus.train.jsonl",), data / "corpus.valid.jsonl"
    prompts, demos = data / "prompts.train.jsonl", (data / "demonstrations.train.jsonl", *start.demos)
    comparisons, panel = out / "comparisons.jsonl", data / "panel.json"
    tokenizer, sft, reward = out / "tokenizer", out / "sft", out / "reward"
    base = out / "imported" if start.base else out / "base"

    def step(name: str, verb: str, to: Path, config: RunConfig, **inputs: Path | tuple[Path, ...]) -> Step:
        return Step(name, verb, inputs, to, to.with_suffix(".run") if to.suffix else to, seeded(config, seed))

    rl: dict[str, Any] = {"policy": sft, "reward": reward, "prompts": (prompts,), "judge": panel}
    # The alignment tax is measured on the text that the base model is meant to keep predicting well.
    text = start.corpus or (valid,)
    heldout: dict[str, Any] = {"panel": panel, "prompts": (data / "prompts.test.jsonl",), "heldout": text}
    if isinstance(preset.base, ImportConfig):
        assert start.base is not None
        base_steps = [step("import", "import-model", base, preset.base, base=start.base)]
    else:
        tokenizer_config, pretrain_config = preset.base
        base_steps = [
            step("tokenizer", "tokenizer", tokenizer, tokenizer_config, corpus=train),
            step("pretrain", "pretrain", base, pretrain_config, tokenizer=tokenizer, corpus=train, heldout=(valid,)),
        ]
    return [
        replace(step("data", "collect", data, preset.collect), found=source_files()),
        *base_steps,
        step("sft", "sft", sft, preset.sft, base=base, demos=demos, heldout=(data / "demonstrations.valid.jsonl",)),
        step("rank", "rank", comparisons, preset.rank, policy=sft, panel=panel, prompts=(prompts,)),
        step("reward", "reward", reward, preset.reward, base=sft, comparisons=(comparisons,), demos=demos, panel=panel),
        step("ppo", "ppo", out / "ppo", replace(preset.ppo, ptx=False), **rl),
        step("ppo-ptx", "ppo", out / "ppo-ptx", preset.ppo, **rl, corpus=train),
        step(
            "evaluate",
            "evaluate",
            out / "evaluate",
            preset.evaluate,
            policies=(out / "ppo", out / "ppo-ptx"),
            base=base,
            sft=sft,
            reward=reward,
            **heldout,
        ),
        Step("report", "report", {}, out, out, None),
    ]


def demo(
    out: Path | None = None,
    seed: int = 0,
    preset: Literal["demo", "toy"] = "demo",
    base: Path | None = None,
    demos: tuple[Path, ...] = (),
    corpus: tuple[Path, ...] = (),
) -> None:
    """Train a small ChatGPT from raw dialogue: the whole recipe, in minutes on two cores.

    After an interruption, run the same command again to continue.

    out: Folder for the results. By default runs/demo, or runs/demo-BASE with --base.
    seed: Seed of every stage.
    preset: demo runs the whole recipe; toy runs every stage in seconds, to test the installation.
    base: Start from this model (folder, GGUF file, smollm2, hub id) and train adapters, instead of pretraining.
    demos: Your own demonstrations, in addition to the demo's.
    corpus: Your own pretraining text, instead of the demo's.

    Example: tutelage demo --out runs/demo --seed 0
    """
    start_time = time.monotonic()
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
    this_time, total = clock(time.monotonic() - start_time), clock(record["total_seconds"])
    print(f"\ndone in {this_time} (in total, with earlier runs: {total}). The report: {out / 'report.html'}")
    print(f"Chat with the model:\n\n    tutelage chat {out / 'ppo-ptx'}\n")


def pace_of(sizes: Preset, rate: float) -> float:
    """Expected seconds on this machine per second of the plan; `rate` is its speed of matrix products, in GFLOP/s."""
    return max(1.0, sizes.gflops / rate) ** PRODUCTS
