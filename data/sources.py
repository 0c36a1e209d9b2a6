"""The paper's data sets: where each file comes from, its checksum, and how it gets onto this machine.

Nothing of these files is kept in the repository. `obtain` looks in a folder of the user's own (`--data-dir` or
`$GRPO_DATA_DIR`) where one is named, else in the cache, else downloads. Whatever it returns has the table's sha256.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

REPOSITORY = "ypwang61/One-Shot-RLVR"
COMMIT = "21ed529ec90002597c92aee957af1dd8166bb66c"
LICENCE = "Apache-2.0"
RAW = f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}"
ATTEMPTS = 4
CHUNK = 64 * 1024


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


def _table() -> dict[str, Source]:
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = [row | {"rows": int(row["rows"]), "size": int(row["size"])} for row in csv.DictReader(file)]
    return {row["name"]: Source(**row) for row in rows}


SOURCES = _table()
"""By name; the table is sources.csv."""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "one-shot-grpo"


def find_source(name: str) -> Source:
    """By name, with or without the file's ending. Raises ValueError that lists the names."""
    stem = name.removesuffix(".parquet").removesuffix(".jsonl")
    if stem not in SOURCES:
        raise ValueError(f"no data set is called {name!r}; known: {', '.join(SOURCES)}")
    return SOURCES[stem]


def obtain(name: str, data_dir: str | Path | None = None) -> Path:
    """Path of a verified copy, downloaded if need be. Raises ValueError with one line that says what to do."""
    source = find_source(name)
    named = data_dir or os.environ.get("GRPO_DATA_DIR")
    if named:
        return _from_folder(source, Path(named))
    target = cache_folder() / source.local
    if target.exists():
        return _checked(source, target, f"delete it and run: python -m data fetch {source.name}")
    return download(source, target)


def locate(source: Source, data_dir: str | Path | None = None) -> Path | None:
    """Where the file lies now, unverified; None where it is not on this machine."""
    named = data_dir or os.environ.get("GRPO_DATA_DIR")
    folder = Path(named) if named else cache_folder()
    places = (folder / source.local, folder / source.path)
    return next((place for place in places if place.is_file()), None)


def _from_folder(source: Source, folder: Path) -> Path:
    found = locate(source, folder)
    if found is None:
        raise ValueError(
            f"{source.name}: neither {source.local} nor {source.path} is in {folder}; "
            f"put {source.url} there, or name no data folder to have it downloaded"
        )
    return _checked(source, found, f"replace it with {source.url}")


def _checked(source: Source, path: Path, advice: str) -> Path:
    found = _sha256(path)
    if found != source.sha256:
        raise ValueError(
            f"{source.name}: {path} is not the file of the table (sha256 {found[:12]}..., "
            f"expected {source.sha256[:12]}...): it is damaged or another version; {advice}"
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(source: Source, target: Path, *, url: str | None = None, pause_s: float = 1.0) -> Path:
    """Fetches to `target` + ".part", goes on where a cut connection stopped, verifies, and only then renames."""
    url = url or source.url
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    problem: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            if _fetch_rest(url, part, source) >= source.size:
                break
            problem = ConnectionError(f"cut after {part.stat().st_size} of {source.size} bytes")
        except (OSError, HTTPException) as error:
            problem = error
            if not _worth_another_try(error):
                raise ValueError(_by_hand(source, url, target, error)) from error
    else:
        raise ValueError(_by_hand(source, url, target, problem)) from problem
    found = _sha256(part)
    if found != source.sha256:
        part.unlink()
        raise ValueError(
            f"{source.name}: {url} gave another file than the table's (sha256 {found[:12]}..., "
            f"expected {source.sha256[:12]}...); it was thrown away. Try again, or put the right file at {target}"
        )
    os.replace(part, target)
    return target


def _worth_another_try(error: Exception) -> bool:
    """A cut line or an overloaded server is; no network, a plain refusal or a disk that takes nothing is not."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500
    if isinstance(getattr(error, "reason", None), socket.gaierror):
        return False
    return getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def _by_hand(source: Source, url: str, target: Path, problem: Exception | None) -> str:
    return (
        f"{source.name}: could not download {url} to {target} ({problem}); without network, fetch it elsewhere and put "
        f"it there, or name the folder that holds {source.local} by --data-dir or GRPO_DATA_DIR"
    )


def _fetch_rest(url: str, part: Path, source: Source) -> int:
    """One request for the bytes that `part` does not hold yet; returns how many it holds then.

    A server without ranges sends everything, and the file is begun anew.
    """
    have = part.stat().st_size if part.exists() else 0
    if have > source.size:
        part.unlink()
        have = 0
    if have == source.size:
        return have
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=30) as response:
        resumed = have and response.status == 206
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(
                total=source.size,
                initial=have if resumed else 0,
                unit="B",
                unit_scale=True,
                desc=source.name,
                leave=False,
            ) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return part.stat().st_size
