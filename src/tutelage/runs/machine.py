"""What this machine is, what the training will use of it and why, and what is missing.

    nothing  ->  facts, which `tutelage doctor` shows

Also `gemm_rate`, the one figure that lets times from different machines be compared: the demo prints it at its start,
because a wall time means little without the speed of the machine beside it.
Nothing here touches the network.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tutelage.runs.device import choose_device

NAMED_VERSIONS = ("tutelage", "torch", "numpy", "tokenizers", "safetensors")
MEASURED = (torch.float32, torch.bfloat16)


def facts(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, fact) rows, in the order a reader asks: machine, software, choice, room, what is missing."""
    yield "machine", f"{platform.system()} {platform.machine()}, {processor()}"
    yield "cores", f"{usable_cores()} usable of {os.cpu_count()}"
    yield "memory", f"{memory_bytes() / 2**30:.1f} GiB"
    yield "python", platform.python_version()
    yield "versions", ", ".join(f"{name} {version(name)}" for name in NAMED_VERSIONS)
    device = choose_device()
    yield "device", f"{device.torch_device}, {device.threads} threads"
    yield "precision", f"{name_of(device.compute_dtype)}: {device.reason}"
    rates = {name_of(dtype): gemm_rate(dtype, device.torch_device) for dtype in MEASURED}
    yield "matrix speed", ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in rates.items())
    yield "free disk", f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB in {folder}"
    for extra, packages in missing_extras().items():
        yield "missing", f"what the extra {extra} needs: pip install {' '.join(packages)}"
    yield "network", "not needed: nothing is downloaded or sent once the packages are installed"


def gemm_rate(
    dtype: torch.dtype, device: torch.device | str = "cpu", *, size: int = 1024, seconds: float = 0.2
) -> float:
    """Measured GFLOP/s of a square matrix product, the best of the repeats that fit in `seconds`."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    fastest, deadline = float("inf"), time.perf_counter() + seconds
    # The first product pays for thread pools and kernel choice; where it alone takes too long it is the answer.
    while fastest == float("inf") or time.perf_counter() < deadline:
        start = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for an accelerator to finish
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest / 1e9


def name_of(dtype: torch.dtype) -> str:
    """The short name people use: bf16, fp16 or fp32."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}.get(dtype, str(dtype))


def processor() -> str:
    """The processor's own name; Linux keeps it in /proc, elsewhere Python knows it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown processor"


def usable_cores() -> int:
    """Cores this process may use: containers and taskset often grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or the container's where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine


def version(package: str) -> str:
    """The installed version, or what to say where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def missing_extras() -> dict[str, list[str]]:
    """{extra: its packages that are not installed}, read from the package's own metadata, empty extras left out."""
    try:
        requirements = importlib.metadata.requires("tutelage") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree: nothing is declared anywhere
        return {}
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        package, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if package and extra and version(package[0]) == "(not installed)":
            missing.setdefault(extra[1], []).append(package[0])
    return missing
