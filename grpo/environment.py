"""Packages and machine of a run, kept in its versions.json because results depend on them."""

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
    """Package -> version, of those that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def installed(package: str) -> bool:
    """True if the package can be imported; a folder that happens to have its name does not count."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def _commit() -> dict[str, str]:
    """The commit of this code, "-dirty" where files differ from it; nothing where there is no git."""
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
    """Bytes of main memory, all and available. Where /proc is hidden, the kernel's count of pages stands in."""
    try:
        memory = psutil.virtual_memory()
    except OSError:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    return memory.total, memory.available
