"""`tutelage doctor`: every fact has a line, what is missing is named, the matrix speed is a speed."""

import importlib.metadata
import time

import pytest
import torch

from tutelage.runs.doctor import doctor, gemm_rate, missing_extras


def test_the_matrix_speed_agrees_with_a_clock_around_it() -> None:
    """2 n^3 operations a product: the best of the repeats lies near their mean, or somewhat above it."""
    left = torch.randn(512, 512)
    left @ left  # thread pools and kernel choice
    start = time.perf_counter()
    for _ in range(20):
        left @ left
    mean_rate = 20 * 2 * 512**3 / (time.perf_counter() - start) / 1e9
    assert 0.3 * mean_rate < gemm_rate(torch.float32, size=512) < 10 * mean_rate


def test_missing_packages_are_named_under_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = [
        "torch>=2",
        "absent-thing>=1; extra == 'demo'",
        'pytest>=8; extra == "dev"',
        "also.absent; extra == 'demo'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
    assert missing_extras() == {"demo": ["absent-thing", "also.absent"]}


def test_doctor_says_everything(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    out = capsys.readouterr().out
    for fact in (
        "machine",
        "cores",
        "memory",
        "python",
        "versions",
        "device",
        "precision",
        "matrix speed",
        "free disk",
    ):
        assert any(line.startswith(fact) for line in out.splitlines()), fact
    assert f"torch {torch.__version__}" in out
