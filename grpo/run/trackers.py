"""A run's figures in W&B, trackio or TensorBoard. The only module that imports them.

Each writes in the background by itself, so that no step waits for a network: with a server that had stopped answering,
wandb 0.31 took a row of 5 kB in 0.03 s at most (tests/runs/faults/test_trackers.py). Without a server W&B starts an
offline run after 15 s. Whatever a tracker raises is reported once, and the run continues without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo.environment import installed
from grpo.run import files
from grpo.settings import Config
from grpo.terminal import notify

PROJECT = "one-shot-grpo"
TABLE_ROWS = 32
"""Completions of a step that W&B is shown; whole tables at every step would be gigabytes"""
TABLE = ("step", "reward", "signals", "advantage", "finish_reason", "answer", "ground_truth", "completion")
Log = Callable[[int, dict[str, float]], None]
"""Takes a step and its figures"""
Finish = Callable[[bool], None]
"""Takes whether the run reached its end"""


class Tracker:
    """Sends each row of metrics.jsonl, under the same names, to the tracker of that name."""

    def __init__(self, name: str, folder: Path, config: Config, last_step: int = -1):
        """last_step: the last step that an earlier start of the run has sent; no step is sent twice."""
        self.name = name
        self.last_step = last_step
        self._backend: tuple[Log, Finish] | None = None
        if name != "none" and not installed(name):
            notify(f"{name} is not installed (pip install {name}): the run continues without it")
        elif name != "none":
            with self._guarded():
                self._backend = BACKENDS[name](folder, config)

    def log(self, row: dict[str, float]) -> None:
        step = int(row["step"])
        if self._backend and step > self.last_step:
            with self._guarded():
                self._backend[0](step, {name: value for name, value in row.items() if name != "step"})

    def close(self, finished: bool) -> None:
        if self._backend:
            with self._guarded():
                self._backend[1](finished)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  (a tracker must not end a run, whatever it raises)
            notify(f"{self.name}: {type(error).__name__}: {error}; the run continues without it")
            self._backend = None


def start_wandb(folder: Path, config: Config) -> tuple[Log, Finish]:
    """Online where there is a key and a server that answers, else offline; `wandb sync` uploads it later."""
    import wandb

    settings = wandb.Settings(console="off", disable_code=True, init_timeout=15, finish_timeout=20)  # seconds
    options: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT", PROJECT), "id": files.run_id(folder), "resume": "allow",
        "name": folder.resolve().name, "dir": str(folder), "config": config.model_dump(), "settings": settings,
    }  # fmt: skip
    try:
        run = wandb.init(**options)
    except wandb.errors.Error as error:
        wandb.teardown()  # otherwise its service continues to report that this run is in use
        notify(f"W&B cannot be reached ({error}); logging offline, upload with: wandb sync {folder}/wandb/offline*")
        run = wandb.init(**options | {"mode": "offline", "resume": None})

    def log(step: int, figures: dict[str, Any]) -> None:
        if step and step % config.show_every == 0:
            rows = files.read_completions(folder, step, TABLE_ROWS)
            data = [[json.dumps(row[name]) if name == "signals" else row[name] for name in TABLE] for row in rows]
            figures = figures | {"completions": wandb.Table(columns=list(TABLE), data=data)}
        run.log(figures, step=step)

    return log, lambda finished: run.finish(exit_code=int(not finished))


def start_trackio(folder: Path, config: Config) -> tuple[Log, Finish]:
    """A database on this machine: `trackio show`."""
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    name = f"{folder.resolve().name}-{files.run_id(folder)[:4]}"  # trackio continues a run by its name
    run = trackio.init(project, name, config=config.model_dump(), resume="allow", embed=False)
    return lambda step, figures: run.log(figures, step=step), lambda finished: run.finish()


def start_tensorboard(folder: Path, config: Config) -> tuple[Log, Finish]:
    """Event files in the run folder: tensorboard --logdir runs."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def log(step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            if value is not None:
                writer.add_scalar(name, value, step)

    return log, lambda finished: writer.close()


BACKENDS = {"wandb": start_wandb, "trackio": start_trackio, "tensorboard": start_tensorboard}
