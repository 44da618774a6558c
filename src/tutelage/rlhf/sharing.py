"""Which reward models keep a run with `--lora-layers` from sharing the layers below its adapters.

actors, rewards by name, config -> one line for each such reward model: what it is, what it costs, what to train
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import frozen_depth
from tutelage.rewards.open import kind_of
from tutelage.rlhf.actors import Actors
from tutelage.rlhf.config import RLConfig
from tutelage.runs.ending import counted


def unshared(actors: Actors, rewards: Sequence[str], policy: Path, config: RLConfig) -> Iterator[str]:
    """Nothing without --lora-layers: then no layer is expected to be shared."""
    if not config.lora_layers:
        return
    runs = [name for name in rewards if kind_of(name) == "run"]
    for name, model in zip(runs, actors.reward.models, strict=True):
        if problem := why_not_shared(actors, model, policy, config):
            retrain = f"tutelage reward --base {policy} --lora-rank {config.lora_rank} --lora-layers"
            yield f"reward model {name}: {problem}; train it again with {retrain} {config.lora_layers}"


def why_not_shared(actors: Actors, model: ScalarGPT, policy: Path, config: RLConfig) -> str | None:
    """What this reward model keeps from being shared; None if it shares all layers below the policy's adapters."""
    trunk, layers = actors.policy, actors.policy.config.layers
    expected = layers - config.lora_layers
    if model.trunk.embedding.weight is not trunk.embedding.weight:
        return f"it is not an adapter on {policy}, so all its layers run again on every response"
    depth = frozen_depth(model.trunk)
    if depth >= expected:
        return None
    where = "all layers" if depth == 0 else f"the top {layers - depth} of {layers} layers"
    return f"it has adapters in {where}, so {counted(depth, 'layer')} of {expected} can be shared"
