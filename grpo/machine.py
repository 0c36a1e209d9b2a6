"""Checks a machine before anything is installed on it: python3 -I grpo/machine.py [base|gpu] [VENV]

Runs on Python 3.8 and needs no package. The Makefile calls it before pip downloads gigabytes; train.py --check asks the
same questions again. Prints one line for each problem; the exit code is 1 if there is any.
"""

import os
import platform
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)
DRIVER = Path("/proc/driver/nvidia/version")
LEAST_DRIVER = 580
LEAST_GLIBC = (2, 28)
GIB_OF = {"base": 6, "gpu": 9}
"""disk space of the packages, with the CUDA build of torch"""
CPU_BUILD_GIB = 2
GIB = 2**30
LIBC = platform.libc_ver()


def driver_version(driver=DRIVER):
    """The version of the NVIDIA driver, such as "580.95.05"; "" if no driver is loaded."""
    if not driver.exists():
        return ""
    words = driver.read_text().splitlines()[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def driver_problem(version):
    """The line about a driver that is too old for CUDA 13, else ""."""
    major = version.split(".")[0]
    if not major.isdigit() or int(major) >= LEAST_DRIVER:
        return ""
    return (
        f"the NVIDIA driver is {version}, CUDA 13 needs {LEAST_DRIVER} or newer: update it (docs/cloud.md, section 2)"
    )


def compiler_problems():
    """Lines about a missing C compiler: Triton, which vLLM runs on a GPU, compiles a C file at its first kernel."""
    lines = []
    if not os.environ.get("CC") and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        lines.append("there is no C compiler, and vLLM's Triton kernels need one: apt-get install -y gcc")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"
        lines.append(f"Python.h is missing, and vLLM's Triton kernels need it: apt-get install -y {package}")
    return lines


def problems(packages, venv, python=sys.version_info[:2], libc=LIBC):
    """Yields a line for each reason why `packages` (base or gpu) cannot be installed in `venv` or would not work."""
    if not OLDEST_PYTHON <= python <= NEWEST_PYTHON:
        yield (
            f"Python is {python[0]}.{python[1]}, and 3.11 to 3.14 are supported: install one (docs/cloud.md, section "
            "2) and name it, as in make gpu PYTHON=python3.12"
        )
    if libc[0] == "glibc" and tuple(map(int, libc[1].split(".")[:2])) < LEAST_GLIBC:
        yield f"glibc is {libc[1]}, and the wheels need 2.28: use Ubuntu 22.04, Debian 12 or newer"
    if not (find_spec("venv") and find_spec("ensurepip")):  # Debian and Ubuntu package both apart
        yield f"venv is missing: apt-get install -y python{python[0]}.{python[1]}-venv"
    if packages == "gpu":
        yield from compiler_problems()
        version = driver_version()
        if not version:
            yield "no NVIDIA driver is loaded: vLLM's CUDA build cannot run here; make gpu FORCE=1 installs it"
        elif driver_problem(version):
            yield driver_problem(version)
    need_gib = GIB_OF[packages]
    if sys.platform != "linux" or os.environ.get("PIP_ARGS"):  # it names a CPU build
        need_gib = CPU_BUILD_GIB
    elif (venv / "base").exists():
        need_gib -= GIB_OF["base"]
    folder = next(path for path in (venv.absolute(), *venv.absolute().parents) if path.is_dir())
    free_gib = shutil.disk_usage(str(folder)).free / GIB
    if free_gib < need_gib:
        yield (
            f"{folder} has {free_gib:.1f} GiB free, and the packages take {need_gib}: free space, or name another VENV="
        )


def main(packages="base", venv=".venv"):
    lines = list(problems(packages, Path(venv)))
    for line in lines:
        print(f"PROBLEM: {line}", file=sys.stderr)
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
