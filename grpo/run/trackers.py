"""Weights & Biases, in a process of its own that reads the run folder: it cannot slow, block or fail the run.

`python -m grpo.run.trackers FOLDER` sends what is in metrics.jsonl under the same names, and a table of completions
now and then, until its standard input ends: that is when the run has ended, however it did. Without a key or a network
it writes an offline run into FOLDER/wandb, which `wandb sync` uploads. The only module that imports wandb.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from grpo.packages import installed
from grpo.run import files
from grpo.run.terminal import say

PATIENCE_S = 20
"""Seconds the run waits for the last rows to be sent, after everything else is done."""
INIT_TIMEOUT_S = 30
TABLE_ROWS = 32
TABLE = ("step", "reward", "signals", "advantage", "finish_reason", "answer", "ground_truth", "completion")


class WandbProcess:
    """The run's side: starts the process, and at the end waits a little for it."""

    def __init__(self, folder: Path, patience_s: float = PATIENCE_S):
        self.folder, self.patience_s, self.process = folder, patience_s, None
        if not installed("wandb"):
            say("wandb is not installed (pip install wandb): the run goes on without it")
            return
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        with (folder / "wandb.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "grpo.run.trackers", str(folder)],
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
            say(f"W&B is still sending; it goes on in the background, see {self.folder / 'wandb.log'}")
            return
        if code:
            say(f"W&B logging ended with code {code}, see {self.folder / 'wandb.log'}; the run itself lost nothing")


def run_id(folder: Path) -> str:
    """The same for every process that ever logs this run."""
    path = folder / "wandb_id"
    if not path.is_file():
        files.write(path, secrets.token_hex(4))
    return path.read_text()


def main(folder: Path) -> None:
    lock = (folder / ".wandb.lock").open("a")
    files.wait_for(lock)  # the process of a run that was killed may still be sending
    import wandb

    run = start(wandb, folder)
    sent = folder / "wandb_sent"
    last = int(sent.read_text()) if sent.is_file() else -1
    for row in new_rows(folder / "metrics.jsonl"):
        step = row.pop("step")
        if step <= last:  # a resumed run repeats steps, with the same result
            continue
        run.log(row | table(wandb, folder, step), step=step)
        last = step
        files.write(sent, str(step))
    run.finish(exit_code=0 if (folder / "summary.json").is_file() else 1)


def start(wandb, folder: Path):
    """Online where there is a key and a network, else offline."""
    settings = {
        "project": os.environ.get("WANDB_PROJECT", "one-shot-grpo"),
        "id": run_id(folder),
        "name": folder.resolve().name,
        "dir": str(folder),
        "config": yaml.safe_load((folder / "config.yaml").read_text()),
    }
    quiet = wandb.Settings(init_timeout=INIT_TIMEOUT_S, console="off", disable_code=True, finish_timeout=600)
    try:
        return wandb.init(**settings, resume="allow", settings=quiet)
    except wandb.errors.Error as error:
        wandb.teardown()  # or its service goes on saying that this run is in use
        print(f"W&B cannot be reached ({error}); logging offline, upload with: wandb sync {folder}/wandb/offline-run-*")
    return wandb.init(**settings, mode="offline", settings=quiet)


def new_rows(path: Path) -> Iterator[dict]:
    """The rows of metrics.jsonl as they come, until standard input has ended and all are read."""
    position, ended = 0, False
    while True:
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                file.seek(position)
                while (line := file.readline()).endswith("\n"):
                    position = file.tell()
                    yield json.loads(line)
        if ended:
            return
        readable, _, _ = select.select([sys.stdin], [], [], 1.0)
        ended = bool(readable) and sys.stdin.buffer.read1() == b""


def table(wandb, folder: Path, step: int) -> dict:
    """A step's first completions, every `show_every` steps: whole tables at every step would be gigabytes."""
    every = yaml.safe_load((folder / "config.yaml").read_text())["show_every"]
    path = folder / "completions" / f"step_{step:06d}.jsonl"
    if step % every or not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:TABLE_ROWS]]
    data = [[json.dumps(row[name]) if name == "signals" else row[name] for name in TABLE] for row in rows]
    return {"completions": wandb.Table(columns=list(TABLE), data=data)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
