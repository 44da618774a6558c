"""Policy updates limited by the KL from the old policy: PPO's adaptive penalty and TRPO's natural-gradient step.

    log-probabilities, advantages -> surrogate, penalised loss;  measured KL -> next coefficient
    gradient g, v -> F v, limit delta -> s = F^-1 g by conjugate gradients -> sqrt(2 delta / s'Fs) s -> line search

PPO-penalty: Schulman et al. 2017, eq. 8. TRPO: Schulman et al. 2015, appendix C. The KL here is from the policy that
sampled the rollout, not from the SFT policy as in RLHF's KL penalty.
Ours: the step's length comes from the undamped F. The damping is relative to F's curvature along g, so that one value
suits whole weights and adapters. The penalty's coefficient stays within a fixed factor of its starting value.
Pure functions of tensors: no model, no device, no randomness. Gradients and steps are flat vectors (N,).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tutelage.learning.kl import mean_k3
from tutelage.learning.losses import masked_mean

MatrixVectorProduct = Callable[[Tensor], Tensor]  # v -> A v

# Largest factor between the penalty's coefficient and 1. Without it, a coefficient that has moved far would take as
# long to come back.
MAX_COEF_FACTOR = 2.0**10
# The line search accepts a KL up to SLACK times the limit. The penalty keeps its coefficient while the KL is within a
# factor of SLACK of the target.
SLACK = 1.5


def surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, total: Tensor | float | None = None
) -> Tensor:
    """Token mean of ratio times advantage (Schulman et al. 2015, eq. 14), to be maximised.

    All (B, T) -> a scalar: the sum over the mask, divided by `total` (default: the number of tokens in it).
    """
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    return masked_mean(ratio * advantages, mask, total)


def penalised_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, coef: float) -> Tensor:
    """-(ratio A - beta KL(pi_old || pi)), in token means (Schulman et al. 2017, eq. 8): all (B, T) -> a scalar.

    The paper takes the KL over all actions; ours is k3 of the sampled tokens. They are drawn from pi_old, so k3 and its
    gradient are unbiased.
    """
    return coef * mean_k3(old_logprobs, logprobs, mask) - surrogate(logprobs, old_logprobs, advantages, mask)


def adaptive_penalty_coef(coef: float, kl: float, target: float) -> float:
    """The penalty's next coefficient (Schulman et al. 2017, section 4).

    It is halved if the KL is below target / 1.5 and doubled if above 1.5 target. Ours: limited to
    1 / MAX_COEF_FACTOR and MAX_COEF_FACTOR.
    """
    if kl < target / SLACK:
        coef /= 2
    elif kl > target * SLACK:
        coef *= 2
    return min(max(coef, 1 / MAX_COEF_FACTOR), MAX_COEF_FACTOR)


def mean_kl(old_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(pi_old || pi) over the whole vocabulary, averaged over N states: logits (N, V) each -> a scalar."""
    old, new = old_logits.float().log_softmax(-1), logits.float().log_softmax(-1)
    return (old.exp() * (old - new)).sum(-1).mean()


def fisher_product(logits: Tensor, weights: Sequence[Tensor]) -> MatrixVectorProduct:
    """v -> F v, where F is the Fisher information matrix of the weights, averaged over the N states of logits (N, V).

    F is the Hessian of the mean KL(pi_old || pi) at pi = pi_old, so F v is a second derivative of that KL
    (Schulman et al. 2015, appendix C.1).
    """
    kl = mean_kl(logits.detach(), logits)
    gradient = flat(torch.autograd.grad(kl, weights, create_graph=True))

    def product(v: Tensor) -> Tensor:
        return flat(torch.autograd.grad(gradient @ v, weights, retain_graph=True))

    return product


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors into one vector (N,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def conjugate_gradient(product: MatrixVectorProduct, b: Tensor, iterations: int) -> Tensor:
    """Solve A x = b for a positive definite A, given only v -> A v (Hestenes and Stiefel 1952). x and b are (N,).

    Exact after as many iterations as A has distinct eigenvalues. If A is singular, x is the shortest solution.
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    error = initial = residual @ residual
    for _ in range(iterations):
        image = product(direction)
        curvature = direction @ image
        # Converged, or A is singular along this direction.
        if error <= 1e-10 * initial or curvature <= 0:
            break
        x += error / curvature * direction
        residual -= error / curvature * image
        error, previous = residual @ residual, error
        direction = residual + error / previous * direction
    return x


def natural_step(
    gradient: Tensor, fisher: MatrixVectorProduct, *, limit: float, iterations: int, damping: float
) -> Tensor:
    """The step s (N,) along F^-1 g whose quadratic KL, s'Fs / 2, equals `limit`; 0 if the gradient is 0.

    Schulman et al. 2015, appendix C. `damping`, in units of g'Fg / g'g, is added to F's diagonal in the conjugate
    gradients only, not in the step's length.
    """
    image = fisher(gradient)
    added = damping * (gradient @ image) / (gradient @ gradient).clamp(min=1e-30)
    step = conjugate_gradient(lambda v: fisher(v) + added * v, gradient, iterations)
    return step * (2 * limit / (step @ fisher(step)).clamp(min=1e-30)).sqrt()


def line_search(
    measure: Callable[[float], tuple[float, float]], limit: float, halvings: int
) -> tuple[float, float, float]:
    """The first share 1, 1/2, 1/4, ... of a step at which the surrogate improves and the KL is at most 1.5 limit.

    `measure` maps a share to (gain of the surrogate, KL). Returns (share, gain, KL), all 0 if no share passes.
    """
    for share in (0.5**i for i in range(halvings + 1)):
        gain, kl = measure(share)
        if gain > 0 and kl <= SLACK * limit:
            return share, gain, kl
    return 0.0, 0.0, 0.0
