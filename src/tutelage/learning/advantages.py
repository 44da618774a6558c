"""Per-token advantages from one score per response.

    scores, logprobs, ref_logprobs, values  ->  rewards  ->  advantages, returns

Rewards: InstructGPT (Ouyang et al. 2022), eq. 2. Advantages: GAE (Schulman et al. 2016), eq. 16.
Ours: the score is given at the end-of-turn token, which is an action like any other, and the value after it is 0.
Advantages are whitened over the whole rollout; openai/lm-human-preferences whitens per minibatch. Rewards are not
whitened, because that turns a constant reward into a preference for short or long responses.
Pure functions of tensors: no model, no device, no randomness.
"""

import torch
from torch import Tensor

from tutelage.learning.losses import masked_mean


def shaped_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Reward per token: R_t = -beta (log pi_old - log pi_SFT), plus the score at the last token.

    Ouyang et al. 2022, eq. 2, per token. scores (B,), the others (B, T) -> (B, T). mask is set on the response up to
    and including end-of-turn. Each row sums to score - beta * (log pi(y|x) - log pi_SFT(y|x)). No gradient flows
    through the KL penalty.
    """
    mask = mask.bool()
    penalty = kl_coef * (logprobs - ref_logprobs)
    rewards = torch.where(mask, -penalty, torch.zeros_like(penalty)).detach()
    last = (mask.sum(1) - 1).clamp(min=0)
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns that the value network is trained on.

    Schulman et al. 2016, eq. 16: A_t = delta_t + gamma lam A_{t+1} with delta_t = r_t + gamma V_{t+1} - V_t, and
    V = 0 after the last token. rewards, values, mask (B, T); each row of the mask is 1s, then 0s.
    Returns (advantages, returns), both (B, T) and 0 outside the mask.
    """
    mask = mask.bool()
    zero = torch.zeros_like(rewards)
    rewards, values = torch.where(mask, rewards, zero), torch.where(mask, values, zero)
    advantages = torch.zeros_like(rewards)
    running, next_value = zero[:, 0], zero[:, 0]
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, zero[:, t])
        advantages[:, t] = running
        next_value = values[:, t]
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale x (B, T) to mean 0 and population variance 1 over the mask; 0 outside it."""
    mask = mask.bool()
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    return torch.where(mask, (x - mean) * (variance + 1e-8).rsqrt(), torch.zeros_like(x))


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - mean (returns - values)^2 / variance of returns, all (B, T).

    A perfect value network has 1, one that predicts the mean return everywhere has 0.
    """
    error = masked_mean((returns - values).square(), mask)
    variance = masked_mean((returns - masked_mean(returns, mask)).square(), mask)
    return float(1 - error / variance.clamp(min=1e-8))
