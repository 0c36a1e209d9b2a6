"""Writing so that a reader never sees half a file, and a power cut loses nothing that was said to be written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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
