"""Updates that a KL to the policy before them holds back: PPO's adaptive penalty, and TRPO's natural-gradient step.

    log-probabilities, advantages -> surrogate, penalised loss;  measured KL -> next coefficient
    gradient g, v -> F v, limit delta -> s = F^-1 g by conjugate gradients -> sqrt(2 delta / s'Fs) s -> line search

PPO-penalty: Schulman et al. 2017, eq. 8. TRPO: Schulman et al. 2015, appendix C. This KL is not the one that RLHF's
reward pays for: that is to the SFT policy, this one to the policy that sampled.
Ours: the step's length comes from F without its damping, which is a share of F's own curvature along g, so that both
mean the same for whole weights and for adapters; and the penalty's coefficient stays within reach of where it began.
Pure functions of tensors: no model, no device, no randomness. Gradients and steps are flat vectors (N,).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tutelage.learning.kl import mean_k3
from tutelage.learning.losses import masked_mean

Product = Callable[[Tensor], Tensor]  # v -> A v

FURTHEST = 2.0**10  # of the penalty's coefficient from 1: beyond, a long calm takes as long to undo
SLACK = 1.5  # times the limit that a line search accepts, and the penalty's target puts up with


def surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, total: Tensor | float | None = None
) -> Tensor:
    """Token mean of ratio times advantage (Schulman et al. 2015, eq. 14), all (B, T): to be maximised."""
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    return masked_mean(ratio * advantages, mask, total)


def penalised_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, coef: float) -> Tensor:
    """-(ratio A - beta KL(pi_old || pi)), token means (Schulman et al. 2017, eq. 8). All (B, T).

    The tokens are drawn from pi_old, so k3 of old against new is that KL without bias, and so is its gradient.
    """
    return coef * mean_k3(old_logprobs, logprobs, mask) - surrogate(logprobs, old_logprobs, advantages, mask)


def adaptive_penalty_coef(coef: float, kl: float, target: float) -> float:
    """The penalty's next coefficient: half below two thirds of the target, twice above 1.5 times (2017, section 4)."""
    if kl < target / SLACK:
        coef /= 2
    elif kl > target * SLACK:
        coef *= 2
    return min(max(coef, 1 / FURTHEST), FURTHEST)


def mean_kl(old_logits: Tensor, logits: Tensor) -> Tensor:
    """Mean over states of KL(pi_old || pi) over the whole vocabulary, both (N, V)."""
    old, new = old_logits.float().log_softmax(-1), logits.float().log_softmax(-1)
    return (old.exp() * (old - new)).sum(-1).mean()


def fisher_product(logits: Tensor, weights: Sequence[Tensor]) -> Product:
    """v -> F v, F being the Fisher information of the weights at these states (N, V), averaged over them.

    It is the Hessian of the mean KL(pi_old || pi) where both are one: its gradient is differentiated once more.
    """
    kl = mean_kl(logits.detach(), logits)
    gradient = flat(torch.autograd.grad(kl, weights, create_graph=True))

    def product(v: Tensor) -> Tensor:
        return flat(torch.autograd.grad(gradient @ v, weights, retain_graph=True))

    return product


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All of them in one vector (N,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def conjugate_gradient(product: Product, b: Tensor, iterations: int) -> Tensor:
    """x with A x = b for a positive definite A of which only v -> A v is known (Hestenes and Stiefel 1952).

    After as many iterations as A has different eigenvalues it is exact; a singular A gives the shortest solution.
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    error = enough = residual @ residual
    for _ in range(iterations):
        image = product(direction)
        curvature = direction @ image
        if error <= 1e-10 * enough or curvature <= 0:  # there already, or in a direction that nothing depends on
            break
        x += error / curvature * direction
        residual -= error / curvature * image
        error, before = residual @ residual, error
        direction = residual + error / before * direction
    return x


def natural_step(gradient: Tensor, fisher: Product, *, limit: float, iterations: int, damping: float) -> Tensor:
    """The step (N,) along F^-1 g whose KL is `limit` by F, half of s'Fs; 0 for a gradient of 0.

    damping is a share of g'Fg / g'g, added to F's diagonal while the direction is searched for.
    """
    image = fisher(gradient)
    added = damping * (gradient @ image) / (gradient @ gradient).clamp(min=1e-30)
    step = conjugate_gradient(lambda v: fisher(v) + added * v, gradient, iterations)
    return step * (2 * limit / (step @ fisher(step)).clamp(min=1e-30)).sqrt()


def line_search(
    measure: Callable[[float], tuple[float, float]], limit: float, halvings: int
) -> tuple[float, float, float]:
    """The first of 1, 1/2, 1/4, ... of a step that improves the surrogate within 1.5 times the limit; 0 if none does.

    measure takes such a share and gives the surrogate's gain and the KL there. Returns (share, gain, KL).
    """
    for share in (0.5**i for i in range(halvings + 1)):
        gain, kl = measure(share)
        if gain > 0 and kl <= SLACK * limit:
            return share, gain, kl
    return 0.0, 0.0, 0.0
