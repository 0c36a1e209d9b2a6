"""Killed, interrupted or told to end at any point of a step: the run continues as if nothing had happened."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import SMALL, arguments, rows, same_run, start, wait_until

import train
from grpo.errors import Interrupted
from grpo.learner import Learner
from grpo.run import files as run_files
from grpo.run import run as run_module
from grpo.run.checkpoint import TrainingState
from grpo.run.display import Progress
from grpo.run.interrupts import Interrupts
from grpo.validation import Validator

EVALUATED = {
    "steps": 3,
    "eval.every": 1,
    "eval.limit": 1,
    "eval.data": str(Path(SMALL["data"]).with_name("validation.parquet")),
}
# What is called at that point, and after which of its calls the signal comes: always in step 2.
POINTS = {
    "rollout": (train, "rollout", 2),
    "micro-batch": (Learner, "_loss", 2),
    "optimiser step": (torch.optim.AdamW, "step", 2),
    "record": (run_module, "completion_rows", 2),
    "evaluation": (Validator, "_measure", 4),  # the test set, which is empty, then steps 0, 1 and 2
    "log": (Progress, "step", 3),
    "save": (TrainingState, "write", 2),
    "only save": (TrainingState, "write", 1),
    "start-up, model": (train, "load_policy", 1),
    "start-up, folder": (run_files, "write_config", 1),
    "start-up, engine": (train, "make_engine", 1),
}


def at(point: str, number: int) -> Callable[[], None]:
    """Breaks into a child: the signal comes right after that call, inside the function that made it."""
    owner, name, wanted = POINTS[point]
    calls = 0

    def install() -> None:
        original = getattr(owner, name)

        def signalled(*args, **kwargs):
            nonlocal calls
            result = original(*args, **kwargs)
            calls += 1
            if calls == wanted:
                os.kill(os.getpid(), number)
            return result

        setattr(owner, name, signalled)

    return install


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert start(arguments(out, "run", **EVALUATED), out / "log").wait() == 0
    return out / "run"


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr(train, "plot_run", lambda folder: None)


@pytest.mark.parametrize("point", ["micro-batch", "optimiser step", "record", "evaluation", "log", "save"])
def test_kill(tmp_path, undisturbed, point):
    args = arguments(tmp_path, "run", **EVALUATED, checkpoint__every=1)
    child = start(args, tmp_path / "log", at(point, signal.SIGKILL))
    assert child.wait() == -signal.SIGKILL, child.output()
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    same_run(undisturbed, tmp_path / "run", 3)


@pytest.mark.parametrize(
    ("point", "number", "last_step"),
    [
        ("rollout", signal.SIGTERM, 1),  # abandoned: step 2 has not changed the weights
        ("optimiser step", signal.SIGTERM, 2),  # not abandoned in the middle: waits until the step is on record
        ("record", signal.SIGINT, 2),
        ("evaluation", signal.SIGTERM, 2),  # step 2 is saved without its row, which waits for the evaluation
        ("only save", signal.SIGINT, 2),
    ],
)
def test_asked_to_end(tmp_path, undisturbed, point, number, last_step):
    """The last whole step is saved although no checkpoint is due, and nothing is lost."""
    args = arguments(tmp_path, "run", **EVALUATED, checkpoint__every=2 if point == "only save" else 0)
    child = start(args, tmp_path / "log", at(point, number))
    assert child.wait() == 128 + number, child.output()  # 130 or 143
    assert f"resume with: python train.py --resume {tmp_path / 'run'}" in child.output()
    assert "Traceback" not in child.output()
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == [f"step_{last_step:06d}"], child.output()
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    same_run(undisturbed, tmp_path / "run", 3)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    """While the first one is still saving: here the save takes a minute."""

    def slow_save() -> None:
        at("micro-batch", signal.SIGINT)()
        TrainingState.write = lambda self, folder: ((folder / "begun").touch(), time.sleep(60))

    child = start(arguments(tmp_path, "run", steps=3, checkpoint__every=0), tmp_path / "log", slow_save)
    wait_until(lambda: list(tmp_path.glob("run/checkpoints/*/begun")), child)
    begun = time.monotonic()
    child.signal(signal.SIGTERM)  # a second SIGTERM changes nothing: the first is being obeyed
    time.sleep(0.05)
    assert child.poll() is None
    child.signal(signal.SIGINT)
    assert child.wait(seconds=30) == -signal.SIGINT
    assert time.monotonic() - begun < 30


def test_two_signals_in_one_moment_end_it_once(monkeypatch):
    """A session that ends may send both during one long call of a library."""
    lost, both = [], {signal.SIGTERM, signal.SIGHUP}
    monkeypatch.setattr(sys, "unraisablehook", lost.append)

    def receive_both() -> None:
        with Interrupts():
            signal.pthread_sigmask(signal.SIG_BLOCK, both)
            for number in both:
                signal.raise_signal(number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, both)

    with pytest.raises(Interrupted):
        receive_both()
    assert lost == []


@pytest.mark.parametrize("point", [point for point in POINTS if "start-up" in point])
def test_ctrl_c_in_start_up_leaves_nothing(tmp_path, point):
    out = tmp_path / "runs"
    child = start(arguments(out, "run"), tmp_path / "log", at(point, signal.SIGINT))
    assert child.wait() == 130, child.output()
    assert not out.exists() or not list(out.iterdir())
    assert "Traceback" not in child.output()


def test_a_row_cut_off_by_the_kill_is_written_anew(tmp_path, undisturbed):
    """kill -9 in the middle of the write itself: half a line reaches the file."""

    def half_a_line() -> None:
        original = run_module.files.append

        def append(path: Path, text: str | bytes) -> None:
            if path.name == "metrics.jsonl" and '"step": 3' in text:
                original(path, text[:50])
                os.kill(os.getpid(), signal.SIGKILL)
            original(path, text)

        run_module.files.append = append

    args = arguments(tmp_path, "run", **EVALUATED, checkpoint__every=1)
    assert start(args, tmp_path / "log", half_a_line).wait() == -signal.SIGKILL
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    assert rows(tmp_path / "run") == rows(undisturbed)
