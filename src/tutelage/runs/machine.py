"""Facts about this machine: hardware, software, the device that training would use, and missing packages.

    facts(folder)  ->  (name, fact) rows, which `tutelage doctor` prints

`gemm_rate` measures the speed of a matrix product, so that times from different machines can be compared. The demo
prints it at its start. Nothing here uses the network.
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
    """(name, fact) rows: machine, software, device and precision, speed, free disk, missing packages, network."""
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
        yield "missing", f"packages of the extra {extra}: pip install {' '.join(packages)}"
    yield "network", "not needed: once the packages are installed, nothing is downloaded or sent"


def gemm_rate(
    dtype: torch.dtype, device: torch.device | str = "cpu", *, size: int = 1024, seconds: float = 0.2
) -> float:
    """GFLOP/s of a square matrix product: the fastest of the repeats that fit into `seconds`."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    fastest, deadline = float("inf"), time.perf_counter() + seconds
    # The first product includes starting threads and choosing kernels. It counts if there is no time for a second one.
    while fastest == float("inf") or time.perf_counter() < deadline:
        start = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for an accelerator to finish
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest / 1e9


def name_of(dtype: torch.dtype) -> str:
    """The usual short name of a dtype: bf16, fp16 or fp32."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}.get(dtype, str(dtype))


def processor() -> str:
    """The processor's name, from /proc/cpuinfo on Linux and from Python elsewhere."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or "unknown processor"


def usable_cores() -> int:
    """Cores this process may use; containers and taskset often grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Bytes of memory this process may use: the machine's, or the container's limit if that is lower."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine


def memory_of(device: torch.device) -> int:
    """Bytes of memory for models on a device."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory_bytes()


def version(package: str) -> str:
    """The installed version, or "(not installed)"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def missing_extras() -> dict[str, list[str]]:
    """{extra: its packages that are not installed}, according to tutelage's metadata; only extras that lack some."""
    try:
        requirements = importlib.metadata.requires("tutelage") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree, which has no metadata
        return {}
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        package, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if package and extra and version(package[0]) == "(not installed)":
            missing.setdefault(extra[1], []).append(package[0])
    return missing
