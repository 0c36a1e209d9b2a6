"""A run's figures in W&B, trackio or TensorBoard. The only module that imports them.

Each writes in the background, so no step waits for a network: after its server had stopped answering, wandb 0.31 took
a row of 5 kB in at most 0.03 s (tests/runs/faults/test_trackers.py). Without a server W&B starts an offline run after
15 s. An exception of a tracker is reported once, and the run continues without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from grpo.run import files
from grpo.settings import Config
from grpo.terminal import notify

PROJECT = "one-shot-grpo"
TABLE_ROWS = 32
"""Completions of a step that are sent to W&B; full tables at every step would be gigabytes"""
TABLE = ("step", "reward", "signals", "advantage", "finish_reason", "answer", "ground_truth", "completion")


class Tracker:
    """Sends each row of metrics.jsonl, under the same names, to the tracker of the settings."""

    def __init__(self, folder: Path, config: Config, last_step: int = -1):
        """last_step: the last step that an earlier session of the run has sent; no step is sent twice."""
        self.folder = folder
        self.config = config
        self.last_step = last_step
        self._run: Any = None
        with self._guarded():
            self._run = START[config.tracker](folder, config)

    def log(self, row: dict[str, Any]) -> None:
        step = row["step"]
        figures = {name: value for name, value in row.items() if name != "step"}
        if self._run and step > self.last_step:
            with self._guarded():
                if self.config.tracker == "wandb" and step and step % self.config.show_every == 0:
                    figures["completions"] = completions_table(self.folder, step)
                self._run.log(figures, step=step)

    def close(self, finished: bool) -> None:
        if self._run:
            with self._guarded():
                self._run.finish(**{"exit_code": int(not finished)} if self.config.tracker == "wandb" else {})

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  (a tracker must not end a run, whatever it raises)
            notify(f"{self.config.tracker}: {type(error).__name__}: {error}; the run continues without it")
            self._run = None


def start_wandb(folder: Path, config: Config) -> Any:
    """Online if there is a key and a server that answers, else offline; `wandb sync` uploads it later."""
    import wandb

    start = partial(
        wandb.init, project=os.environ.get("WANDB_PROJECT", PROJECT), id=files.run_id(folder),
        name=folder.resolve().name, dir=str(folder), config=config.model_dump(),
        settings=wandb.Settings(console="off", disable_code=True, init_timeout=15, finish_timeout=20),  # seconds
    )  # fmt: skip
    try:
        return start(resume="allow")
    except wandb.errors.Error as error:
        wandb.teardown()  # otherwise its service continues to report that this run is in use
        notify(f"W&B cannot be reached ({error}); logging offline, upload with: wandb sync {folder}/wandb/offline*")
        return start(mode="offline")


def completions_table(folder: Path, step: int) -> Any:
    """The first completions of a step, for W&B."""
    import wandb

    rows = files.read_completions(folder, step, TABLE_ROWS)
    cells = [[json.dumps(row[name]) if name == "signals" else row[name] for name in TABLE] for row in rows]
    return wandb.Table(columns=list(TABLE), data=cells)


def start_trackio(folder: Path, config: Config) -> Any:
    """A database on this machine: `trackio show`."""
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    name = f"{folder.resolve().name}-{files.run_id(folder)[:4]}"  # trackio continues a run by its name
    return trackio.init(project, name, config=config.model_dump(), resume="allow", embed=False)


class TensorBoard:
    """Event files in the run folder: tensorboard --logdir runs."""

    def __init__(self, folder: Path, config: Config):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self.finish = self._writer.close

    def log(self, figures: dict[str, float | None], step: int) -> None:
        for name, value in figures.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)


START: dict[str, Any] = {
    "none": lambda folder, config: None, "wandb": start_wandb, "trackio": start_trackio, "tensorboard": TensorBoard,
}  # fmt: skip
