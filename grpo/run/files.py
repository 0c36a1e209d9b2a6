"""A run's folder on disk: written so that a reader never sees half a file and a power cut loses nothing.

runs/NAME/config.yaml  run_id  versions.json  metrics.jsonl  accuracy.jsonl  problems.jsonl  bad_rows.jsonl
          completions/step_000001.jsonl.gz  checkpoints/  bad_batches.jsonl  summary.json  plot.png
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

import yaml

from data.rows import LONGEST, bounded_lines
from grpo.environment import versions
from grpo.errors import UserError
from grpo.settings import Config
from grpo.terminal import notify

if TYPE_CHECKING:
    import torch

    from grpo.types import Group
    from rewards import Score

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
GROWING = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
"""O_NOFOLLOW: never write through a symlink in an untrusted run folder."""
STARTED = {"completions", ".lock", "run_id", "versions.json"}
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}
"""Error numbers of file systems without fsync or without locks."""

# ---- writing


def write(path: Path, content: str | bytes) -> None:
    """Writes all of it or nothing: to a new file beside it, flushed to the disk, then renamed."""
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
    with writing(path.parent):
        try:
            _write(os.open(beside, NEW, 0o666), content)
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)  # half a file would keep a full disk full
            raise
        sync(path.parent)


def append(path: Path, content: str) -> None:
    with writing(path.parent):
        _write(os.open(path, GROWING, 0o666), content)


def _write(descriptor: int, content: str | bytes) -> None:
    with open(descriptor, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
        file.flush()
        _fsync(descriptor)


def sync(path: Path) -> None:
    """Flushes a file's content, or a folder's list of names, to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _notify_once("this file system has no fsync: a power cut may lose the last steps")


_notify_once = cache(notify)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into a UserError."""
    try:
        yield
    except OSError as error:
        fix = "free space and --resume" if error.errno in NO_SPACE else "check the folder"
        reason = error.strerror or error
        raise UserError(f"cannot write to {folder}: {reason}; {fix}, or choose another with --out") from error


def lock(folder: Path, name: str = ".lock") -> IO:
    """Holds the folder for this process until the returned file is closed or the process has ended, in whatever way.

    Raises UserError if another process holds it: two would write over each other.
    """
    with writing(folder):
        file = open(os.open(folder / name, GROWING, 0o666), "ab")  # noqa: SIM115  (the caller closes it)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"another process is using {folder}; wait for it to end, or write to another folder") from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            file.close()
            raise UserError(f"cannot lock {folder}: {error.strerror}; choose another folder with --out") from error
        _notify_once(f"the file system of {folder} has no locks: start nothing else that writes there")
    return file


# ---- rows


def lines(rows: Iterable[dict]) -> str:
    """The rows as lines of JSON."""
    return "".join(json.dumps(row, default=str) + "\n" for row in rows)


def read_rows(path: Path, damaged: list[bytes] | None = None) -> list[dict]:
    """The complete rows of a .jsonl file, as `rows_of` its lines; none where there is no file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        return rows_of(bounded_lines(file), damaged)


def rows_of(raw: Iterable[bytes], damaged: list[bytes] | None = None) -> list[dict]:
    """The complete rows among lines of one file. Skips a last line that was cut off, adds damaged ones to `damaged`."""
    rows = []
    for line in raw:
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif damaged is not None and (line.endswith(b"\n") or len(line) == LONGEST):
            damaged.append(line)
    return rows


def numbered(folder: Path, suffix: str = "") -> dict[int, Path]:
    """Maps step number to path for files named step_NNNNNN; ignores everything else."""
    matches = ((re.fullmatch(rf"step_(\d{{6,}}){suffix}", path.name), path) for path in folder.glob("step_*"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def completion_rows(
    step: int,
    groups: Sequence[Group],
    texts: Sequence[Sequence[str]],
    scores: Sequence[Sequence[Score]],
    advantages: torch.Tensor,
) -> list[dict]:
    """One row per completion: its text, reward, signals and advantage. Everything is [groups, completions]."""
    return [
        {
            "step": step,
            "group": g,
            "sample": i,
            "problem": group.problem.index,
            "completion": texts[g][i],
            "finish_reason": completion.finish_reason,
            "tokens": len(completion.ids),
            "reward": scores[g][i].total,
            "signals": scores[g][i].signals,
            "answer": scores[g][i].answer,
            "verdict": scores[g][i].verdict,
            "outcome": scores[g][i].outcome,
            "advantage": advantages[g, i].item(),
        }
        for g, group in enumerate(groups)
        for i, completion in enumerate(group.completions)
    ]


def write_completions(folder: Path, step: int, rows: Iterable[dict]) -> None:
    """Compressed (gzip, whose checksum covers the file), without the prompts: problems.jsonl has each once."""
    write(folder / "completions" / f"step_{step:06d}.jsonl.gz", gzip.compress(lines(rows).encode(), 6, mtime=0))


def read_completions(folder: Path, step: int, limit: int | None = None) -> list[dict]:
    """A step's first completions, each with its prompt and ground truth. ValueError where the file is damaged."""
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

    config.yaml comes last: with it the run can be resumed. A start that was killed before leaves STARTED, which the
    next start of that name takes over.
    """
    (folder / "completions").mkdir(parents=True, exist_ok=True)
    held = lock(folder)
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} exists: another run has just taken the name; choose another --name")
    try:
        write_versions(folder)
        write(folder / "run_id", secrets.token_hex(8))
        write_config(folder, config)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return held


def run_id(folder: Path) -> str:
    """The name by which checkpoints know their run, wherever its folder is moved."""
    try:
        return (folder / "run_id").read_text()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / 'run_id'} cannot be read ({error}); restore it from the run's other copies"
        ) from None


def write_versions(folder: Path, name: str = "versions.json") -> list[str]:
    """Writes what results depend on besides the settings. Returns what has changed since the start of the run."""
    now = versions()
    before = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # damaged: only this comparison needs it
        before = dict(json.loads((folder / "versions.json").read_text()))
    write(folder / name, json.dumps(now, indent=2))
    return [f"{key} {was} -> {now.get(key)}" for key, was in before.items() if now.get(key) != was]


def write_config(folder: Path, config: Config) -> None:
    write(folder / "config.yaml", yaml.safe_dump(config.model_dump(), sort_keys=False))
