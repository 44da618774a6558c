"""The "ptx" of PPO-ptx: how much of the pretraining gradient joins PPO's (Ouyang et al. 2022, eq. 2).

The paper's coefficient is 27.8, for its own sums over tokens. Ours multiplies a token mean and is measured: over the
first steps it makes both gradients equally long on average, or one of them a given part of the other, then it stays.
"""

from collections.abc import Iterable

from torch import Tensor

from tutelage.learning.optim import gradient_norm


class PretrainingShare:
    """The coefficient, and what it was measured from."""

    def __init__(self, length: float = 1.0) -> None:
        self.length = length  # of the pretraining gradient, PPO's being 1
        self.ratios: list[float] = []  # |PPO gradient| / |pretraining gradient|, one per calibration step

    @property
    def coefficient(self) -> float:
        """The mean of the ratios so far, times the length that is wanted."""
        return self.length * sum(self.ratios) / max(1, len(self.ratios))

    def add_gradient(self, parameters: Iterable[Tensor], loss: Tensor, calibrate: bool) -> dict[str, float]:
        """p.grad becomes p.grad + coefficient * d loss / d p. Returns what to log."""
        parameters = list(parameters)
        ppo_gradients = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        loss.backward()
        ppo_norm = gradient_norm([g for g in ppo_gradients if g is not None])
        ptx_norm = gradient_norm([p.grad for p in parameters if p.grad is not None])
        if calibrate:
            self.ratios.append(ppo_norm / max(ptx_norm, 1e-12))
        coefficient = self.coefficient
        for p, gradient in zip(parameters, ppo_gradients, strict=True):
            if p.grad is None:
                p.grad = gradient
            else:
                p.grad.mul_(coefficient).add_(0.0 if gradient is None else gradient)
        ratio = coefficient * ptx_norm / max(ppo_norm, 1e-12)
        return {"ptx_loss": loss.item(), "ptx_coef": coefficient, "ptx_gradient_ratio": ratio}
