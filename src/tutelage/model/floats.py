"""Weights must be finite floating-point numbers: integers are another quantisation, NaN is a training that diverged."""

from torch import Tensor

from tutelage.errors import InputError


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raises InputError for a tensor of integers, truth values or complex numbers."""
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(
            f"model: {name} holds numbers of type {kind}, not floating-point numbers; if the model is quantised, use "
            "the original"
        )


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises InputError if the tensor holds NaN or infinity."""
    # A sum is the fastest test: a sixth of the time of loading. It may overflow by itself, so it does not condemn.
    if not tensor.sum().isfinite() and not tensor.isfinite().all():
        raise InputError(f"model: {name} holds NaN or infinity; the training diverged, or the file is damaged")
