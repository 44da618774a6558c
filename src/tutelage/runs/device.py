"""Chooses the device and precision of a run, once at its start.

    choose_device(kind, dtype) -> Device(torch_device, compute_dtype, threads, reason)

bf16 is chosen where it is faster: on CUDA devices with bf16 units, and on CPUs with AVX512-BF16 or AMX (2.3 to 4.5
times the speed of fp32 on large products). Master weights, losses and log-softmax are always fp32. Only the CPU branch
has been run. The CUDA and MPS branches rely on what PyTorch reports and have not been executed.
"""

import ctypes
import os
import platform
import resource
import sys
from dataclasses import dataclass
from functools import lru_cache

import torch

from tutelage.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Device:
    """The device and precision of a run."""

    torch_device: torch.device
    compute_dtype: torch.dtype
    threads: int
    reason: str  # why this device and precision were chosen, for display


def choose_device(kind: str = "auto", dtype: str = "auto", spare: int = 0) -> Device:
    """Choose the device and precision. On the CPU, use all cores but `spare`.

    Raises InputError for an unknown precision or a device that this machine lacks.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: unknown; use auto, {' or '.join(DTYPES)}")
    name = _find_device() if kind == "auto" else kind
    if name not in ("cpu", "cuda", "mps") or (name == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"--device {kind}: not on this machine, which has {_find_device()}; use --device auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: not on this machine; use --device auto")
    fast, why = _bf16_is_fast(name)
    chosen = DTYPES[dtype] if dtype != "auto" else (torch.bfloat16 if fast else torch.float32)
    threads = _use_cpu_well(spare) if name == "cpu" else torch.get_num_threads()
    return Device(torch.device(name), chosen, threads, f"{name}: {why}" if dtype == "auto" else f"{name}: requested")


def _find_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _bf16_is_fast(name: str) -> tuple[bool, str]:
    if name == "cuda":
        fast = torch.cuda.is_bf16_supported()
        return fast, "bf16 units" if fast else "no bf16 units, so fp32"
    if name == "mps":
        return False, "fp32, because bf16 has not been measured on MPS"
    flags = cpu_flags()
    bf16_flags = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    return bool(bf16_flags), f"{bf16_flags[0]}, so bf16 products" if bf16_flags else "no bf16 instructions, so fp32"


@lru_cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets by their Linux names; empty if they cannot be read."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("flags")), "")
        return frozenset(line.partition(":")[2].split())
    except OSError:
        return frozenset()


@lru_cache
def _use_cpu_well(spare: int) -> int:
    """Set one thread per usable core, less `spare`, and keep freed memory in the process; returns the threads.

    OMP_NUM_THREADS takes precedence. Fetching freed pages from the system again would cost a fifth of a step.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, usable - spare)))
    torch.set_num_threads(threads)
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        # M_MMAP_THRESHOLD: activations come from the heap, but the logits of a large vocabulary do not.
        libc.mallopt(-3, 1 << 26)
        # M_TRIM_THRESHOLD: heap memory is not returned to the system between steps.
        libc.mallopt(-1, 2**31 - 1)
    return threads


def release_memory() -> None:
    """Return freed memory to the system. Call it between two models or iterations, not between steps."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_memory_bytes() -> int:
    """Peak memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
