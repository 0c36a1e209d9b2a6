"""A run's figures in W&B, trackio or TensorBoard. The only module that imports them.

Each writes in the background by itself, so that no step waits for a network: with a server that had stopped answering,
wandb 0.31 took a row of 5 kB in 0.03 s at most (tests/runs/faults/test_trackers.py). Without a server W&B starts an
offline run after 15 s. Whatever a tracker raises is reported once, and the run continues without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo.environment import installed
from grpo.run import files
from grpo.settings import Config
from grpo.terminal import notify

PROJECT = "one-shot-grpo"
TABLE_ROWS = 32
"""Completions of a step that W&B is shown; whole tables at every step would be gigabytes."""
TABLE = ("step", "reward", "signals", "advantage", "finish_reason", "answer", "ground_truth", "completion")


class Tracker:
    """Sends each row of metrics.jsonl, under the same names, to the tracker of that name."""

    def __init__(self, name: str, folder: Path, config: Config, last_step: int = -1):
        """last_step: the last step that an earlier start of the run has sent; no step is sent twice."""
        self.name = name
        self.folder = folder
        self.config = config
        self.last_step = last_step
        self._backend: Wandb | Trackio | TensorBoard | None = None
        if name != "none" and not installed(name):
            notify(f"{name} is not installed (pip install {name}): the run continues without it")
        elif name != "none":
            self._guarded(self._start)

    def log(self, row: dict[str, float]) -> None:
        backend = self._backend
        if backend and row["step"] > self.last_step:
            self._guarded(lambda: backend.log(row))

    def close(self, finished: bool) -> None:
        backend = self._backend
        if backend:
            self._guarded(lambda: backend.finish(finished))

    def _start(self) -> None:
        self._backend = BACKENDS[self.name](self.folder, self.config)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001  (a tracker must not end a run, whatever it raises)
            notify(f"{self.name}: {type(error).__name__}: {error}; the run continues without it")
            self._backend = None


class Wandb:
    """Online where there is a key and a server that answers, else offline; `wandb sync` uploads it later."""

    def __init__(self, folder: Path, config: Config):
        import wandb

        self.folder = folder
        self.every = config.show_every
        settings = wandb.Settings(console="off", disable_code=True, init_timeout=15, finish_timeout=20)  # seconds
        options: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT), "id": files.run_id(folder), "resume": "allow",
            "name": folder.resolve().name, "dir": str(folder), "config": config.model_dump(), "settings": settings,
        }  # fmt: skip
        try:
            self.run = wandb.init(**options)
        except wandb.errors.Error as error:
            wandb.teardown()  # otherwise its service continues to report that this run is in use
            notify(f"W&B cannot be reached ({error}); logging offline, upload with: wandb sync {folder}/wandb/offline*")
            self.run = wandb.init(**options | {"mode": "offline", "resume": None})

    def log(self, row: dict[str, float]) -> None:
        step = int(row["step"])
        table = {"completions": self._table(step)} if step and step % self.every == 0 else {}
        self.run.log({name: value for name, value in row.items() if name != "step"} | table, step=step)

    def _table(self, step: int) -> object:
        import wandb

        rows = files.read_completions(self.folder, step)[:TABLE_ROWS]
        data = [[json.dumps(row[name]) if name == "signals" else row[name] for name in TABLE] for row in rows]
        return wandb.Table(columns=list(TABLE), data=data)

    def finish(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class Trackio:
    """A database on this machine: `trackio show`."""

    def __init__(self, folder: Path, config: Config):
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        name = f"{folder.resolve().name}-{files.run_id(folder)[:4]}"  # trackio continues a run by its name
        self.run = trackio.init(project, name, config=config.model_dump(), resume="allow", embed=False)

    def log(self, row: dict[str, float]) -> None:
        self.run.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def finish(self, finished: bool) -> None:
        self.run.finish()


class TensorBoard:
    """Event files in the run folder: tensorboard --logdir runs."""

    def __init__(self, folder: Path, config: Config):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            if value is not None:
                self.writer.add_scalar(name, value, row["step"])

    def finish(self, finished: bool) -> None:
        self.writer.close()


BACKENDS: dict[str, type[Wandb | Trackio | TensorBoard]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "tensorboard": TensorBoard,
}
