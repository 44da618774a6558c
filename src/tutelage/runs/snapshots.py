"""Policies in the middle of their training, kept as runs of their own: the points of a curve.

every N steps -> out/snapshots/<step>: the adapter where there is one, else the whole model
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.model.gpt import GPT
from tutelage.runs.adapter import AdapterConfig, save_tuned
from tutelage.runs.run import Run
from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SnapshotConfig(AdapterConfig):
    """What every stage that keeps policies on the way is told about it."""

    snapshot_every: int = 0
    """Iterations (dpo: steps) after which the policy is kept in snapshots/, to be evaluated; 0 keeps none."""

    def snapshot_due(self, step: int, steps: int) -> bool:
        """Not before the first step, and not after the last one: these are the policy given and the run itself."""
        return self.snapshot_every > 0 and 0 < step < steps and step % self.snapshot_every == 0


def save_snapshot(run: Run, step: int, policy: GPT, tokenizer: Tokenizer) -> None:
    """Write the policy whole or not at all; it counts as a run wherever one is asked for."""
    config: SnapshotConfig = run.config  # type: ignore[assignment]
    base = Path(run.inputs["policy"]["path"])
    final = run.out / "snapshots" / f"{step:05d}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_tuned(partial, policy, tokenizer, base, replace(config, adapter_only=config.adapted))
    shutil.rmtree(final, ignore_errors=True)  # a run that was killed makes it again
    partial.rename(final)
