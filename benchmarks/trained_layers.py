"""Measure the peak memory and time of PPO-ptx by the number of layers with adapters.

    python benchmarks/trained_layers.py [runs/demo-smollm2] [--layers 2 4 8 16 0] [--out runs/trained_layers]

Runs the PPO-ptx of `tutelage demo --base smollm2` on its SFT model, prompts and text, for two iterations. The adapters
are in the top N layers of policy, value network and reward model; 0 means all layers. The reward model is untrained: it
needs the same memory, and its scores do not matter here. Each N is a separate process, whose run.json holds the
figures. A repeated call measures only what is missing. Prints a Markdown table and writes it to OUT (record.py).
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import Record

from tutelage.model.heads import ScalarGPT
from tutelage.recipe.preset import BASED
from tutelage.recipe.step import flags
from tutelage.runs.adapter import AdapterConfig, adapt, save_tuned_scorer
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.stages.ppo import PPOConfig

HEAD = "| adapters in | trained parameters of the policy | layers run once | peak memory, GiB | s per iteration |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, nargs="?", default=Path("runs/demo-smollm2"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/trained_layers"), help="folder to write")
    parser.add_argument("--preset", choices=sorted(BASED), default="demo", help="the demo's preset")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8, 16, 0], help="0: all layers")
    parser.add_argument("--iterations", type=int, default=2, help="iterations of PPO-ptx; the first is not timed")
    given = parser.parse_args()
    if given.iterations < 2:
        parser.exit(2, f"--iterations {given.iterations}: give at least 2; the first one is not timed\n")
    if not (given.demo / "sft/run.json").is_file():
        parser.exit(2, f"{given.demo}: no finished demo here; run `make demo-smollm2` first, or name another folder\n")
    record, figures = Record(given.out / "trained_layers", given), {}
    record.say(HEAD + "\n|" + "---|" * (HEAD.count("|") - 1))
    for layers in given.layers:
        config = replace(BASED[given.preset].ppo, iterations=given.iterations, lora_layers=layers)
        figures[layers] = measure(given.demo, given.out, config)
        record.say(row(layers, figures[layers]))
    record.leave(figures)


def measure(demo: Path, out: Path, config: PPOConfig) -> dict[str, Any]:
    """run.json of one run, its seconds per iteration and its trained parameters. A finished run is not repeated."""
    sft, data = demo / "sft", demo / "data"
    reward, run = out / f"reward-{config.lora_layers}", out / f"ppo-{config.lora_layers}"
    trained = fresh_reward(sft, reward, config)
    command = [sys.executable, "-m", "tutelage", "ppo", "--policy", str(sft), "--reward", str(reward)]
    command += ["--prompts", str(data / "prompts.train.jsonl"), "--corpus", str(data / "corpus.train.jsonl")]
    subprocess.run([*command, "--out", str(run), *flags(config)], check=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    took = json.loads((run / "run.json").read_text(encoding="utf-8"))
    seconds = (lines[-1]["time"] - lines[0]["time"]) / (len(lines) - 1)  # the first one includes loading and warm-up
    return {"trained": trained, "shared": took["results"]["shared_layers"], "seconds": seconds} | took


def fresh_reward(sft: Path, folder: Path, config: AdapterConfig) -> int:
    """Save an untrained reward model with adapters in the same layers. Returns their number of parameters."""
    trunk, tokenizer = load_policy(sft, choose_device("cpu", "fp32"))
    adapt(trunk, config, torch.Generator().manual_seed(0))
    trained = sum(p.numel() for p in trunk.parameters() if p.requires_grad)
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model = ScalarGPT(trunk).initialise(torch.Generator().manual_seed(0))
        save_tuned_scorer(partial, model, tokenizer, sft, config)
        partial.rename(folder)
    return trained


def row(layers: int, found: dict[str, Any]) -> str:
    named = f"the top {layers}" if layers else "all layers"
    memory = found["peak_memory_bytes"] / 2**30
    return f"| {named} | {found['trained']:,} | {found['shared']} | {memory:.2f} | {found['seconds']:.1f} |"


if __name__ == "__main__":
    main()
