"""A run's figures elsewhere: as a picture, in W&B or trackio.

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
from collections.abc import Iterator
from pathlib import Path

import yaml

from grpo.packages import installed
from grpo.run import files
from grpo.run.terminal import say

PROJECT = "one-shot-grpo"
PATIENCE_S = 20
"""Seconds the run waits for the last rows to be sent, after everything else is done."""
TABLE_ROWS = 32
TABLE = ("step", "reward", "signals", "advantage", "finish_reason", "answer", "ground_truth", "completion")


def plot_run(folder: Path) -> Path:
    """Reads folder/metrics.jsonl, writes folder/plot.png and returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = files.read_rows(folder / "metrics.jsonl")
    signals = sorted({key for row in rows for key in row if key.startswith("signal/")})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.set(title="held-out accuracy (validation)", xlabel="step", ylim=(0, 1))
    right.set(title="training completions (mean)", xlabel="step")
    curves = [(left, "eval/greedy_accuracy", "greedy"), (left, "eval/sampled_accuracy", "sampled")]
    curves += [(right, "reward/mean", "reward")]
    curves += [(right, key, key.removeprefix("signal/")) for key in signals if not key.endswith("group_std")]
    for axes, key, label in curves:
        if points := [(row["step"], row[key]) for row in rows if row.get(key) is not None]:
            axes.plot(*zip(*points, strict=True), marker="o" if axes is left else "", label=label)
            axes.legend(loc="lower right" if axes is left else "best")
        axes.grid(alpha=0.3)
    path = folder / "plot.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


class TrackerProcess:
    """The run's side: starts the process, and at the end waits a little for it."""

    def __init__(self, tracker: str, folder: Path, patience_s: float = PATIENCE_S):
        self.tracker, self.log, self.patience_s, self.process = tracker, folder / "tracker.log", patience_s, None
        if tracker == "none":
            return
        if not installed(tracker):
            say(f"{tracker} is not installed (pip install {tracker}): the run goes on without it")
            return
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "grpo.run.trackers", tracker, str(folder)],  # -P: nothing of this folder
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the run, which then ends this process by closing its input
            )

    def close(self) -> None:
        if self.process is None:
            return
        self.process.stdin.close()
        try:
            code = self.process.wait(self.patience_s)
        except subprocess.TimeoutExpired:
            say(f"{self.tracker} is still sending; it goes on in the background, see {self.log}")
            return
        if code:
            say(f"{self.tracker} ended with code {code}, see {self.log}; the run itself lost nothing")


def main(tracker: str, folder: Path) -> None:
    lock = files.lock(folder, ".tracker.lock", wait=True)  # the process of a run that was killed may still be sending
    config = yaml.safe_load((folder / "config.yaml").read_text())
    run = {"wandb": start_wandb, "trackio": start_trackio}[tracker](folder, config)
    sent = folder / "tracker_sent"
    last = int(sent.read_text()) if sent.is_file() else -1
    for row in new_rows(folder / "metrics.jsonl"):
        step = row.pop("step")
        if step <= last:  # a resumed run repeats steps, with the same result
            continue
        if tracker == "wandb" and step and step % config["show_every"] == 0:
            row |= table(folder, step)
        run.log(row, step=step)
        last = step
        files.write(sent, str(step))
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


def new_rows(path: Path) -> Iterator[dict]:
    """The rows of metrics.jsonl as they come, until standard input has ended and all are read."""
    position, ended = 0, False
    while True:
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                while (line := file.readline()).endswith(b"\n"):
                    position = file.tell()
                    yield files.row_of(line)
        if ended:
            return
        readable, _, _ = select.select([sys.stdin], [], [], 1.0)
        ended = bool(readable) and sys.stdin.buffer.read1() == b""


def table(folder: Path, step: int) -> dict:
    """A step's first completions, every `show_every` steps: whole tables at every step would be gigabytes."""
    import wandb

    rows = files.read_completions(folder, step)[:TABLE_ROWS]
    data = [[json.dumps(row[name]) if name == "signals" else row[name] for name in TABLE] for row in rows]
    return {"completions": wandb.Table(columns=list(TABLE), data=data)}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
