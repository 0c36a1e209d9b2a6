"""Rows of a data set, one at a time, so that a million of them need little memory.

Every row comes with its place ("row 3", "line 7"). A line that cannot be read comes as a reason instead of a row. A
file that cannot be read at all raises ValueError with one line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from gzip import GzipFile
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from data import sources, tasks

Row = dict[str, Any]
Placed = tuple[str, Row | str]
"""The place of a row, and the row or the reason why it cannot be read"""
BATCH = 1000
MAX_LINE_BYTES = 2**24
"""Bytes of a line that are read; a longer line is not a row"""


def read(name: str, data_dir: str | None = None) -> Iterator[Placed]:
    """The rows of a file, of a published set by its bare name, or of a Hugging Face dataset by its id."""
    if name.startswith(tasks.PREFIX):
        yield from tasks.read(name)
        return
    if is_dataset(name):
        yield from _dataset(name)
        return
    path = sources.find(name, data_dir)
    if path.suffix not in READERS:
        raise ValueError(f"{path}: data files are {', '.join(READERS)}")
    try:
        yield from READERS[path.suffix](path)
    except (pyarrow.ArrowException, csv.Error, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _parquet(path: Path) -> Iterator[Placed]:
    with pyarrow.parquet.ParquetFile(path) as file:
        yield from _from_arrow(file.iter_batches(BATCH))


def _lines(path: Path) -> Iterator[Placed]:
    with path.open("rb") as file:
        for number, line in enumerate(bounded_lines(file), 1):
            if not line.strip():
                continue
            if len(line) == MAX_LINE_BYTES:
                yield f"line {number}", f"longer than {MAX_LINE_BYTES // 2**20} MiB"
                continue
            try:
                yield f"line {number}", _object(json.loads(line.decode("utf-8-sig")))
            except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deeply, too long a number
                yield f"line {number}", f"not JSON: {error}"


def bounded_lines(file: BinaryIO | GzipFile) -> Iterator[bytes]:
    """Yields the lines of a file, each with its line break and cut after MAX_LINE_BYTES bytes."""
    while line := file.readline(MAX_LINE_BYTES):
        yield line
        while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)


def _list(path: Path) -> Iterator[Placed]:
    rows = json.loads(path.read_bytes())
    if not isinstance(rows, list):
        raise ValueError("it holds no list of rows")
    yield from ((f"row {i}", _object(row)) for i, row in enumerate(rows))


def _table(path: Path) -> Iterator[Placed]:
    """A first line with the columns' names. Every value is text, so 007 keeps its zeros."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from ((f"row {i}", row) for i, row in enumerate(csv.DictReader(file)))


READERS = {".parquet": _parquet, ".jsonl": _lines, ".json": _list, ".csv": _table}


def _object(row: object) -> Row | str:
    return row if isinstance(row, dict) else "a row is a JSON object with named fields"


def is_dataset(name: str) -> bool:
    """True for a Hugging Face dataset (`owner/name` or a folder, either with `:config:split`) and a task of
    reasoning-gym; false for a file and a published set, although a folder may have its name."""
    if name.startswith(tasks.PREFIX):
        return True
    base = name.partition(":")[0]
    if Path(name).is_file() or Path(base).suffix in READERS or name in sources.SOURCES:
        return False
    return Path(base).is_dir() or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) is not None


def _dataset(name: str) -> Iterator[Placed]:
    """The rows of `openai/gsm8k:main:test`. Without a configuration: the set's only one; without a split: train."""
    import datasets  # takes seconds, so it is imported only for a dataset

    datasets.disable_progress_bars()
    base, config, split = [*name.split(":", 2), "", ""][:3]
    try:
        dataset = datasets.load_dataset(base, config or None, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0]
        form = "owner/name:configuration:split, or owner/name::split"
        raise ValueError(f"cannot read the dataset {name} as {form}: {reason}") from error
    yield from _from_arrow(dataset.with_format("arrow").iter(BATCH))


def _from_arrow(batches: Iterable[pyarrow.RecordBatch | pyarrow.Table]) -> Iterator[Placed]:
    rows = (row for batch in batches for row in batch.to_pylist())
    yield from ((f"row {i}", row) for i, row in enumerate(rows))


def write(rows: list[Row], path: Path) -> None:
    """Writes a .parquet or a .jsonl file, by the name's ending."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    else:
        raise ValueError(f"--out is {path}; it must end in .parquet or .jsonl")
