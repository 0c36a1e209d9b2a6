"""A run's folder on disk: written so that a reader never sees half a file and a power cut loses nothing.

runs/NAME/config.yaml  run_id  versions.json  metrics.jsonl  accuracy.jsonl  problems.jsonl  bad_rows.jsonl
          completions/step_000001.jsonl.gz  checkpoints/  bad_batches.jsonl  summary.json  plot.png
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO

import yaml

from data.rows import MAX_LINE_BYTES, bounded_lines
from grpo.environment import versions
from grpo.errors import UserError
from grpo.settings import Config
from grpo.terminal import notify

GROWING = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
"""O_NOFOLLOW: never write through a symlink in an untrusted run folder."""
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
NEEDED = {
    "metrics.jsonl": {"step"},
    "accuracy.jsonl": {"step", "accuracy"},
    "bad_batches.jsonl": {"step"},
    "problems.jsonl": {"step", "problem"},
}
"""A run's files of rows -> the keys without which a row is damaged. `step` is the step that wrote it."""
UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}

# ---- writing


def write(path: Path, content: str | bytes) -> None:
    """Writes all of it or nothing: to a new file beside it, flushed to the disk, then renamed."""
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
    with writing(path.parent):
        try:
            append(beside, content)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)  # half a file would keep a full disk full
        sync(path.parent)


def append(path: Path, content: str | bytes) -> None:
    with writing(path.parent):
        with open(os.open(path, GROWING, 0o666), "ab") as file:
            file.write(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
        sync(path)


def sync(path: Path) -> None:
    """Flushes a file's content, or a folder's list of names, to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _optional("fsync: a power cut may lose the last steps"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(folder: Path) -> IO:
    """Holds the folder for this process until the returned file is closed or the process ends.

    Raises UserError if another process holds it: two would write over each other.
    """
    with writing(folder):
        file = open(os.open(folder / ".lock", GROWING, 0o666), "ab")  # noqa: SIM115  (the caller closes it)
        try:
            with _optional("locks: start nothing else that writes there"):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is using {folder}; wait for it to end, or write to another folder"
            ) from None
    return file


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into a UserError."""
    try:
        yield
    except OSError as error:
        fix = "free space and --resume" if error.errno in NO_SPACE else "check the folder"
        reason = error.strerror or error
        raise UserError(f"cannot write to {folder}: {reason}; {fix}, or choose another with --out") from error


@contextmanager
def _optional(service: str) -> Iterator[None]:
    """For a service that some file systems lack: one warning instead of an error."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _notify_once(f"this file system has no {service}")


_notify_once = cache(notify)

# ---- rows


def lines(rows: Iterable[dict]) -> str:
    """The rows as lines of JSON."""
    return "".join(json.dumps(row, default=str) + "\n" for row in rows)


def read_rows(path: Path, damaged: list[bytes] | None = None) -> list[dict]:
    """The complete rows of a .jsonl file; none without a file. NaN, which JSON lacks, is read as None.

    Skips a last line that was cut off, adds damaged ones to `damaged`.
    """
    rows: list[dict] = []
    needed = NEEDED.get(path.name, set())
    if not path.is_file():
        return rows
    with path.open("rb") as file:
        for line in bounded_lines(file):
            try:
                row = json.loads(line, parse_constant=lambda name: None)
            except (ValueError, RecursionError):
                row = None
            whole = isinstance(row, dict) and row.keys() >= needed and isinstance(row.get("step", 0), int)
            if whole and line.endswith(b"\n"):
                rows.append(row)
            elif damaged is not None and (line.endswith(b"\n") or len(line) == MAX_LINE_BYTES):
                damaged.append(line)
    return rows


def numbered(folder: Path, suffix: str = "") -> dict[int, Path]:
    """Maps step number to path for files named step_NNNNNN; ignores everything else."""
    return {int(path.name[5:11]): path for path in sorted(folder.glob(f"step_{'[0-9]' * 6}{suffix}"))}


def write_completions(folder: Path, step: int, rows: Iterable[dict]) -> None:
    """Compressed (gzip, whose checksum covers the file), without the prompts: problems.jsonl has each once."""
    write(folder / "completions" / f"step_{step:06d}.jsonl.gz", gzip.compress(lines(rows).encode(), 6, mtime=0))


def read_completions(folder: Path, step: int, limit: int | None = None) -> list[dict]:
    """A step's first completions, each with its prompt. Raises ValueError if the file is damaged."""
    path = folder / "completions" / f"step_{step:06d}.jsonl.gz"
    problems = {row.pop("problem"): row for row in read_rows(folder / "problems.jsonl")}
    try:
        with gzip.open(path) as file:
            rows = [json.loads(line) for line in islice(bounded_lines(file), limit)]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return [problems.get(row["problem"], {}) | row for row in rows]


# ---- the folder


def create(folder: Path, config: Config) -> IO:
    """Makes the new run's folder and returns the lock that holds it. Raises UserError when the name was just taken.

    The folder is renamed when it is complete; a killed start leaves no run.
    """
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    with writing(folder):
        try:
            (beside / "completions").mkdir(parents=True)
            held = lock(beside)
            write(beside / "versions.json", json.dumps(versions(), indent=2))
            write(beside / "run_id", secrets.token_hex(8))
            write_config(beside, config)
            beside.rename(folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync(folder.parent)
    return held


def run_id(folder: Path) -> str:
    """The name by which checkpoints and trackers know the run, even after its folder was moved."""
    path = folder / "run_id"
    return path.read_text(errors="replace") if path.is_file() else ""


def write_config(folder: Path, config: Config) -> None:
    write(folder / "config.yaml", yaml.safe_dump(config.model_dump(), sort_keys=False))
