"""The choice of device and precision, and its errors."""

import pytest
import torch

from tutelage.errors import InputError
from tutelage.runs import device
from tutelage.runs.device import choose_device


def test_the_requested_device_is_used() -> None:
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        chosen = choose_device("cpu", name)
        assert (chosen.torch_device.type, chosen.compute_dtype) == ("cpu", dtype)


@pytest.mark.parametrize(
    ("flags", "dtype"), [({"amx_bf16"}, torch.bfloat16), ({"avx512_bf16"}, torch.bfloat16), ({"avx2"}, torch.float32)]
)
def test_bf16_where_the_processor_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags))
    assert choose_device("cpu", "auto").compute_dtype == dtype


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="--dtype int4"):
        choose_device("cpu", "int4")
    with pytest.raises(InputError, match="--device tpu"):
        choose_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA, so it is not refused")
def test_cuda_is_refused_where_it_is_missing() -> None:
    with pytest.raises(InputError, match="--device cuda: not on this machine, which has"):
        choose_device("cuda")


def test_peak_memory_is_in_bytes() -> None:
    before = device.peak_memory_bytes()
    held = torch.ones(40 * 2**20)  # 160 MiB
    assert 2**26 < before <= device.peak_memory_bytes() < 2**40
    assert held.sum() > 0


def test_cores_are_used_but_for_those_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is patched, so that the tests' own threads do not change."""
    used: list[int] = []
    monkeypatch.setattr(device.torch, "set_num_threads", used.append)
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for spare in (0, 1, 7):
        device._use_cpu_well.__wrapped__(spare)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    device._use_cpu_well.__wrapped__(1)
    assert used == [3, 2, 1, 5]
