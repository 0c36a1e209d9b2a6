"""Failures from inside or beside a run, each really caused."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from small_runs import arguments, rows, same_run, start, wait_until, weights

import train
from grpo.learner import Learner
from grpo.run.files import read_completions, read_rows


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert start(arguments(out, "run", steps=3), out / "log").wait() == 0
    return out / "run"


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr(train, "plot_run", lambda folder: None)


def on_call(owner, name: str, wanted: int, action) -> None:
    """Call number `wanted` becomes action(original, *arguments)."""
    original, calls = getattr(owner, name), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return action(original, *args, **kwargs) if calls == wanted else original(*args, **kwargs)

    setattr(owner, name, counted)


def test_the_engine_raises_in_generate(tmp_path, undisturbed):
    def breaks(original, *args, **kwargs):
        raise RuntimeError("the engine is dead")

    args = arguments(tmp_path, "run", steps=3, checkpoint__every=0)
    child = start(args, tmp_path / "log", lambda: on_call(train, "rollout", 3, breaks))
    assert child.wait() == 1
    assert "the engine is dead" in child.output()
    assert "resume with: python train.py --resume" in child.output()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000002"]
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    same_run(undisturbed, tmp_path / "run", 3)


def not_a_number(original, learner, batch, old, metrics):
    """The loss is NaN, as it is with a weight that is: metrics and gradient follow from the weights."""
    return original(learner, replace(batch, weights=batch.weights * math.nan), old, metrics)


def test_a_step_that_is_not_finite_is_kept_for_study_and_skipped(tmp_path):
    args = arguments(tmp_path, "run", steps=3, checkpoint__every=1, checkpoint__keep=9)
    child = start(args, tmp_path / "log", lambda: on_call(Learner, "_loss", 2, not_a_number))
    assert child.wait() == 0, child.output()
    written = rows(tmp_path / "run")
    assert [row.get("learner/skipped_steps") for row in written] == [None, 0, 1, 0]
    assert written[2]["loss/total"] is None  # null: JSON has no NaN
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    one, two, three = (weights(tmp_path / "run" / "checkpoints" / f"step_{i:06d}") for i in (1, 2, 3))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(two[name], three[name]) for name in two)
    (batch,) = read_rows(tmp_path / "run" / "bad_batches.jsonl")
    assert batch["step"] == 2
    kept = read_completions(tmp_path / "run", 2)
    assert len(batch["samples"]) == len(kept) == 8
    assert [sample["advantage"] for sample in batch["samples"]] == [row["advantage"] for row in kept]
    assert batch["loss/total"] == "nan"


def test_too_many_in_a_row_stop_the_run(tmp_path):
    def always() -> None:
        original = Learner._loss
        Learner._loss = lambda *args: not_a_number(original, *args)

    child = start(arguments(tmp_path, "run", learner__max_nonfinite_steps=2), tmp_path / "log", always)
    assert child.wait() == 1
    assert "2 optimiser steps in a row had a non-finite loss" in child.output()
    assert [batch["step"] for batch in read_rows(tmp_path / "run" / "bad_batches.jsonl")] == [1, 2]


LARGE = {
    "steps": 1,
    "rollout.prompts_per_step": 16,
    "rollout.group_size": 40,
    "rollout.max_new_tokens": 24,
    "learner.microbatch_tokens": 32768,
}


def test_out_of_memory_halves_the_microbatch_tokens(tmp_path):
    """A limit on the address space that one micro-batch of the whole step breaks and smaller ones do not."""

    def limited() -> None:
        def update(original, *args):
            room = psutil.Process().memory_info().vms + 100 * 2**20
            before = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (room, before[1]))
            try:
                return original(*args)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, before)

        on_call(Learner, "update", 1, update)

    other = start(arguments(tmp_path, "free", **LARGE), tmp_path / "free.log")
    child = start(arguments(tmp_path, "tight", **LARGE), tmp_path / "tight.log", limited)
    assert (other.wait(), child.wait()) == (0, 0), child.output()
    assert 1 <= child.output().count("out of memory: the step starts over with micro-batches of") <= 4
    free, tight = (weights(tmp_path / name / "checkpoints" / "step_000001") for name in ("free", "tight"))
    for name in free:  # the same gradient, summed in another order
        torch.testing.assert_close(free[name], tight[name], rtol=1e-3, atol=1e-4)
    state = torch.load(tmp_path / "tight" / "checkpoints" / "step_000001" / "trainer.pt", weights_only=True)
    assert state["learner"]["microbatch_tokens"] < 32768  # a resumed run keeps the smaller budget


def test_out_of_memory_gives_up_at_one_sequence(tmp_path):
    """The allocator refuses every time: a request for 2^50 bytes."""
    calls = []

    def hopeless() -> None:
        def loss(self, batch, old, metrics):
            calls.append(1)
            print("asked")
            return torch.empty(2**50, dtype=torch.uint8)

        Learner._loss = loss

    child = start(arguments(tmp_path, "run"), tmp_path / "log", hopeless)
    assert child.wait(seconds=40) == 2, "it loops forever"
    assert "one sequence of the longest kind" in child.output()
    # 8 sequences of at most 25 tokens: halved from all to one sequence in at most 4 halvings, and the first attempt.
    assert 2 <= child.output().count("asked") <= 5
    assert "Traceback" not in child.output()


def test_verifier_workers_are_killed(tmp_path, monkeypatch):
    data = tmp_path / "roots.jsonl"
    truth = {"prompt": "1+1=", "ground_truth": "\\sqrt{2}"}
    data.write_text("".join(json.dumps(truth) + "\n" for _ in range(2)))
    settings = {"steps": 2, "data": data, "reward.name": "multi_signal", "rollout.max_new_tokens": 30}
    killed = tmp_path / "killed"

    def murder(original, *args):
        descendants = psutil.Process().children(recursive=True)
        for process in descendants:
            process.kill()
        killed.write_text(str(len(descendants)))
        return original(*args)

    children = [
        start(arguments(tmp_path, "calm", **settings), tmp_path / "calm.log"),
        start(
            arguments(tmp_path, "killed_workers", **settings),
            tmp_path / "log",
            lambda: on_call(train, "score", 2, murder),
        ),
    ]
    assert [child.wait() for child in children] == [0, 0], children[1].output()
    assert int(killed.read_text()) >= 1
    same_run(tmp_path / "calm", tmp_path / "killed_workers", 2)


def test_the_clock_jumps(tmp_path, undisturbed):
    """A day back, a day forward, at every look at it: durations come from another clock."""

    def jumping() -> None:
        original, jumps = time.time, iter([0, -86400, 86400] * 100000)
        time.time = lambda: original() + next(jumps)

    child = start(arguments(tmp_path, "run", steps=3), tmp_path / "log", jumping)
    assert child.wait() == 0, child.output()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    for line in lines:
        assert all(0 <= value < 600 for name, value in line.items() if name.startswith("time/"))
    same_run(undisturbed, tmp_path / "run", 3)


def test_two_runs_in_one_folder(tmp_path, capsys):
    """The second is turned away while the first runs, whether it starts or resumes; the first never notices."""

    def slow() -> None:
        on_call(train, "rollout", 1, lambda original, *args: (time.sleep(1.5), original(*args))[1])

    child = start(arguments(tmp_path, "run", steps=2), tmp_path / "log", slow)
    wait_until(lambda: (tmp_path / "run" / "config.yaml").exists(), child)
    assert train.main(["--resume", str(tmp_path / "run")]) == 2
    assert "another process is using" in capsys.readouterr().err
    assert train.main(arguments(tmp_path, "run", steps=2)) == 2
    assert "exists; choose another --name" in capsys.readouterr().err
    assert child.wait() == 0, child.output()
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1, 2]


def test_two_new_runs_of_one_name_at_the_same_moment(tmp_path):
    children = [start(arguments(tmp_path, "run", steps=1), tmp_path / f"log{i}") for i in range(2)]
    assert sorted(child.wait() for child in children) == [0, 2]
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log0", "log1", "run"]


def test_the_lock_goes_with_the_process(tmp_path):
    def slow() -> None:
        on_call(train, "rollout", 1, lambda original, *args: time.sleep(60))

    child = start(arguments(tmp_path, "run", steps=1), tmp_path / "log", slow)
    wait_until(lambda: (tmp_path / "run" / "config.yaml").exists(), child)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
