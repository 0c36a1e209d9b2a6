"""A run's figures in W&B or trackio.

A tracker is a process of its own that reads the run folder: it cannot slow, block or fail the run.

`python -m grpo.run.trackers wandb FOLDER` sends what is in metrics.jsonl under the same names until its standard input
ends: that is when the run has ended, however it did. To W&B it sends a table of completions now and then; without a key
or a network it writes an offline run into FOLDER/wandb, which `wandb sync` uploads. trackio keeps its own database on
this machine (`trackio show`). The only module that imports either.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import yaml

from grpo.environment import installed
from grpo.run import files
from grpo.terminal import notify

PROJECT = "one-shot-grpo"
PATIENCE_S = 20
"""Seconds the run waits for the last rows to be sent, after everything else is done."""
LOOK_EVERY_S = 1.0
TABLE_ROWS = 32
TABLE = ("step", "reward", "signals", "advantage", "finish_reason", "answer", "ground_truth", "completion")


class TrackerProcess:
    """The run's side: starts the process, and at the end waits a little for it."""

    def __init__(self, tracker: str, folder: Path):
        self.tracker, self.log, self.process = tracker, folder / "tracker.log", None
        if tracker != "none" and not installed(tracker):
            notify(f"{tracker} is not installed (pip install {tracker}): the run goes on without it")
        elif tracker != "none":
            with self.log.open("a") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "grpo.run.trackers", tracker, str(folder.resolve())],
                    cwd=Path(__file__).parents[2],  # where Python looks first: not in whatever folder the user is in
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the run, which then ends this process by closing its input
                )

    def close(self) -> None:
        if self.process is None:
            return
        self.process.stdin.close()
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            notify(f"{self.tracker} is still sending; it goes on in the background, see {self.log}")
            return
        if code:
            notify(f"{self.tracker} ended with code {code}, see {self.log}; the run itself lost nothing")


def main(tracker: str, folder: Path) -> None:
    lock = files.lock(folder, ".tracker.lock", wait=True)  # the process of a run that was killed may still be sending
    config = yaml.safe_load((folder / "config.yaml").read_text())
    run = {"wandb": start_wandb, "trackio": start_trackio}[tracker](folder, config)
    sent = folder / "tracker_sent"  # a resumed run repeats steps, with the same result
    last, seen, ended = int(sent.read_text()) if sent.is_file() else -1, -1, False
    metrics = folder / "metrics.jsonl"
    while not ended:
        ended = bool(select.select([sys.stdin], [], [], LOOK_EVERY_S)[0])
        size = metrics.stat().st_size if metrics.exists() else 0
        rows = files.read_rows(metrics) if size != seen else []
        seen = size
        for row in rows:
            if row["step"] <= last:
                continue
            last = row.pop("step")
            if tracker == "wandb" and last and last % config["show_every"] == 0:
                row["completions"] = table(folder, last)
            run.log(row, step=last)
            files.write(sent, str(last))
    finished = {"exit_code": 0 if (folder / "summary.json").is_file() else 1} if tracker == "wandb" else {}
    run.finish(**finished)
    lock.close()


def start_wandb(folder: Path, config: dict):
    """Online where there is a key and a network, else offline."""
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")  # seconds
    import wandb

    quiet = wandb.Settings(console="off", disable_code=True, finish_timeout=600)
    project, name = os.environ.get("WANDB_PROJECT", PROJECT), folder.resolve().name
    given = {"project": project, "id": files.run_id(folder), "name": name, "dir": str(folder), "config": config}
    try:
        return wandb.init(**given, resume="allow", settings=quiet)
    except wandb.errors.Error as error:
        wandb.teardown()  # or its service goes on saying that this run is in use
        print(f"W&B cannot be reached ({error}); logging offline, upload with: wandb sync {folder}/wandb/offline-run-*")
    return wandb.init(**given, mode="offline", settings=quiet)


def start_trackio(folder: Path, config: dict):
    import trackio

    name = f"{folder.resolve().name}-{files.run_id(folder)[:4]}"  # trackio goes on with a run by its name
    return trackio.init(os.environ.get("TRACKIO_PROJECT", PROJECT), name, config=config, resume="allow", embed=False)


def table(folder: Path, step: int):
    """A step's first completions, every `show_every` steps: whole tables at every step would be gigabytes."""
    import wandb

    rows = files.read_completions(folder, step)[:TABLE_ROWS]
    data = [[json.dumps(row[name]) if name == "signals" else row[name] for name in TABLE] for row in rows]
    return wandb.Table(columns=list(TABLE), data=data)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
