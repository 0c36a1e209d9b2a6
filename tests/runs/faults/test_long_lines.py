"""A line of 200 MB, in a data file, in a run's rows and in its completions: one clear reason, in bounded memory."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.rows import read
from grpo.report.read import Run
from grpo.run import files

SIZE = 200_000_000
SHORT = b'{"step": 1, "problem": 0, "completion": "7", "question": "3+4", "answer": "7"}\n'


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """Fails where the whole line was in memory."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < SIZE, f"{peak / 1e6:.0f} MB"


def with_a_long_line(path: Path) -> Path:
    """Rows around a line of zero bytes, which takes no room on the disk."""
    with path.open("wb") as file:
        file.write(SHORT)
        file.truncate(SIZE)
        file.seek(SIZE)
        file.write(b"\n" + SHORT)
    return path


def test_of_a_data_file_is_a_row_that_cannot_be_used(tmp_path):
    rows = list(read(str(with_a_long_line(tmp_path / "mine.jsonl"))))
    assert [place for place, _ in rows] == ["line 1", "line 2", "line 3"]
    assert rows[1][1] == "longer than 16 MiB"
    assert rows[0][1] == rows[2][1]


def test_of_a_run_is_a_damaged_row(tmp_path):
    damaged: list[bytes] = []
    rows = files.read_rows(with_a_long_line(tmp_path / "metrics.jsonl"), damaged)
    assert len(rows) == 2
    assert len(damaged) == 1
    (tmp_path / "config.yaml").write_text("steps: 1\n")
    run = Run(tmp_path, 10)
    assert run.steps == [1]
    assert "metrics.jsonl: 1 unreadable lines were skipped" in run.notes


def test_of_completions_is_damage(tmp_path):
    (tmp_path / "completions").mkdir()
    path = tmp_path / "completions" / "step_000001.jsonl.gz"
    with gzip.open(path, "wb", 1) as file:
        for _ in range(SIZE // 10**6):
            file.write(bytes(10**6))
    with pytest.raises(ValueError, match=r"step_000001\.jsonl\.gz is damaged"):
        files.read_completions(tmp_path, 1)


def test_a_completion_file_of_200_mb_is_read_as_far_as_it_is_shown(tmp_path):
    (tmp_path / "completions").mkdir()
    with gzip.open(tmp_path / "completions" / "step_000001.jsonl.gz", "wb", 1) as file:
        for _ in range(200):
            file.write(SHORT * (10**6 // len(SHORT)))
    assert len(files.read_completions(tmp_path, 1, limit=8)) == 8
