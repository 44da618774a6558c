"""The parameters of a model: which are trained, and how many there are."""

from torch import nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes: all of a plain model; the adapters and the head of an adapted one."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def parameter_count(model: nn.Module) -> int:
    """How many numbers the model has; a tied head counts once."""
    return sum(p.numel() for p in model.parameters())
