"""Runs of train.py in a forked child, so that they can be killed and start without importing torch again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import train  # noqa: E402
from grpo.run.files import read_rows  # noqa: E402

MODEL = str(REPO / "data" / "tiny-base")
SMALL = {
    "preset": "cpu",
    "model": MODEL,
    "data": str(REPO / "data" / "arithmetic" / "one_r128.parquet"),
    "steps": "6",
    "reward.name": "small_runs:spread_reward",
    "rollout.prompts_per_step": "2",
    "rollout.group_size": "4",
    "rollout.max_new_tokens": "12",
    "learner.lr": "1e-3",
    "checkpoint.every": "3",
    "eval.every": "0",
    "eval.data": "none",
    "eval.test": "none",
}
"""A run whose step takes a few hundredths of a second."""
MACHINE = ("time", "speed/", "memory/", "verifier/cache_hit_rate")
"""Metrics of the machine and not of the run: they may differ between two runs of one seed."""


def spread_reward(completion: str, ground_truth) -> dict[str, float]:
    """Different for different completions and cheap: every step has a gradient, and no worker is started."""
    return {"spread": (sum(completion.encode()) % 13) / 13}


def lots_reward(completion: str, ground_truth) -> dict[str, float]:
    """Whatever the process's own random generators say."""
    return {"lots": random.random() + np.random.rand() + torch.rand(()).item()}


def arguments(out: Path, name: str = "run", **settings: str) -> list[str]:
    chosen = SMALL | {"out": str(out), "name": name} | {key.replace("__", "."): str(v) for key, v in settings.items()}
    return [word for key, value in chosen.items() for word in (f"--{key}", value)]


class Child:
    """A fork of this process that runs `work` and leaves with what it returns."""

    def __init__(self, work: Callable[[], int], log: Path):
        self.log, self.code = log, None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run_and_leave(work, log)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = 120.0) -> int:
        """The exit code, negative for a signal. Kills the child and fails when it takes longer."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s:\n{self.output()}")
            time.sleep(0.002)
        return self.code

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _run_and_leave(work: Callable[[], int], log: Path) -> None:
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = open(1, "w", 1, closefd=False), open(2, "w", 1, closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        # tqdm's own lock is shared with the parent: a child killed while it holds it would hang all that come after.
        tqdm.set_lock(threading.RLock())
        code = work()
    except BaseException:  # noqa: BLE001  (the child's last words)
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def start(args: Sequence[str], log: Path, before: Callable[[], None] | None = None) -> Child:
    """train.py in a child; `before` runs first in it and may break something."""

    def work() -> int:
        train.plot_run = lambda folder: None  # a second of matplotlib that nothing here looks at
        if before is not None:
            before()
        return train.main(list(args))

    return Child(work, log)


def wait_until(condition: Callable[[], bool], child: Child, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, f"ended with {child.code}:\n{child.output()}"
        assert time.monotonic() < deadline, f"waited {seconds} s:\n{child.output()}"
        time.sleep(0.001)


def rows(folder: Path) -> list[dict]:
    """metrics.jsonl without what describes the machine."""
    read = read_rows(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(MACHINE)} for row in read]


def completions(folder: Path) -> dict[str, bytes]:
    """The completions, the problems, and how many of each were solved."""
    paths = [*sorted((folder / "completions").iterdir()), folder / "problems.jsonl", folder / "accuracy.jsonl"]
    return {path.name: path.read_bytes() for path in paths}


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(checkpoint.glob("*.safetensors")))


def same_run(a: Path, b: Path, step: int, files: bool = True) -> None:
    """Weights and the trainer's state after `step`, bit for bit, and where `files` are compared, figures and texts."""
    if files:
        assert rows(a) == rows(b)
        assert completions(a) == completions(b)
    left, right = (folder / "checkpoints" / f"step_{step:06d}" for folder in (a, b))
    assert weights(left).keys() == weights(right).keys()
    assert all(torch.equal(tensor, weights(right)[name]) for name, tensor in weights(left).items())
    states = [torch.load(path / "trainer.pt", weights_only=True) for path in (left, right)]
    for state in states:
        state.pop("notes"), state.pop("row"), state["identity"].pop("run")  # seconds, W&B id, the run's own name
    assert equal(*states)


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
