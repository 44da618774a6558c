"""Which parameters of a model are trained, and how many it has."""

from torch import nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} that training changes: all of a plain model, or the adapters and the head of an adapted one."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def parameter_count(model: nn.Module) -> int:
    """Number of parameters; a tied head counts once."""
    return sum(p.numel() for p in model.parameters())
