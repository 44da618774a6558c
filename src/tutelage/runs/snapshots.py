"""Snapshots of a policy during training, each saved as a run, so that it can be evaluated as a point of a curve.

every N steps -> out/snapshots/<step>: only the adapter if there is one, otherwise the full model
"""

from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.atomic import atomic_folder
from tutelage.model.gpt import GPT
from tutelage.options import Advanced, Natural
from tutelage.runs.adapter import AdapterConfig, save_tuned
from tutelage.runs.run import Run
from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SnapshotConfig(AdapterConfig):
    """Snapshot settings of the stages that can save them."""

    snapshot_every: Advanced[Natural] = 0
    """Save the policy to snapshots/ every so many iterations (dpo: steps), to be evaluated later; 0 saves none."""

    def snapshot_due(self, step: int, steps: int) -> bool:
        """Whether to save after this step: not at 0, the initial policy, and not after the last, the run itself."""
        return self.snapshot_every > 0 and 0 < step < steps and step % self.snapshot_every == 0


def save_snapshot(run: Run, config: SnapshotConfig, step: int, policy: GPT, tokenizer: Tokenizer) -> None:
    """Write the policy atomically. The snapshot can be used wherever a run is expected."""
    base = Path(run.inputs["policy"]["path"])
    with atomic_folder(
        run.out / "snapshots" / f"{step:05d}", replace=True
    ) as folder:  # one that a killed run has saved
        save_tuned(folder, policy, tokenizer, base, replace(config, adapter_only=config.adapted))
