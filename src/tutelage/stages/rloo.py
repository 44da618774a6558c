"""RLOO: REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024).

    repeat: prompts -> k sampled responses each -> reward = score - beta log(pi(y|x) / pi_SFT(y|x)), per response
            -> advantage = reward - mean reward of the prompt's other responses -> one policy step

A whole response is one action. The other responses to the prompt are the baseline, so no value network is needed, and
the gradient stays unbiased. Each rollout is used for one step, at ratio 1, so nothing is clipped.
Ours: with --corpus a share of the pretraining loss is mixed in, as in PPO-ptx. The default, like the paper, has none.
"""

from dataclasses import dataclass

from torch import Tensor

from tutelage.learning.groups import leave_one_out, reinforce_loss
from tutelage.learning.kl import kl_per_response
from tutelage.rlhf.config import GroupConfig, GroupSize
from tutelage.rlhf.groups import GroupAlgorithm, learn_in_groups
from tutelage.rlhf.history import Metrics
from tutelage.rlhf.setup import RLInputs
from tutelage.sampling.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(GroupConfig):
    """One RLOO run, with PPO's defaults."""

    samples: GroupSize = 4
    """Responses per prompt (paper: 2 and 4)."""

    @property
    def algorithm(self) -> str:
        return "RLOO"


def rloo(inputs: RLInputs, config: RLOOConfig = RLOOConfig()) -> None:
    """Optimise a policy against a reward with RLOO: REINFORCE, leave-one-out baseline, no value network.

    Example: tutelage rloo --policy runs/sft --reward runs/reward --prompts prompts.jsonl --out runs/rloo
    """
    learn_in_groups(RLOO, inputs, config)


def estimate(rollout: Rollout, config: RLOOConfig) -> Tensor:
    """(B,) advantages of whole responses: the score minus the KL penalty, minus the baseline."""
    kl = kl_per_response(rollout.logprobs, rollout.ref_logprobs, rollout.responses.mask)
    rewards = rollout.scores - config.kl_coef * kl
    return leave_one_out(rewards.view(-1, config.samples)).flatten()


def loss(logprobs: Tensor, minibatch: Rollout, advantages: Tensor, config: RLOOConfig) -> tuple[Tensor, Metrics]:
    """REINFORCE on the whole rollout."""
    return reinforce_loss(logprobs, advantages, minibatch.responses.mask), {}


RLOO = GroupAlgorithm("rloo", estimate, loss)
