"""A run's folder on disk: made whole, and set back to where a checkpoint stands."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import IO

import yaml

from grpo.config import Config
from grpo.errors import UserError
from grpo.run import environment, files
from grpo.run.rows import read_rows
from grpo.run.show import say


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
        lock = files.lock(beside)
        write_config(beside, config, folder.name)
        files.write(beside / "versions.json", json.dumps(environment.versions(), indent=2))
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        check_new(folder)
        raise
    files.sync_folder(folder.parent)
    return lock


def write_config(folder: Path, config: Config, name: str) -> None:
    files.write(folder / "config.yaml", yaml.safe_dump(config.model_dump() | {"name": name}, sort_keys=False))


def set_back(folder: Path, step: int) -> list[dict]:
    """Removes what was written after `step`: it is done again. Returns the rows of metrics.jsonl that stay."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if step and row["step"] <= step]
    files.write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("completions", "bad_batches"):
        for path in (folder / kind).glob("step_*"):
            if int(path.name[5:11]) > step:
                path.unlink()
    (folder / "summary.json").unlink(missing_ok=True)
    return rows


def note_versions(folder: Path, step: int) -> None:
    """Says and keeps what is no longer as it was at the start of the run."""
    now = environment.versions()
    if changes := environment.differences(json.loads((folder / "versions.json").read_text()), now):
        say(f"not all is as at the start of the run: {', '.join(changes)}")
        files.write(folder / f"versions_after_{step:06d}.json", json.dumps(now, indent=2))
