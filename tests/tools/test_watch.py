"""The view from a second terminal: it reads a folder, and nothing that lies in it can stop it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo.run.files import read_rows
from tools import watch


def write(folder: Path, steps: int) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("steps: 40\n")
    rows = [{"step": n, "time": 1000.0 + 30 * n, "time/step": 30.0, "reward/mean": n / 10} for n in range(steps + 1)]
    rows[2]["eval/greedy_accuracy"] = 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 11, "rew')
    return folder


def test_it_says_where_a_run_stands(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = write(tmp_path / "run", 10)
    assert watch.main([str(folder), "--every", "0"]) == 0
    out = capsys.readouterr().out
    assert "step 10 of 40, 30.0 s a step, 15.0 min left" in out  # 30 steps of half a minute
    assert "  step 9  reward 0.9\n  step 10  reward 1\n" in out
    assert "  step 2  greedy 0.5  reward 0.2\n  step 6  reward 0.6\n" in out  # the last held-out ones first


def test_figures_of_a_few_problems_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = write(tmp_path / "run", 10)
    (folder / "config.yaml").write_text("steps: 40\neval:\n  limit: 8\n")
    assert watch.main([str(folder), "--every", "0"]) == 0
    out = capsys.readouterr().out
    assert "  step 2  greedy* 0.5  reward 0.2\n" in out
    assert out.endswith("\n*: smoke figures, of at most the first 8 problems of each file (eval.limit)\n")


def test_a_run_that_stopped_is_told_from_one_that_works(tmp_path: Path):
    rows = read_rows(write(tmp_path / "run", 10) / "metrics.jsonl")
    assert "has stopped" not in watch.describe(40, rows, now=1300.0 + 100, finished=False)
    assert "has stopped" in watch.describe(40, rows, now=1300.0 + 151, finished=False)  # more than five steps ago


def test_a_finished_run_is_called_finished_and_ends_the_watch(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = write(tmp_path / "run", 10)
    (folder / "summary.json").write_text("{}")
    assert watch.main([str(folder), "--every", "3600"]) == 0
    out = capsys.readouterr().out
    assert "finished: step 10 of 40" in out
    assert "left" not in out


def test_a_folder_of_something_else_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert watch.main([str(tmp_path)]) == 2
    assert "config.yaml: No such file" in capsys.readouterr().err


def test_a_run_that_has_only_begun(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    assert watch.main([str(tmp_path), "--every", "0"]) == 0
    assert "no step is finished yet" in capsys.readouterr().out
