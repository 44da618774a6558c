"""Where a run computes and in which precision: decided once, here, and passed on.

    choose_device(kind, dtype) -> Device(torch_device, compute_dtype, threads, reason)

bf16 is chosen where it is faster: on CUDA with bf16 units, and on CPUs with AVX512-BF16 or AMX (2.3 to 4.5 times fp32
on large products). Master weights, losses and log-softmax stay fp32 everywhere. Has been run on CPU
only; the CUDA and MPS branches choose what PyTorch reports and have not been executed.
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
    """What a run computes on."""

    torch_device: torch.device
    compute_dtype: torch.dtype
    threads: int
    reason: str  # why this device and precision, for people


def choose_device(kind: str = "auto", dtype: str = "auto", spare: int = 0) -> Device:
    """Pick the device and the precision, and use the CPU's cores but for `spare`.

    Raises InputError for a device this machine lacks or a precision unknown.
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
    return Device(torch.device(name), chosen, threads, f"{name}: {why}" if dtype == "auto" else f"{name}: asked for")


def _find_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _bf16_is_fast(name: str) -> tuple[bool, str]:
    if name == "cuda":
        fast = torch.cuda.is_bf16_supported()
        return fast, "bf16 units" if fast else "no bf16 units, so fp32"
    if name == "mps":
        return False, "fp32, as bf16 has not been measured there"
    flags = cpu_flags()
    found = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    return bool(found), f"{found[0]}, so bf16 products" if found else "no bf16 instructions, so fp32"


@lru_cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux names them; empty where they cannot be read."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("flags")), "")
        return frozenset(line.partition(":")[2].split())
    except OSError:
        return frozenset()


@lru_cache
def _use_cpu_well(spare: int) -> int:
    """One thread per usable core that is not spared; freed memory is kept: fetching its pages again costs a fifth of a
    step.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, usable - spare)))
    torch.set_num_threads(threads)
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 26)  # M_MMAP_THRESHOLD: activations come from the heap, logits of a large vocabulary not
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and the heap is not handed back between steps
    return threads


def release_memory() -> None:
    """Give freed pages back to the system: between two models or two iterations, not between steps."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_memory_bytes() -> int:
    """Most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
