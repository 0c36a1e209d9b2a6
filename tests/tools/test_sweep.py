"""The sweep: a grid of ordinary run folders, and one table over their seeds."""

from __future__ import annotations

import doctest
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from small_runs import SMALL

import train
from grpo.errors import UserError
from grpo.run import files
from grpo.settings import build
from tools import sweep

REPO = Path(__file__).resolve().parents[2]
FAST = {key: value for key, value in SMALL.items() if key != "preset"} | {"steps": 2}


def written(tmp_path: Path, **tree) -> Path:
    file = tmp_path / "sweep.yaml"
    file.write_text("\n".join(f"{key}: {value!r}" for key, value in tree.items()))
    return file


def in_process(command: list[str]) -> tuple[int, str]:
    """Calls the same train.py with the same arguments, without starting Python and importing torch for each run."""
    assert command[:2] == [sys.executable, str(REPO / "train.py")]
    errors = io.StringIO()
    with redirect_stderr(errors), redirect_stdout(io.StringIO()):
        code = train.main(command[2:])
    return code, errors.getvalue()


def test_a_sweep_runs_each_cell_with_each_seed_once_and_goes_on_after_a_failure(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "call", in_process)
    monkeypatch.setattr(train, "plot_run", lambda folder: None)
    monkeypatch.setattr("grpo.environment._commit", dict)  # asks git, in a process
    out = tmp_path / "runs"
    cells = {"works": FAST, "fails": FAST | {"model": "/no/such/model"}}
    file = written(tmp_path, out=str(out), seeds=[0, 1], cells=cells)
    assert sweep.main([str(file)]) == 1
    table = capsys.readouterr().out
    assert "| works | 2 |" in table
    assert "| fails | 0 |" in table
    assert f"failed: {out / 'fails-seed1'}: error: " in table
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not (out / "fails-seed0").exists(), "a run that could not start leaves no folder"
    (out / "works-seed1" / "summary.json").unlink()  # as if it had been killed before its end
    assert sweep.main([str(file)]) == 1
    assert capsys.readouterr().out == table
    assert {p: p.stat().st_mtime_ns for p in (out / "works-seed0").rglob("*")}.items() <= before.items()


def test_quantiles_of_student_s_t_are_where_its_density_holds_95_percent():
    """The density's integral, by the midpoint rule with the substitution t = tan(u)."""
    for degrees in (1, 2, 3, 8, 9, 10, 11, 30, 99, 1000):
        width = math.atan(sweep.t_quantile(degrees)) / 20_000
        t = np.tan((np.arange(20_000) + 0.5) * width)
        log_density = -(degrees + 1) / 2 * np.log1p(t**2 / degrees) + math.lgamma((degrees + 1) / 2)
        log_density -= math.lgamma(degrees / 2) + math.log(degrees * math.pi) / 2
        inside = 2 * width * np.sum(np.exp(log_density) * (1 + t**2))
        assert inside == pytest.approx(0.95, abs=1e-7)
    assert doctest.testmod(sweep).failed == 0


def test_figures_of_a_few_problems_are_marked(tmp_path: Path):
    """Two cells with eval.limit, of which one tested nothing, and one without."""
    runs = []
    half = {"greedy_accuracy": 0.5}
    for cell, limit, after in (("few", 8, half), ("all", None, half), ("none", 4, {})):
        runs.append(sweep.Run(cell, tmp_path / cell, {}))
        runs[-1].folder.mkdir()
        files.write_config(runs[-1].folder, build("cpu", {"eval.limit": limit}))
        (runs[-1].folder / "summary.json").write_text(json.dumps({"after": after}))
        (runs[-1].folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 1.0}\n')
    lines = sweep.table(runs, {}).splitlines()
    assert lines[2:] == [
        "| few | 1 | 1.0 | 50.0* |",
        "| all | 1 | 1.0 | 50.0 |",
        "| none | 1 | 1.0 | - |",
        "*: smoke figures, of at most the first 8 problems of each file (eval.limit)",
    ]


@pytest.mark.parametrize(("wrong", "columns"), [(0.75, {"train right": 25.0, "gap": -25.0}), (0.0, {})])
def test_train_right_is_the_share_of_right_answers(tmp_path: Path, wrong: float, columns: dict):
    """Partial credit is in signal/verify. A reward function of the user's own has no outcomes: nothing is verified."""
    (tmp_path / "summary.json").write_text('{"after": {"sampled_accuracy": 0.5, "sampled_mean_score": 0.6}}')
    row = {"step": 1, "signal/verify": 0.7, "outcome/correct": wrong / 3, "outcome/wrong": wrong}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert sweep.figures(tmp_path) == {"held out, sampled": 50.0, "mean score, sampled": 60.0} | columns


