"""A run's folder on disk: written so that a reader never sees half a file and a power cut loses nothing.

runs/NAME/config.yaml  versions.json  metrics.jsonl  accuracy.jsonl  problems.jsonl  bad_rows.jsonl
          completions/step_000001.jsonl.gz  checkpoints/  bad_batches.jsonl  summary.json  plot.png
"""

from __future__ import annotations

import contextlib
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
from pathlib import Path
from typing import IO, TYPE_CHECKING

import yaml

from grpo.environment import versions
from grpo.errors import UserError
from grpo.settings import Config

if TYPE_CHECKING:
    import torch

    from grpo.types import Group
    from rewards import Score

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
GROWING = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
"""A link with the file's name, in a folder that somebody sent, is never written through."""
STARTED = {"completions", ".lock", "versions.json"}
CHECK = b', "check": "'
LAST_LINE = re.compile(r"\n# run ([0-9a-f]{16})\n$")

# ---- writing


def write(path: Path, content: str | bytes) -> None:
    """All of it or nothing: written beside under a name that did not exist, flushed to the disk, renamed."""
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
    try:
        _write(os.open(beside, NEW, 0o666), content)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)  # half a file would keep a full disk full
        raise
    sync(path.parent)


def append(path: Path, content: str) -> None:
    _write(os.open(path, GROWING, 0o666), content)


def _write(descriptor: int, content: str | bytes) -> None:
    with open(descriptor, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """A file's content, or a folder's list of names, on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A full disk or a folder that cannot be written is the user's to mend: one line instead of a traceback."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; free space and go on from there, or choose another "
            "folder with --out"
        ) from error


def lock(folder: Path, name: str = ".lock", wait: bool = False) -> IO:
    """Holds the folder for this process until the returned file is closed or the process is gone, however it went.

    UserError if another process holds it (two would write over each other), unless `wait`.
    """
    with writing(folder):
        file = open(os.open(folder / name, GROWING, 0o666), "ab")  # noqa: SIM115  (the caller closes it)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        raise UserError(f"another process is using {folder}; wait for it to end, or write to another folder") from None
    return file


# ---- rows


def lines(rows: Iterable[dict]) -> str:
    """The rows as lines of JSON, each ending with a checksum of what stands before it."""
    texts = [json.dumps(row)[:-1] for row in rows]
    return "".join(f'{text}{CHECK.decode()}{zlib.crc32(text.encode()):08x}"}}\n' for text in texts)


def row_of(line: bytes, checked: bool = True) -> dict | None:
    """The row without its checksum; None where the line was damaged or, if it must be `checked`, has none."""
    text, mark, check = line.rpartition(CHECK)
    if (not mark and checked) or (mark and check.rstrip(b"\n") != b'%08x"}' % zlib.crc32(text)):
        return None
    try:
        row = json.loads(text + b"}" if mark else line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_rows(path: Path, damaged: list[bytes] | None = None) -> list[dict]:
    """The whole rows of a .jsonl file, as `rows_of` its lines."""
    return rows_of(path.read_bytes().splitlines(keepends=True) if path.is_file() else [], damaged)


def rows_of(found: Sequence[bytes], damaged: list[bytes] | None = None) -> list[dict]:
    """The whole rows among lines of one file. Damaged lines go to `damaged`; a last line that was cut off is left out.

    Rows written by hand may lack checksums, but not in a file where other rows have them.
    """
    checked, rows = any(CHECK in line for line in found), []
    for line in found:
        row = row_of(line, checked) if line.endswith(b"\n") else None
        if row is not None:
            rows.append(row)
        elif damaged is not None and line.endswith(b"\n"):
            damaged.append(line)
    return rows


def numbered(folder: Path, suffix: str = "") -> dict[int, Path]:
    """Step -> path, in order, of what a run named by a step. A copy or a note with another name is none of its."""
    found = ((re.fullmatch(rf"step_(\d{{6,}}){suffix}", path.name), path) for path in folder.glob("step_*"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def completion_rows(
    step: int,
    groups: Sequence[Group],
    texts: Sequence[Sequence[str]],
    scores: Sequence[Sequence[Score]],
    advantages: torch.Tensor,
) -> list[dict]:
    """What was written, what it was paid for, and what it taught. Everything is [groups, completions]."""
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
    content = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), 6, mtime=0)
    write(folder / "completions" / f"step_{step:06d}.jsonl.gz", content)


def read_completions(folder: Path, step: int) -> list[dict]:
    """A step's completions, each with its prompt and ground truth. ValueError where the file is damaged."""
    path = folder / "completions" / f"step_{step:06d}.jsonl.gz"
    problems = {row.pop("problem"): row for row in read_rows(folder / "problems.jsonl")}
    try:
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return [problems.get(row["problem"], {}) | row for row in rows]


# ---- the folder


def create(folder: Path, config: Config) -> IO:
    """The new run's folder, and the lock that holds it. UserError when another run has taken the name just now.

    config.yaml comes last: with it the run can be resumed. A start that was killed before leaves STARTED, which the
    next start of that name takes over.
    """
    (folder / "completions").mkdir(parents=True, exist_ok=True)
    held = lock(folder)
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} exists: another run has just taken the name; choose another --name")
    try:
        write_versions(folder)
        write_config(folder, config, secrets.token_hex(8))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sync(folder.parent)
    return held


def run_id(folder: Path) -> str | None:
    """What checkpoints name their run by: the last line of config.yaml. None where the file was cut off."""
    found = LAST_LINE.search((folder / "config.yaml").read_text(errors="replace"))
    return found and found[1]


def write_versions(folder: Path, name: str = "versions.json") -> list[str]:
    """Keeps what results depend on besides the settings. Returns what is other than at the start of the run."""
    now, before = versions(), {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # damaged: nothing but this line needs it
        before = dict(json.loads((folder / "versions.json").read_text()))
    write(folder / name, json.dumps(now, indent=2))
    return [f"{key} {was} -> {now.get(key)}" for key, was in before.items() if now.get(key) != was]


def write_config(folder: Path, config: Config, run: str) -> None:
    write(folder / "config.yaml", f"{yaml.safe_dump(config.model_dump(), sort_keys=False)}# run {run}\n")
