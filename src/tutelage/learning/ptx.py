"""The "ptx" of PPO-ptx: the share of the pretraining gradient in an update (Ouyang et al. 2022, eq. 2).

The paper's coefficient is 27.8, for a loss whose normalisation it does not state. Ours multiplies a token mean and is
measured: over the first steps it is set so that the pretraining gradient has, on average, a given multiple of the
policy gradient's norm (default: the same norm). Then it stays fixed.
"""

from collections.abc import Iterable

from torch import Tensor

from tutelage.learning.optim import gradient_norm


class PretrainingShare:
    """The coefficient of the pretraining loss, and the measurements behind it."""

    def __init__(self, length: float = 1.0) -> None:
        """`length`: norm of the scaled pretraining gradient, in units of the policy gradient's (PPO, RLOO or GRPO)."""
        self.length = length
        self.ratios: list[float] = []  # |policy gradient| / |pretraining gradient|, one per calibration step

    @property
    def coefficient(self) -> float:
        """`length` times the mean of the ratios so far; 0 before the first."""
        return self.length * sum(self.ratios) / max(1, len(self.ratios))

    def add_gradient(self, parameters: Iterable[Tensor], loss: Tensor, calibrate: bool) -> dict[str, float]:
        """Set p.grad to p.grad + coefficient * d loss / d p, and return the metrics.

        With `calibrate` this step's ratio of gradient norms is measured first and enters the coefficient.
        """
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