def test_a_damaged_row_is_left_out(tmp_path: Path):
    """Rewards 1 and 3 are left: 2."""
    (tmp_path / "summary.json").write_text('{"after": {"greedy_accuracy": 0.5}}')
    rows = [f'{{"step": {step}, "reward/mean": {step}}}\n' for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text(rows[0] + rows[1].replace("step", "\x00") + "{" + rows[1] + rows[2])
    assert sweep.figures(tmp_path) == {"train reward": 2.0, "held out, greedy": 50.0}


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"cells": {}}, "empty grid"),
        ({"grid": {"learner.lr": []}}, "grid.learner.lr: List should have at least 1 item"),
        ({"cells": {"a": {"learner.lrr": 1}}}, "learner.lr"),
        ({"cells": {"a": {"seed": -1}}, "seeds": [-1]}, "seed"),
        ({"cell": {"a": {}}}, "cell: Extra inputs"),
        ({"cells": {"a": {}}, "seeds": []}, "seeds: List should have at least 1 item"),
        ({"cells": {"a b": {}, "a-b": {}}}, "share a run folder"),
        ({"cells": {"lr 0.1": {"learner.lr": 0.5}}, "grid": {"learner.lr": [0.1]}}, "share a run folder"),
        ({"grid": {"learner.lr": [0.1, 0.1]}}, "share a run folder"),
    ],
)
def test_a_wrong_sweep_is_one_line_before_anything_runs(tmp_path: Path, capsys, tree: dict, words: str):
    assert sweep.main([str(written(tmp_path, out=str(tmp_path / "runs"), **tree))]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_grid_is_every_combination_of_its_values(tmp_path: Path):
    found = sweep.read_sweep(written(tmp_path, grid={"learner.lr": [0.1, 0.2], "rollout.group_size": [4, 8, 16]}))
    assert len(found.runs()) == 2 * 3
    settings = {"learner.lr": "0.2", "rollout.group_size": "16", "seed": "0"}
    assert found.runs()[-1] == ("lr 0.2, group_size 16", Path("runs/lr-0.2-group-size-16-seed0"), settings)


def test_a_file_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match=r"no/such\.yaml"):
        sweep.read_sweep("no/such.yaml")


@pytest.mark.parametrize("path", sorted((REPO / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_that_are_shipped_can_start(path: Path):
    assert sweep.read_sweep(path).runs()


def test_an_edited_cell_is_refused_and_trained_under_another_name_on_request(tmp_path: Path, monkeypatch, capsys):
    """The folder of a cell holds lr 1e-4; the cell now asks for lr 1e-9 and more steps: its old figures are not it."""
    monkeypatch.setattr(sweep, "call", in_process)
    monkeypatch.setattr(train, "plot_run", lambda folder: None)
    out = tmp_path / "runs"
    assert sweep.main([str(written(tmp_path, out=str(out), cells={"fast": FAST}))]) == 0
    capsys.readouterr()
    edited = written(tmp_path, out=str(out), cells={"fast": FAST | {"learner.lr": 1e-9, "steps": 3}})
    assert sweep.main([str(edited)]) == 2
    error = capsys.readouterr().err
    assert "learner.lr" in error
    assert "-> 1e-09" in error
    assert "steps 2 -> 3" in error
    assert "--rename" in error
    assert sweep.main([str(edited), "--rename"]) == 0
    assert "run 1 of 1" in capsys.readouterr().err
    assert (out / "fast-seed0-2" / "summary.json").is_file()
    first = (out / "fast-seed0-2" / "summary.json").stat().st_mtime_ns
    assert sweep.main([str(edited), "--rename"]) == 0, "the renamed run is found again"
    assert (out / "fast-seed0-2" / "summary.json").stat().st_mtime_ns == first


def test_ctrl_c_ends_a_sweep_in_one_line_and_the_run_keeps_its_steps(tmp_path: Path):
    out = tmp_path / "runs"
    file = written(tmp_path, out=str(out), cells={"long": FAST | {"steps": 100_000, "reward.name": "format_only"}})
    command = [sys.executable, "-m", "tools.sweep", str(file)]
    process = subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = out / "long-seed0" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 2' in metrics.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the sweep's group
    lines = process.communicate(timeout=120)[1].strip().splitlines()
    assert process.returncode == 130
    assert lines[-1] == "interrupted; the same command continues the sweep"
    assert not any("Traceback" in line for line in lines)
