"""TRPO's step of a policy on a whole rollout (Schulman et al. 2015, appendix C), and how far any update has moved it.

    rollout, advantages -> gradient of the surrogate -> natural step, its KL limited -> line search -> new weights

The Fisher matrix is that of the whole vocabulary at every fifth response; the line search measures the surrogate and
the KL on the tokens of all. These were learned from and move more than the rest of the vocabulary, so the KL measured
is larger than the policy's and the step shorter than the limit allows, never longer. There is no rate, no optimizer.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tutelage.errors import TrainingError
from tutelage.learning.kl import mean_k3
from tutelage.learning.losses import masked_mean
from tutelage.learning.trust_region import Product, fisher_product, flat, line_search, natural_step, surrogate
from tutelage.model.gpt import GPT
from tutelage.model.parameters import trainable
from tutelage.rlhf.history import Metrics
from tutelage.rlhf.learner import PolicyLearner, check_ratio, ratio_error
from tutelage.sampling.rollout import Responses, Rollout, in_parts, response_hidden, response_logprobs

ITERATIONS = 10  # of conjugate gradients (Schulman et al. 2015, appendix C.1)
DAMPING = 0.1  # openai/baselines' number, there added to F's diagonal as it is
HALVINGS = 10  # of the step; openai/baselines
FISHER_EVERY = 5  # responses: a fifth of them (openai/baselines); the search's KL is measured on all


def trust_region_step(
    learner: PolicyLearner, rollout: Rollout, advantages: Tensor, parts: Sequence[Tensor], *, limit: float,
    temperature: float,
) -> Metrics:  # fmt: skip
    """One step, `limit` nats a token at most. Log-probabilities are computed in `parts`, as the rollout's were.

    Raises TrainingError where the ratio is off 1 before it, or the gradient is not finite.
    """
    policy, mask = learner.policy, rollout.responses.mask
    weights = list(trainable(policy).values())
    gradient, error = surrogate_gradient(policy, rollout, advantages, parts, temperature)
    fifth = rollout.responses.rows(torch.arange(0, len(mask), FISHER_EVERY, device=mask.device))
    fisher = response_fisher(policy, fifth, temperature)
    step = natural_step(gradient, fisher, limit=limit, iterations=ITERATIONS, damping=DAMPING)
    start = flat([weight.detach() for weight in weights])

    def measure(share: float) -> tuple[float, float]:
        put(start + share * step, weights)
        logprobs = logprobs_in_parts(policy, rollout, parts, temperature)
        gain = surrogate(logprobs, rollout.logprobs, advantages, mask) - before
        return float(gain), float(mean_k3(rollout.logprobs, logprobs, mask))

    before = masked_mean(advantages, mask)  # every ratio is 1
    share, gain, kl = line_search(measure, limit, HALVINGS)
    put(start + share * step, weights)
    learner.average.update(policy)
    measured = {"policy_loss": -float(before) - gain, "ratio_error": error, "grad_norm": float(gradient.norm())}
    return measured | {"update_kl": kl, "step_share": share}


def surrogate_gradient(
    policy: GPT, rollout: Rollout, advantages: Tensor, parts: Sequence[Tensor], temperature: float
) -> tuple[Tensor, float]:
    """The surrogate's gradient (N,) at the policy that sampled, and how far its ratio is off 1."""
    weights, errors = list(trainable(policy).values()), []
    gradient = torch.zeros(sum(weight.numel() for weight in weights), device=advantages.device)
    for rows in parts:
        some = rollout.rows(rows)
        mask = some.responses.mask
        logprobs = response_logprobs(policy, some.responses, temperature)
        errors.append(ratio_error(logprobs, some.logprobs, mask))
        check_ratio(errors[-1], policy.compute_dtype)
        total = rollout.responses.mask.sum()
        gain = surrogate(logprobs, some.logprobs, advantages[rows, : mask.shape[1]], mask, total)
        gradient += flat(torch.autograd.grad(gain, weights))
    if not math.isfinite(float(gradient.norm())):
        raise TrainingError(f"training: the gradient is {float(gradient.norm())}; use --dtype fp32")
    return gradient, max(errors)


def response_fisher(policy: GPT, responses: Responses, temperature: float) -> Product:
    """v -> F v at the states of these responses."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention can be differentiated only once
        hidden = response_hidden(policy, responses)
        return fisher_product(policy.logits(hidden).float() / temperature, list(trainable(policy).values()))


@torch.no_grad()
def update_kl(policy: GPT, rollout: Rollout, parts: Sequence[Tensor], temperature: float) -> float:
    """Mean KL(pi_old || pi) of a token, from those that pi_old drew (k3)."""
    logprobs = logprobs_in_parts(policy, rollout, parts, temperature)
    return float(mean_k3(rollout.logprobs, logprobs, rollout.responses.mask))


@torch.no_grad()
def logprobs_in_parts(policy: GPT, rollout: Rollout, parts: Sequence[Tensor], temperature: float) -> Tensor:
    """(B, T) of the whole rollout."""
    return in_parts(lambda some: response_logprobs(policy, some, temperature), rollout.responses, parts)


@torch.no_grad()
def put(vector: Tensor, weights: Sequence[Tensor]) -> None:
    """The inverse of `flat`: the numbers go into the weights as they are."""
    pieces = vector.split([weight.numel() for weight in weights])
    for weight, piece in zip(weights, pieces, strict=True):
        weight.copy_(piece.view_as(weight))
