"""The rows of a data set, one at a time, so that a million of them need little memory.

Every row comes with its place ("row 3", "line 7"). A line that cannot be read comes as the reason why; what to do
about it is the caller's choice. A file that cannot be read at all is a ValueError with one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data import sources

Row = dict[str, Any]
Placed = tuple[str, Row | str]
"""Where the row stands, and the row or why it cannot be read"""
SUFFIXES = (".parquet", ".jsonl", ".json")
BATCH = 1000


def read(name: str, data_dir: str | None = None) -> Iterator[Placed]:
    """The rows of a file, of a published set by its bare name, or of a Hugging Face dataset by its id."""
    return read_dataset(name) if is_dataset(name) else read_file(sources.find(name, data_dir))


def read_file(path: Path) -> Iterator[Placed]:
    """The rows of a .parquet, .jsonl or .json file (a list of objects)."""
    readers = {".parquet": _parquet, ".jsonl": _lines, ".json": _list}
    if path.suffix not in readers:
        raise ValueError(f"{path}: data files are .parquet, .jsonl or .json")
    try:
        yield from readers[path.suffix](path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _parquet(path: Path) -> Iterator[Placed]:
    with pyarrow.parquet.ParquetFile(path) as file:
        start = 0
        for batch in file.iter_batches(batch_size=BATCH):
            yield from ((f"row {start + i}", row) for i, row in enumerate(batch.to_pylist()))
            start += len(batch)


def _lines(path: Path) -> Iterator[Placed]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
            if line.strip():
                yield f"line {number}", _row(line)


def _list(path: Path) -> Iterator[Placed]:
    try:
        rows = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds no list of rows")
    yield from ((f"row {i}", row if isinstance(row, dict) else NO_FIELDS) for i, row in enumerate(rows))


NO_FIELDS = "a row is a JSON object with named fields"


def _row(line: bytes) -> Row | str:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deeply, a number without an end
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else NO_FIELDS


def is_dataset(name: str) -> bool:
    """Whether the name means a Hugging Face dataset: `owner/name`, a folder, or either with `:config:split`."""
    base = name.partition(":")[0]
    return not Path(name).is_file() and Path(base).suffix not in SUFFIXES and (
        Path(base).is_dir() or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) is not None
    )  # fmt: skip


def read_dataset(name: str) -> Iterator[Placed]:
    """The rows of `openai/gsm8k:main:train`; configuration and split may be left out where there is one, or a train."""
    import datasets  # takes seconds, and only those who ask for a dataset pay for it

    datasets.disable_progress_bars()
    base, *parts = name.split(":")
    if len(parts) > 2 or "" in parts:
        raise ValueError(f"{name!r} is no dataset; write it as owner/name:configuration:split")
    try:
        if len(parts) == 1 and parts[0] not in datasets.get_dataset_config_names(base):
            parts = [None, *parts]  # the one part names the split
        config, split = [*parts, None, None][:2]
        found = datasets.load_dataset(base, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot read the dataset {name}: {said}; a file or folder on this machine does, too"
        ) from error
    if split is None:
        if "train" not in found and len(found) > 1:
            raise ValueError(f"{name} has the splits {', '.join(found)}; name one: {base}:{config or 'default'}:SPLIT")
        found = found["train" if "train" in found else next(iter(found))]
    start = 0
    for batch in found.iter(batch_size=BATCH):
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        yield from ((f"row {start + i}", row) for i, row in enumerate(rows))
        start += len(rows)


def write(rows: list[Row], path: Path) -> None:
    """As .parquet or .jsonl, by the name's ending."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    else:
        raise ValueError(f"--out is {path}; it must end in .parquet or .jsonl")
