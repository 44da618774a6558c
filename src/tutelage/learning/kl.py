"""How far one policy has moved from another, estimated from samples.

With x drawn from pi and log r = log pi_ref(x) - log pi(x): k1 = -log r is unbiased and noisy, k3 = r - 1 - log r is
never negative (Schulman 2020, "Approximating KL divergence"). As rewards we use k1, as InstructGPT does; k3 is logged
beside it because k1 may come out negative on a batch.
The price of drift may be adaptive_kl_coef to a KL that is wanted (Ziegler et al. 2019, section 2.2).
The KL of the best of n samples is at most log n - (n-1)/n (Stiennon et al. 2020).
"""

import math
import sys

import torch
from torch import Tensor

from tutelage.learning.losses import masked_mean

LARGEST_ERROR = 0.2  # of the KL, relative, that a adaptive_kl_coef price follows


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log pi - log pi_ref, elementwise: mean over samples of pi is KL(pi || pi_ref)."""
    return logprobs - ref_logprobs


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """r - 1 - log r with r = pi_ref / pi, elementwise: the same mean, never below 0."""
    log_ratio = (ref_logprobs - logprobs).clamp(-20, 20)
    return log_ratio.exp() - 1 - log_ratio


def kl_per_response(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """(B,): sum over each response's tokens of log pi - log pi_ref, in nats per response."""
    drift = k1(logprobs, ref_logprobs)
    return torch.where(mask.bool(), drift, torch.zeros_like(drift)).sum(1)


def mean_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Token mean of k3 where mask is set."""
    return masked_mean(k3(logprobs, ref_logprobs), mask)


def adaptive_kl_coef(coef: float, kl: float, target: float, gain: float) -> float:
    """The next price of a nat: coef (1 + gain e), e = kl / target - 1 within -.2 and .2 (Ziegler et al. 2019).

    kl and target in nats per response. Their gain is .1; their code has episodes of a batch over 10,000. Below a gain
    of 5 a price stays above 0, from where it could not rise again.
    """
    error = min(max(kl / target - 1, -LARGEST_ERROR), LARGEST_ERROR)
    return max(coef * (1 + gain * error), sys.float_info.min)


def best_of_n_kl_bound(n: int) -> float:
    """Upper bound, in nats, of the KL between the best of n samples and one sample."""
    return math.log(n) - (n - 1) / n
