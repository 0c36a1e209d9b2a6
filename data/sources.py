"""The paper's data sets: the address and checksum of each file, and its download.

The repository holds none of these files. `obtain` looks in the user's folder (`--data-dir` or `$GRPO_DATA_DIR`) if one
is named, else in the cache, and downloads what is missing. Every file it returns has the table's sha256.

The downloader is our own because of three promises: a server that refuses gets no second request, half a file never
gets a file's name, and a machine without network gets one line with the address and the place to put the file.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from pydantic.dataclasses import dataclass

REPOSITORY = "ypwang61/One-Shot-RLVR"
COMMIT = "21ed529ec90002597c92aee957af1dd8166bb66c"
LICENCE = "Apache-2.0"
RAW = f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}"


@dataclass(frozen=True, slots=True)
class Source:
    name: str
    use: str
    """train or eval"""
    rows: int
    path: str
    """inside the repository"""
    size: int
    """bytes"""
    sha256: str
    about: str

    @property
    def url(self) -> str:
        return f"{RAW}/{self.path}"

    @property
    def local(self) -> str:
        """The file's place in the cache or in --data-dir. (A clone's own layout, `path`, is found as well.)"""
        return self.path.rpartition("/")[2] if self.use == "train" else f"eval/{self.name}/test.jsonl"


TABLE: list[dict[str, Any]] = list(csv.DictReader(Path(__file__).with_suffix(".csv").read_text().splitlines()))
SOURCES = {row["name"]: Source(**row) for row in TABLE}
"""By name; the table is sources.csv."""


def find(name: str | Path, data_dir: str | Path | None = None) -> Path:
    """A file as given, or a published data set by its name. Raises ValueError with one line."""
    if Path(name).is_file():
        return Path(name)
    if len(Path(name).parts) > 1 or Path(name).stem not in SOURCES:
        raise ValueError(f"there is no data file at {name}, nor a published set of that name ({', '.join(SOURCES)})")
    return obtain(SOURCES[Path(name).stem], data_dir)


def obtain(source: Source, data_dir: str | Path | None = None) -> Path:
    """Path of a verified copy, downloaded if it is missing. Raises ValueError with one line that names the fix."""
    path = locate(source, data_dir)
    if path is None:
        return download(source, _folder(data_dir) / source.local)
    _check(source, path.read_bytes(), f"{path} is damaged or another version; delete it and fetch {source.url} again")
    return path


def locate(source: Source, data_dir: str | Path | None = None) -> Path | None:
    """Path of the file, unverified; None if it is not on this machine."""
    places = (_folder(data_dir) / source.local, _folder(data_dir) / source.path)
    return next((place for place in places if place.is_file()), None)


def _folder(data_dir: str | Path | None) -> Path:
    """The user's folder, else the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(data_dir or os.environ.get("GRPO_DATA_DIR") or cache / "one-shot-grpo").expanduser()


def _check(source: Source, content: bytes, problem: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != source.sha256:
        raise ValueError(f"{source.name}: {problem} (sha256 {digest[:12]}..., in the table {source.sha256[:12]}...)")


def download(source: Source, target: Path) -> Path:
    """Downloads the file (1.5 MB at most), verifies it, then renames it into place."""
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    try:
        content = _fetch(source.url)
        _check(source, content, f"{source.url} gave another file; try again, or put the right one at {target}")
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, target)
    except (OSError, HTTPException) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise ValueError(
            f"{source.name}: could not download {source.url} to {target} ({error}); without network, fetch it "
            f"elsewhere and put it there, or name the folder that holds {source.local} by --data-dir or GRPO_DATA_DIR"
        ) from error
    return target


def _fetch(url: str) -> bytes:
    """The file's bytes. Tries three times after a cut connection or a server's error, once after a refusal (4xx)."""
    for pause_s in (1, 2, 0):
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return response.read()
        except (OSError, HTTPException) as error:
            if not pause_s or (isinstance(error, HTTPError) and error.code < 500):
                raise
        time.sleep(pause_s)
    raise AssertionError  # the third failure was raised
