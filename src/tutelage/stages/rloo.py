"""A reward model's taste to a policy by REINFORCE with a leave-one-out baseline: RLOO (Ahmadian et al. 2024).

    repeat: prompts -> k sampled responses each -> reward = score - beta log(pi(y|x) / pi_SFT(y|x)), per response
            -> advantage = reward - mean reward of the prompt's other responses -> one policy step

A response is one action. There is no value network: the other responses are the baseline, which keeps the gradient
unbiased. There is no clipping: each rollout is learned from once, in one step, while the ratio is 1.
With --corpus a share of the pretraining loss is mixed in, as in PPO-ptx; the paper has none, and so has the default.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tutelage.learning.groups import leave_one_out, reinforce_loss
from tutelage.learning.kl import kl_per_response
from tutelage.rlhf.config import GroupConfig
from tutelage.rlhf.groups import Method, learn_in_groups
from tutelage.rlhf.history import Line
from tutelage.sampling.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(GroupConfig):
    """One RLOO run, with PPO's defaults."""

    samples: int = 4
    """Responses per prompt; the paper has 2 and 4."""

    @property
    def algorithm(self) -> str:
        return "RLOO"


def rloo(
    policy: Path,
    reward: tuple[str, ...],
    prompts: tuple[Path, ...],
    out: Path,
    corpus: tuple[Path, ...] = (),
    judge: str | None = None,
    config: RLOOConfig = RLOOConfig(),
) -> None:
    """Optimise a policy against a reward model without a value network: REINFORCE, leave-one-out baseline.

    A second reward, the judge, is never learnt from; a run that it comes to dislike is stopped. A demo's panel.json
    judges by gold.

    reward: a run, FILE.py:FUNCTION, module:FUNCTION, or a scorer's URL; several are an ensemble.

    Example: tutelage rloo --policy runs/sft --reward runs/reward --prompts prompts.jsonl --out runs/rloo
    """
    learn_in_groups(RLOO, policy, reward, prompts, out, corpus, judge, config)


def estimate(rollout: Rollout, config: RLOOConfig) -> Tensor:
    """(B,) advantages of whole responses, of the score less the price of drift."""
    drift = kl_per_response(rollout.logprobs, rollout.ref_logprobs, rollout.responses.mask)
    rewards = rollout.scores - config.kl_coef * drift
    return leave_one_out(rewards.view(-1, config.samples)).flatten()


def loss(logprobs: Tensor, some: Rollout, advantages: Tensor, config: RLOOConfig) -> tuple[Tensor, Line]:
    """REINFORCE on the whole rollout."""
    return reinforce_loss(logprobs, advantages, some.responses.mask), {}


RLOO = Method("rloo", estimate, loss)
