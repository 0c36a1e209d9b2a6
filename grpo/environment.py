"""Packages and machine of a run. Results depend on them, so versions.json records them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import psutil

PACKAGES = (
    *("torch", "transformers", "peft", "math-verify", "latex2sympy2_extended", "sympy", "numpy"),
    *("vllm", "flash-attn", "bitsandbytes"),
)


def versions() -> dict[str, str | int | float]:
    """Packages, the commit of this code and the hardware, by name."""
    return {"python": platform.python_version()} | versions_of(PACKAGES) | _commit() | _hardware()


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Package -> version, for those that are installed."""
    installed_versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed_versions[package] = importlib.metadata.version(package)
    return installed_versions


def installed(package: str) -> bool:
    """True if the package can be imported; a folder that happens to have its name does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _commit() -> dict[str, str]:
    """The commit of this code, with "-dirty" if files differ from it; empty without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return {"commit": subprocess.check_output(command, text=True, timeout=10, stderr=subprocess.DEVNULL).strip()}
    return {}


def _hardware() -> dict[str, str | int | float]:
    import torch

    system = f"{platform.system()} {platform.machine()}"
    hardware: dict[str, str | int | float] = {"os": system, "cpu": _cpu_name(), "cpu_cores": cpu_cores()}
    if torch.cuda.is_available():
        hardware |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return hardware


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return name[1] if name else platform.machine()


def main_memory() -> tuple[int, int]:
    """Bytes of main memory, total and available. If /proc is hidden, uses the kernel's count of pages."""
    try:
        memory = psutil.virtual_memory()
    except OSError:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    return memory.total, memory.available
