"""A run's folder on disk: written so that a reader never sees half a file and a power cut loses nothing.

runs/NAME/config.yaml  versions.json  metrics.jsonl  completions/step_000001.jsonl  checkpoints/  summary.json  plot.png
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import yaml

from grpo.config import Config
from grpo.errors import UserError


def write(path: Path, text: str) -> None:
    """The whole text or nothing: written beside, flushed to the disk, renamed."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            _to_disk(file)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)  # half a file would keep a full disk full
        raise
    sync_folder(path.parent)


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        _to_disk(file)


def sync_tree(folder: Path) -> None:
    """Every file below and every folder itself: a rename must not reach the disk before the content does."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_disk(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A full disk or a folder that cannot be written is the user's to mend: one line instead of a traceback."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; free space, or choose another folder with --out"
        ) from error


def wait_for(file: IO) -> None:
    """Waits until no other process holds the lock file, and holds it."""
    fcntl.flock(file, fcntl.LOCK_EX)


def lock(folder: Path) -> IO:
    """Holds the folder for this process until the returned file is closed or the process is gone, however it went.

    UserError if another process holds it: two runs would write over each other.
    """
    with writing(folder):
        file = (folder / ".lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"another process is using {folder}; wait for it to end, or choose another --name") from None
    return file


def read_rows(path: Path) -> list[dict]:
    """The whole rows of a .jsonl file; the end of one that was cut off is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            rows.append(json.loads(line))
        except ValueError:  # a block that never reached the disk: nothing after it can be trusted
            break
    return rows


def new_folder(config: Config) -> Path:
    name = config.name or f"{config.preset}-{Path(config.data).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(config.out) / name


def check_new(folder: Path) -> None:
    """UserError where a run folder cannot be made. Nothing of an earlier run is ever written over."""
    if folder.exists():
        raise UserError(f"{folder} exists; choose another --name, or continue it with --resume {folder}")
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"cannot write to {there}; choose another folder with --out")


def create(folder: Path, config: Config) -> IO:
    """Filled beside and renamed: a folder with the run's name can be resumed, whenever the process ends.

    Returns the lock that holds it. UserError when another run has made it in the meantime.
    """
    beside = folder.with_name(f".{folder.name}.starting-{os.getpid()}")
    try:
        (beside / "completions").mkdir(parents=True)
        held = lock(beside)
        write_config(beside, config, folder.name)
        write(beside / "versions.json", json.dumps(versions(), indent=2))
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        check_new(folder)
        raise
    sync_folder(folder.parent)
    return held


def write_config(folder: Path, config: Config, name: str) -> None:
    write(folder / "config.yaml", yaml.safe_dump(config.model_dump() | {"name": name}, sort_keys=False))


def set_back(folder: Path, step: int) -> list[dict]:
    """Removes what was written after `step`: it is done again. Returns the rows of metrics.jsonl that stay."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if step and row["step"] <= step]
    write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("completions", "bad_batches"):
        for path in (folder / kind).glob("step_*"):
            if int(path.name[5:11]) > step:
                path.unlink()
    (folder / "summary.json").unlink(missing_ok=True)
    return rows


def changed_versions(folder: Path, step: int) -> list[str]:
    """What is no longer as it was at the start of the run; then the new versions are kept beside the old."""
    now = versions()
    if changes := differences(json.loads((folder / "versions.json").read_text()), now):
        write(folder / f"versions_after_{step:06d}.json", json.dumps(now, indent=2))
    return changes


PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "math-verify",
    "latex2sympy2_extended",
    "sympy",
    "numpy",
    "vllm",
    "flash-attn",
    "bitsandbytes",
)
GIB = 2**30


def versions() -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | _commit() | _hardware()


def differences(before: dict, now: dict) -> list[str]:
    """What is no longer as it was, as "torch 2.13.0 -> 2.14.0"."""
    return [
        f"{name} {before.get(name)} -> {now.get(name)}" for name in before | now if before.get(name) != now.get(name)
    ]


def _commit() -> dict[str, str]:
    """The commit of this code, "-dirty" where files differ from it; nothing where there is no git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"commit": done.stdout.strip()} if done.returncode == 0 else {}


def _hardware() -> dict[str, str | int | float]:
    import torch

    found = {
        "os": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / GIB, 1)
        found["cuda"] = torch.version.cuda
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
