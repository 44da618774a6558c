"""Learning from preferences without a reward model: DPO and its family from pairs, KTO from thumbs.

    log pi(y|x), log pi_ref(y|x) of whole responses -> margins of pairs, or log ratios -> a loss

The policy that maximises E[r] - beta KL(pi || pi_ref) has r = beta log(pi / pi_ref) plus a term of the prompt alone
(Rafailov et al. 2023, eq. 5). These losses put that implicit reward in the place of a reward model's.
DPO: Rafailov et al. 2023. Its noise-aware form cDPO: Mitchell 2023. IPO: Azar et al. 2023. SimPO: Meng et al. 2024.
KTO: Ethayarajh et al. 2024. Ours: rankings of more than two are all their pairs (`losses.py:pair_mean`); IPO's margin
is of sums, as in the paper, where some libraries take means over tokens.
Pure functions of tensors: no model, no device, no randomness.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(margin: Tensor, *, beta: float, smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta h) (Rafailov et al. 2023, eq. 7), of any shape.

    margin h = log pi/pi_ref of the chosen response less that of the rejected one, sums over tokens.
    smoothing is cDPO's epsilon, the share of labels taken to be wrong (Mitchell 2023): the loss is least at
    sigmoid(beta h) = 1 - epsilon instead of at infinity.
    """
    return (1 - smoothing) * F.softplus(-beta * margin) + smoothing * F.softplus(beta * margin)


def ipo_loss(margin: Tensor, *, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17, whose tau is beta), of any shape; the margin is DPO's."""
    return (margin - 1 / (2 * beta)).square()


def simpo_loss(margin: Tensor, *, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta h - gamma) (Meng et al. 2024, eq. 6), of any shape.

    margin h = log pi of the chosen response over its length less the same of the rejected one: no reference.
    """
    return F.softplus(gamma - beta * margin)


def reference_point(log_ratios: Tensor) -> Tensor:
    """KTO's z0, an estimate of KL(pi || pi_ref): max(0, mean) (Ethayarajh et al. 2024, section 4.1).

    log_ratios (M,) log pi/pi_ref of responses that belong to other prompts. A constant to the gradient; 0 of none.
    """
    return (log_ratios.detach().sum() / max(1, len(log_ratios))).clamp(min=0)


def kto_loss(
    log_ratios: Tensor, liked: Tensor, z0: Tensor, *, beta: float, desirable: float, undesirable: float
) -> Tensor:
    """Mean of lambda_y - v(x, y) (Ethayarajh et al. 2024, section 4.1).

    log_ratios (B,) log pi/pi_ref of each response, liked (B,) True for a thumb up, z0 a scalar. The value v is
    lambda_D sigmoid(beta (log ratio - z0)) of a liked response, lambda_U sigmoid(beta (z0 - log ratio)) of the others;
    desirable and undesirable are the lambdas.
    """
    gain = beta * (log_ratios - z0)
    losses = torch.where(liked, desirable * torch.sigmoid(-gain), undesirable * torch.sigmoid(gain))
    return losses.mean()


def liked_above(rewards: Tensor, liked: Tensor) -> float | None:
    """Share of all pairs of a liked response and another in which the liked one has the higher reward, (B,) both.

    Equal ones count one half. None where there is no such pair. Unlike a comparison with z0 it does not move with a
    drift that all share.
    """
    ups, downs = rewards[liked], rewards[~liked].sort().values
    if not len(ups) or not len(downs):
        return None
    below, not_above = torch.searchsorted(downs, ups), torch.searchsorted(downs, ups, right=True)
    return float((below + not_above).sum() / (2 * len(ups) * len(downs)))
