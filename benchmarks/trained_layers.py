"""Peak memory and time of PPO-ptx against the number of layers that have adapters.

    python benchmarks/trained_layers.py [runs/demo-smollm2] [--layers 2 4 8 16 0] [--out runs/trained_layers]

The PPO-ptx of `tutelage demo --base smollm2`, on its SFT model, prompts and text, but for two iterations only and with
adapters in the top N layers of policy, value and reward model (0 is all of them). The reward model is a fresh one: it
takes the same room, and its taste does not matter here. Each N is a process of its own; run.json says what it took. Run
it again and only what is missing is measured. Prints a Markdown table, and leaves it in OUT (record.py).
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

HEAD = "| adapters in | trained parameters of the policy | layers run once | peak memory, GiB | s an iteration |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, nargs="?", default=Path("runs/demo-smollm2"))
    parser.add_argument("--out", type=Path, default=Path("runs/trained_layers"))
    parser.add_argument("--preset", choices=sorted(BASED), default="demo")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8, 16, 0])
    parser.add_argument("--iterations", type=int, default=2)
    given = parser.parse_args()
    if given.iterations < 2:
        parser.exit(2, "--iterations: at least 2, as the first one is not timed\n")
    if not (given.demo / "sft/run.json").is_file():
        parser.exit(2, f"{given.demo}: holds no finished demo; run `make demo-smollm2` first, or name another\n")
    record, figures = Record(given.out / "trained_layers", given), {}
    record.say(HEAD + "\n|" + "---|" * (HEAD.count("|") - 1))
    for layers in given.layers:
        config = replace(BASED[given.preset].ppo, iterations=given.iterations, lora_layers=layers)
        figures[layers] = measure(given.demo, given.out, config)
        record.say(row(layers, figures[layers]))
    record.leave(figures)


def measure(demo: Path, out: Path, config: PPOConfig) -> dict[str, Any]:
    """What run.json says of one run, and the trained parameters. A run that is finished is not made again."""
    sft, data = demo / "sft", demo / "data"
    reward, run = out / f"reward-{config.lora_layers}", out / f"ppo-{config.lora_layers}"
    trained = fresh_reward(sft, reward, config)
    command = [sys.executable, "-m", "tutelage", "ppo", "--policy", str(sft), "--reward", str(reward)]
    command += ["--prompts", str(data / "prompts.train.jsonl"), "--corpus", str(data / "corpus.train.jsonl")]
    subprocess.run([*command, "--out", str(run), *flags(config)], check=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    took = json.loads((run / "run.json").read_text(encoding="utf-8"))
    seconds = (lines[-1]["time"] - lines[0]["time"]) / (len(lines) - 1)  # the first one loads and warms up
    return {"trained": trained, "shared": took["results"]["shared_layers"], "seconds": seconds} | took


def fresh_reward(sft: Path, folder: Path, config: AdapterConfig) -> int:
    """A reward model of adapters in the same layers, as the reward stage leaves one. Returns how many they have."""
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
