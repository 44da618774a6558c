"""Losses that learn from preferences without a reward model: DPO and its family from pairs, KTO from thumbs.

    log pi(y|x), log pi_ref(y|x) of whole responses -> margins of pairs, or log ratios -> a loss

The policy that maximises E[r] - beta KL(pi || pi_ref) satisfies r = beta log(pi / pi_ref) + a term of the prompt alone
(Rafailov et al. 2023, eq. 5). These losses use that implicit reward instead of a reward model's.
DPO: Rafailov et al. 2023. cDPO, for noisy labels: Mitchell 2023. IPO: Azar et al. 2023. SimPO: Meng et al. 2024.
KTO: Ethayarajh et al. 2024. Ours: a ranking of more than two becomes all its pairs (`losses.py:pair_mean`). IPO's
margin is a sum over tokens, as in the paper; some libraries take the mean.
Pure functions of tensors: no model, no device, no randomness.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(margin: Tensor, *, beta: float, smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta h) (Rafailov et al. 2023, eq. 7), elementwise on margins of any shape.

    The margin h is log pi/pi_ref of the chosen response minus that of the rejected one, each summed over tokens.
    smoothing is cDPO's epsilon (Mitchell 2023), the assumed share of wrong labels: the loss is smallest at
    sigmoid(beta h) = 1 - epsilon, not at infinity.
    """
    return (1 - smoothing) * F.softplus(-beta * margin) + smoothing * F.softplus(beta * margin)


def ipo_loss(margin: Tensor, *, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17; their tau is beta), elementwise on DPO's margins."""
    return (margin - 1 / (2 * beta)).square()


def simpo_loss(margin: Tensor, *, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta h - gamma) (Meng et al. 2024, eq. 6), elementwise on margins of any shape.

    The margin h is the mean of log pi over the chosen response's tokens minus that of the rejected one; no reference.
    """
    return F.softplus(gamma - beta * margin)


def reference_point(log_ratios: Tensor) -> Tensor:
    """KTO's z0, an estimate of KL(pi || pi_ref): max(0, mean) (Ethayarajh et al. 2024, section 4.1).

    log_ratios (M,): log pi/pi_ref of prompts followed by a response to another prompt -> a scalar without gradient.
    0 if M is 0.
    """
    return (log_ratios.detach().sum() / max(1, len(log_ratios))).clamp(min=0)


def kto_loss(
    log_ratios: Tensor, liked: Tensor, z0: Tensor, *, beta: float, desirable: float, undesirable: float
) -> Tensor:
    """Mean over responses of lambda_y - v(x, y) (Ethayarajh et al. 2024, section 4.1).

    log_ratios (B,): log pi/pi_ref of each response; liked (B,): True for a thumb up; z0: a scalar. The value v is
    lambda_D sigmoid(beta (log ratio - z0)) for liked responses, lambda_U sigmoid(beta (z0 - log ratio)) for the others;
    `desirable` is lambda_D, `undesirable` lambda_U.
    """
    gain = beta * (log_ratios - z0)
    losses = torch.where(liked, desirable * torch.sigmoid(-gain), undesirable * torch.sigmoid(gain))
    return losses.mean()


def liked_pair_accuracy(rewards: Tensor, liked: Tensor) -> float | None:
    """Share of all (liked, other) pairs in which the liked response has the higher reward; both (B,).

    Equal rewards count one half. None if there is no such pair. Unlike a comparison with z0, it is unaffected by a
    shift that all rewards share.
    """
    ups, downs = rewards[liked], rewards[~liked].sort().values
    if not len(ups) or not len(downs):
        return None
    below, not_above = torch.searchsorted(downs, ups), torch.searchsorted(downs, ups, right=True)
    return float((below + not_above).sum() / (2 * len(ups) * len(downs)))
