"""kill -9 within an iteration: it is done again from its start, and the run ends bit for bit as if nothing had been.

Each run is killed four times, in a rollout, between minibatches, between epochs and halfway through a checkpoint, and
resumed each time. The killing is done by this file as a separate program, which forks once for each life.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from world import World, metrics, results, same_files

from tutelage.rlhf.setup import RLInputs
from tutelage.runs.checkpoint import steps_in
from tutelage.stages.grpo import GRPOConfig, grpo
from tutelage.stages.ppo import PPOConfig, ppo
from tutelage.stages.rloo import RLOOConfig, rloo

SMALL: dict[str, Any] = dict(
    iterations=4, batch=8, max_tokens=24, max_prompt=32, ptx_windows=2, ptx_calibration=2, kl_budget=1e9, lr=1e-3,
    dtype="fp32", checkpoint_seconds=0.0,
)  # fmt: skip
TOP: dict[str, Any] = dict(lora_rank=4, lora_layers=1)  # of three layers: the trunk below is shared and run once
PPO = PPOConfig(**SMALL, minibatch=4, epochs=2)
RLOO, GRPO = RLOOConfig(**SMALL, samples=4), GRPOConfig(**SMALL, samples=4, minibatch=4, epochs=2)
CASES: dict[str, tuple[Callable[..., None], Any]] = {
    "ppo-ptx": (ppo, PPO),
    "ppo-ptx-adapters": (ppo, replace(PPO, **TOP)),
    "penalty": (ppo, replace(PPO, ptx=False, update="penalty")),
    "trpo-adapters": (ppo, replace(PPO, ptx=False, update="trpo", epochs=1, **TOP)),
    "rloo": (rloo, RLOO),
    "rloo-adapters": (rloo, replace(RLOO, **TOP)),
    "grpo": (grpo, GRPO),
    "grpo-adapters": (grpo, replace(GRPO, **TOP)),
}

# Where a life ends: the module, the function, at which of its calls in this life.
ROLLOUT = ("tutelage.rlhf.rollouts", "generate", 3)
SAVING = ("tutelage.runs.checkpoint", "_sums", 2)  # the first is on loading; nothing has its name yet
STEP, AVERAGE = ("torch.optim", "AdamW.step"), ("tutelage.learning.optim", "EMA.update")
LIVES = {
    "ppo": [ROLLOUT, (*STEP, 2), (*AVERAGE, 3), SAVING],  # the policy has moved, not its values; the second epoch
    "penalty": [ROLLOUT, (*STEP, 2), (*AVERAGE, 3), SAVING],
    "trpo": [ROLLOUT, (*AVERAGE, 1), (*STEP, 2), SAVING],  # the policy has moved; half of the value network's steps
    "rloo": [ROLLOUT, (*STEP, 1), (*AVERAGE, 1), SAVING],  # before and after the only step
    "grpo": [ROLLOUT, (*STEP, 2), (*AVERAGE, 3), SAVING],
}


def start(case: str, out: Path, inputs: dict[str, list[str]]) -> None:
    stage, config = CASES[case]
    policy, judge = (Path(path) for path in inputs["deep" if config.lora_rank else "whole"])
    prompts, corpus = ((Path(path),) for path in inputs["data"])
    given = {} if getattr(config, "ptx", True) is False else {"corpus": corpus}
    stage(RLInputs(policy=policy, reward=(str(judge),), prompts=prompts, out=out, **given), config)


def arm(module: str, name: str, call: int) -> None:
    """This process dies by SIGKILL as soon as the function is called for so many times."""
    *outer, last = name.split(".")
    owner = importlib.import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), []

    def deadly(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **named)

    setattr(owner, last, deadly)


def main(folder: Path, inputs: dict[str, list[str]]) -> None:
    """Kill every case four times; print the exit statuses of its lives and the iterations that were saved at each."""
    torch.optim.AdamW([torch.zeros(1)])  # the first one imports 800 modules: here once, not in each child
    told = {}
    for case in CASES:
        lives = []
        for place in LIVES[case.partition("-")[0]]:
            child = os.fork()  # torch has computed nothing in this process, so a child of it can
            if child == 0:
                arm(*place)
                start(case, folder / case, inputs)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            lives.append((os.waitstatus_to_exitcode(status), steps_in(folder / case / "checkpoints")))
        told[case] = lives
    print(json.dumps(told))


@pytest.fixture(scope="module")
def inputs(world: World, policy: Path, judge: Path) -> dict[str, list[str]]:
    return {
        "whole": [str(world.sft), str(world.reward)],
        "deep": [str(policy), str(judge)],
        "data": [str(world.prompts), str(world.corpus)],
    }


@pytest.fixture(scope="module")
def killed(inputs: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, __file__, str(folder), json.dumps(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_killed_in_an_iteration_it_ends_with_the_same_bytes(
    case: str, killed: tuple[Path, dict[str, Any]], inputs: dict[str, list[str]], tmp_path: Path
) -> None:
    folder, told = killed
    assert [status for status, _ in told[case]] == [-signal.SIGKILL] * 4
    assert [saved for _, saved in told[case]] == [[1, 2]] * 4  # the third iteration was never lost whole, nor ended
    start(case, tmp_path / "whole", inputs)
    start(case, folder / case, inputs)
    weights = ["model.safetensors", *(["value/model.safetensors"] if CASES[case][0] is ppo else [])]
    same_files(tmp_path / "whole", folder / case, weights)
    assert metrics(tmp_path / "whole") == metrics(folder / case) and len(metrics(folder / case)) == 4
    assert results(tmp_path / "whole") == results(folder / case)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
