"""Estimates of the KL between two policies from samples, and the adaptive KL coefficient.

With x drawn from pi and log r = log pi_ref(x) - log pi(x), there are two estimators of KL(pi || pi_ref) (Schulman 2020,
"Approximating KL divergence"). k1 = -log r is unbiased and noisy; k3 = r - 1 - log r is unbiased and never negative.
The rewards use k1, as in InstructGPT. k3 is logged as well, because k1 can be negative on a batch.
The KL coefficient can adapt to a target KL (Ziegler et al. 2019, section 2.2).
The KL of the best of n samples is at most log n - (n-1)/n (Stiennon et al. 2020).
"""

import math
import sys

import torch
from torch import Tensor

from tutelage.learning.losses import masked_mean

# The relative error of the KL is clipped to this in one update of the KL coefficient (Ziegler et al. 2019).
MAX_RELATIVE_ERROR = 0.2


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log pi - log pi_ref, elementwise. Its mean over samples of pi is KL(pi || pi_ref)."""
    return logprobs - ref_logprobs


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """r - 1 - log r with r = pi_ref / pi, elementwise. It has the mean of k1 and is never below 0."""
    log_ratio = (ref_logprobs - logprobs).clamp(-20, 20)
    return log_ratio.exp() - 1 - log_ratio


def kl_per_response(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """k1 summed over each response's tokens, in nats per response: all (B, T) -> (B,)."""
    kl = k1(logprobs, ref_logprobs)
    return torch.where(mask.bool(), kl, torch.zeros_like(kl)).sum(1)


def mean_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Mean of k3 over the tokens where mask is set, in nats per token: all (B, T) -> a scalar."""
    return masked_mean(k3(logprobs, ref_logprobs), mask)


def adaptive_kl_coef(coef: float, kl: float, target: float, gain: float) -> float:
    """The next KL coefficient: coef (1 + gain e), e = kl / target - 1 clipped to +-0.2 (Ziegler et al. 2019).

    kl and target are in nats per response. The paper's gain is 0.1; its code uses the episodes per batch over 10,000.
    With a gain below 5 the coefficient stays above 0; from 0 it could not rise again.
    """
    error = min(max(kl / target - 1, -MAX_RELATIVE_ERROR), MAX_RELATIVE_ERROR)
    return max(coef * (1 + gain * error), sys.float_info.min)


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n-1)/n: an upper bound, in nats, on the KL of the best of n samples from one sample."""
    return math.log(n) - (n - 1) / n
