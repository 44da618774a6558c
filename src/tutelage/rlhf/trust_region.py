"""TRPO's step of a policy on a whole rollout (Schulman et al. 2015, appendix C), and how far any update has moved it.

    rollout, advantages -> gradient of the surrogate -> natural step, its KL limited -> line search -> new weights

The Fisher matrix covers the whole vocabulary at every fifth response. The line search measures surrogate and KL on the
sampled tokens of all responses. The update moves these tokens more than the rest of the vocabulary, so the measured KL
is larger than the policy's, and the step may be shorter than the limit allows but never longer. There is no learning
rate and no optimizer.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tutelage.errors import TrainingError
from tutelage.learning.kl import mean_k3
from tutelage.learning.losses import masked_mean
from tutelage.learning.trust_region import (
    MatrixVectorProduct,
    fisher_product,
    flat,
    line_search,
    natural_step,
    surrogate,
)
from tutelage.model.gpt import GPT
from tutelage.model.parameters import trainable
from tutelage.model.vocabulary import token_rows
from tutelage.rlhf.history import Metrics
from tutelage.rlhf.learner import PolicyLearner, check_ratio, ratio_error
from tutelage.sampling.rollout import Responses, Rollout, in_parts, response_hidden, response_logprobs

ITERATIONS = 10  # of conjugate gradients (Schulman et al. 2015, appendix C.1)
DAMPING = 0.1  # added to the diagonal of F; openai/baselines
HALVINGS = 10  # of the step, at most; openai/baselines
FISHER_EVERY = 5  # responses (openai/baselines); the line search measures the KL on all of them


def trust_region_step(
    learner: PolicyLearner,
    rollout: Rollout,
    advantages: Tensor,
    parts: Sequence[Tensor],
    *,
    limit: float,
    temperature: float,
) -> Metrics:
    """One step of at most `limit` nats per token. Log-probabilities are computed in `parts`, as the rollout's were.

    Raises TrainingError if the ratio is not 1 before the step, or the gradient is not finite.
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
    metrics = {"policy_loss": -float(before) - gain, "ratio_error": error, "grad_norm": float(gradient.norm())}
    return metrics | {"update_kl": kl, "step_share": share}


def surrogate_gradient(
    policy: GPT, rollout: Rollout, advantages: Tensor, parts: Sequence[Tensor], temperature: float
) -> tuple[Tensor, float]:
    """The surrogate's gradient (N,) at the policy that sampled, and the largest error of its ratio."""
    weights, errors = list(trainable(policy).values()), []
    gradient = torch.zeros(sum(weight.numel() for weight in weights), device=advantages.device)
    for rows in parts:
        minibatch = rollout.rows(rows)
        mask = minibatch.responses.mask
        logprobs = response_logprobs(policy, minibatch.responses, temperature)
        errors.append(ratio_error(logprobs, minibatch.logprobs, mask))
        check_ratio(errors[-1], policy.compute_dtype)
        total = rollout.responses.mask.sum()
        gain = surrogate(logprobs, minibatch.logprobs, advantages[rows, : mask.shape[1]], mask, total)
        gradient += flat(torch.autograd.grad(gain, weights))
    if not math.isfinite(float(gradient.norm())):
        raise TrainingError(f"training: the gradient is {float(gradient.norm())}; use --dtype fp32")
    return gradient, max(errors)


def response_fisher(policy: GPT, responses: Responses, temperature: float) -> MatrixVectorProduct:
    """v -> F v, F the Fisher matrix at the states of these responses."""
    with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels can be differentiated only once
        hidden = response_hidden(policy, responses)
        logits = policy.logits(hidden)[:, : token_rows(policy)]
        return fisher_product(logits.float() / temperature, list(trainable(policy).values()))


@torch.no_grad()
def update_kl(policy: GPT, rollout: Rollout, parts: Sequence[Tensor], temperature: float) -> float:
    """Mean KL(pi_old || pi) per token, estimated (k3) on the tokens that pi_old sampled."""
    logprobs = logprobs_in_parts(policy, rollout, parts, temperature)
    return float(mean_k3(rollout.logprobs, logprobs, rollout.responses.mask))


@torch.no_grad()
def logprobs_in_parts(policy: GPT, rollout: Rollout, parts: Sequence[Tensor], temperature: float) -> Tensor:
    """log pi (B, T) of the whole rollout."""
    return in_parts(lambda minibatch: response_logprobs(policy, minibatch, temperature), rollout.responses, parts)


@torch.no_grad()
def put(vector: Tensor, weights: Sequence[Tensor]) -> None:
    """Copy a vector into the weights: the inverse of `flat`."""
    pieces = vector.split([weight.numel() for weight in weights])
    for weight, piece in zip(weights, pieces, strict=True):
        weight.copy_(piece.view_as(weight))
