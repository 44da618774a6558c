"""The "ptx" of PPO-ptx: how much of the pretraining gradient joins the policy's (Ouyang et al. 2022, eq. 2).

The paper's coefficient is 27.8, for its own sums over tokens. Ours multiplies a token mean and is measured: over the
first steps it makes both gradients equally long on average, or one of them a given part of the other, then it stays.
"""

from collections.abc import Iterable

from torch import Tensor

from tutelage.learning.optim import gradient_norm


class PretrainingShare:
    """The coefficient, and what it was measured from."""

    def __init__(self, length: float = 1.0) -> None:
        self.length = length  # of the pretraining gradient, the policy gradient's being 1: PPO's, RLOO's or GRPO's
        self.ratios: list[float] = []  # |policy gradient| / |pretraining gradient|, one per calibration step

    @property
    def coefficient(self) -> float:
        """The mean of the ratios so far, times the length that is wanted."""
        return self.length * sum(self.ratios) / max(1, len(self.ratios))

    def add_gradient(self, parameters: Iterable[Tensor], loss: Tensor, calibrate: bool) -> dict[str, float]:
        """p.grad becomes p.grad + coefficient * d loss / d p. Returns what to log."""
        parameters = list(parameters)
        gradients = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        loss.backward()
        policy_norm = gradient_norm([g for g in gradients if g is not None])
        ptx_norm = gradient_norm([p.grad for p in parameters if p.grad is not None])
        if calibrate:
            self.ratios.append(policy_norm / max(ptx_norm, 1e-12))
        coefficient = self.coefficient
        for p, gradient in zip(parameters, gradients, strict=True):
            if p.grad is None:
                p.grad = gradient
            else:
                p.grad.mul_(coefficient).add_(0.0 if gradient is None else gradient)
        ratio = coefficient * ptx_norm / max(policy_norm, 1e-12)
        return {"ptx_loss": loss.item(), "ptx_coef": coefficient, "ptx_gradient_ratio": ratio}
