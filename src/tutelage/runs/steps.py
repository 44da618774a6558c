"""The steps of a training loop that can be stopped and resumed.

    for step in training_steps(run, model, optimizers, steps, run.restore()):
        ... next batch -> loss -> gradient -> optimizer step -> run.log(step + 1, ...) ...

A checkpoint holds the trained weights, the optimizers' state and whatever else the stage passes in as `extra`. A
resumed loop ends with the same weights, bit for bit, as one that was never stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tutelage.runs.adapter import AdapterConfig, seed_dropout
from tutelage.runs.checkpoint import load_training_state, training_state
from tutelage.runs.run import Run


def training_steps(
    run: Run,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    steps: int,
    state: dict[str, Any] | None,
    extra: Mapping[str, Any] | None = None,
) -> Iterator[int]:
    """Yield the numbers (from 0) of the steps still to take, and save a checkpoint after a step when one is due.

    state: what `run.restore()` returned; None starts from step 0.
    extra: further entries of every checkpoint, read when it is saved, so a dict that the loop updates stays current.
    """
    if state:
        load_training_state(state["training"], model, optimizers)
    for step in range(state["step"] if state else 0, steps):
        if isinstance(run.config, AdapterConfig):
            seed_dropout(run.config, step)
        yield step
        run.checkpoint(step + 1, lambda: {"training": training_state(model, optimizers), **(extra or {})})
