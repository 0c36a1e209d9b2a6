"""The view from a second terminal: it reads a folder, and nothing that lies in it can stop it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo.watch import __main__ as watch


def write(folder: Path, steps: int) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("steps: 40\n")
    rows = [{"step": n, "time": 1000.0 + 30 * n, "time/step": 30.0, "reward/mean": n / 10} for n in range(steps + 1)]
    rows[0]["eval/greedy_accuracy"] = 0.25
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 11, "rew')
    return folder


def test_it_says_where_a_run_stands(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = write(tmp_path / "run", 10)
    assert watch.main([str(folder), "--every", "0"]) == 0
    out = capsys.readouterr().out
    assert "step 10 of 40, 30.0 s a step, 15.0 min to go" in out  # 30 steps of half a minute
    assert "reward/mean              0 -> 0.6 0.7 0.8 0.9 1" in out
    assert "eval/greedy_accuracy     0.25 -> 0.25" in out


def test_a_run_that_stopped_is_told_from_one_that_works(tmp_path: Path):
    planned, rows = watch.read(write(tmp_path / "run", 10))
    assert "it has stopped" not in watch.describe(planned, rows, now=1300.0 + 100)
    assert "it has stopped" in watch.describe(planned, rows, now=1300.0 + 151)  # more than five steps ago


def test_a_folder_of_something_else_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert watch.main([str(tmp_path)]) == 2
    assert "no config.yaml" in capsys.readouterr().err


def test_a_run_that_has_only_begun(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    assert watch.describe(*watch.read(tmp_path), now=0) == "no step is finished yet"
