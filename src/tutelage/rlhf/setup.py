"""What PPO, RLOO and GRPO set up alike: inputs on disk, the run, its models, prompts and judge, and a measured rollout.

RLInputs, config  ->  Run  ->  Setup  ->  (rollout, metrics) of an iteration
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tutelage.rewards.open import foreign_models, places_read, reward_input, reward_inputs
from tutelage.rewards.reward import Reward
from tutelage.rlhf.actors import Actors, load_actors, load_judge
from tutelage.rlhf.config import RLConfig
from tutelage.rlhf.history import Metrics
from tutelage.rlhf.learner import first_epoch
from tutelage.rlhf.pretraining_mix import PretrainingMix, open_mix
from tutelage.rlhf.rollouts import EncodedPrompt, encode_prompts, judge_score, next_rollout
from tutelage.rlhf.sharing import unshared
from tutelage.runs.base import find_base
from tutelage.runs.run import Run
from tutelage.sampling.rollout import Rollout, describe


@dataclass(frozen=True, kw_only=True)
class RLInputs:
    """What a run of PPO, RLOO or GRPO starts from, and where its result goes."""

    policy: Path
    """The SFT run to optimise; also the reference of the KL penalty."""
    reward: tuple[str, ...]
    """The reward: a run, FILE.py:FUNCTION, module:FUNCTION or a scorer's URL. Several are an ensemble.
    A function is def f(conversations) -> list[float]: each conversation is a list of {"role", "content"} messages that
    ends with the response, and gets one number."""
    prompts: tuple[Path, ...]
    """JSONL files with the prompts to respond to."""
    out: Path
    """Run directory to write."""
    corpus: tuple[Path, ...] = ()
    """JSONL files with pretraining text, for the pretraining loss that PPO-ptx mixes in."""
    judge: str | None = None
    """A held-out reward used only for monitoring. Training stops when its score falls below the starting level.
    The demo's panel.json judges by the noise-free gold score."""


@dataclass(frozen=True)
class Setup:
    """One run with everything that its iterations need."""

    run: Run
    actors: Actors
    prompts: list[EncodedPrompt]
    mix: PretrainingMix | None  # None: no pretraining loss
    judge: Reward | None

    def roll_out(self, iteration: int, config: RLConfig, minibatch: int, samples: int = 1) -> tuple[Rollout, Metrics]:
        """The rollout of an iteration, `samples` responses to each prompt, and its metrics."""
        parts = first_epoch(self.run, config.batch, minibatch, iteration)
        rollout, gap = next_rollout(self.actors, self.prompts, iteration, config, parts, samples)
        metrics = describe(rollout, config.kl_coef) | {"sampler_gap": gap}
        if self.judge:
            metrics["judge_score"] = judge_score(self.judge, rollout, config, self.actors.tokenizer.end_of_turn_id)
        return rollout, metrics

    def results(self) -> dict[str, Any]:
        """What run.json says of the setup."""
        read_at = places_read(self.actors.reward)
        return {"prompts": len(self.prompts), "shared_layers": self.actors.shared_layers, **read_at}


def open_run(stage: str, inputs: RLInputs, config: RLConfig) -> Run:
    """The run directory, with what it is made from."""
    given = {
        "policy": inputs.policy,
        "reward": reward_inputs(inputs.reward),
        "prompts": inputs.prompts,
        "corpus": inputs.corpus,
        "judge": reward_input(inputs.judge) if inputs.judge else None,
    }
    return Run(inputs.out, stage=stage, config=config, inputs=given)


def with_base(inputs: RLInputs) -> RLInputs:
    """The same inputs with the policy's name resolved to a folder or file."""
    return replace(inputs, policy=find_base(inputs.policy))


def set_up(
    run: Run,
    inputs: RLInputs,
    config: RLConfig,
    *,
    minibatch: int,
    epochs: int,
    mix: bool,
    samples: int = 1,
    critic: bool = True,
) -> Setup:
    """Load the models, the prompts, the judge, and with `mix` enough pretraining text for every optimizer step.

    Raises InputError where they do not fit each other.
    """
    actors = load_actors(inputs.policy, inputs.reward, config, run, critic)
    if foreign := foreign_models(actors.reward):
        run.progress.say(f"{run.out}: {foreign}")
    for line in unshared(actors, inputs.reward, inputs.policy, config):
        run.progress.say(f"{run.out}: {line}")
    count = config.iterations * config.batch // samples
    prompts = encode_prompts(actors, inputs.prompts, count, config, run.stage)
    steps = config.iterations * epochs * -(-config.batch // minibatch)
    text = open_mix(run, config, actors, inputs.corpus, steps) if mix else None
    return Setup(run, actors, prompts, text, load_judge(inputs.judge, inputs.policy, config, run))
