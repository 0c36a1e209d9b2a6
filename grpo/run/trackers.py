"""What watches a run's figures: alarms, and W&B or trackio.

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
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from grpo.packages import installed
from grpo.run import files
from grpo.run.terminal import say

WINDOW = 5
"""Steps over which an alarm has to hold."""
ENOUGH = 20
"""Reflections on right answers, and on wrong ones, before their rates are compared."""
PROJECT = "one-shot-grpo"
PATIENCE_S = 20
"""Seconds the run waits for the last rows to be sent, after everything else is done."""
INIT_TIMEOUT_S = 30
TABLE_ROWS = 32
TABLE = ("step", "reward", "signals", "advantage", "finish_reason", "answer", "ground_truth", "completion")


class Alarms:
    """Says what went wrong over the last WINDOW steps, each thing once, and only where enough was seen to claim it."""

    def __init__(self) -> None:
        self.first: list[dict] = []
        self.last: deque[dict] = deque(maxlen=WINDOW)
        self.best, self.said = 0.0, set()

    def __call__(self, row: dict[str, float]) -> list[str]:
        self.last.append(row)
        if len(self.first) < WINDOW:
            self.first.append(row)
        if len(self.last) < WINDOW:
            return []
        found = {check: check(self) for check in (Alarms.flat, Alarms.fallen, Alarms.shrunk, Alarms.same_verdict)}
        new = [text for check, text in found.items() if text and check not in self.said]
        self.said |= {check for check, text in found.items() if text}
        self.best = max(self.best, mean(self.last, "reward/mean"))
        return new

    def flat(self) -> str | None:
        if min(row["groups/zero_variance"] for row in self.last) < 1 or mean(self.last, "outcome/correct") > 0.95:
            return None
        return (
            f"for {WINDOW} steps no group had completions with different rewards: every advantage was 0, nothing was "
            "learned. See outcome/* for what the completions have in common"
        )

    def fallen(self) -> str | None:
        if self.best < 0.05 or abs(mean(self.last, "reward/mean")) > 0.01 * self.best:
            return None
        return f"the reward fell to 0 after a mean of {self.best:.2g}: lower learner.lr, or go back to a checkpoint"

    def shrunk(self) -> str | None:
        before, now = (mean(rows, "completion/tokens_mean") for rows in (self.first, self.last))
        if now > before / 4 or mean(self.last, "outcome/correct") > mean(self.first, "outcome/correct") + 0.05:
            return None
        return f"completions shrank from {before:.0f} to {now:.0f} tokens and are right no more often: read a few"

    def same_verdict(self) -> str | None:
        """Whether the reflection says the same of right and of wrong answers, nearly always."""
        said = {}
        for name in ("right_says_correct", "right_says_wrong", "wrong_says_correct", "wrong_says_wrong"):
            counts = (row["completion/tokens"] / row["completion/tokens_mean"] for row in self.last)
            said[name] = sum(n * row[f"verdict/{name}"] for n, row in zip(counts, self.last, strict=True))
        right = said["right_says_correct"] + said["right_says_wrong"]
        wrong = said["wrong_says_correct"] + said["wrong_says_wrong"]
        if min(right, wrong) < ENOUGH:
            return None
        of_right, of_wrong = said["right_says_correct"] / right, said["wrong_says_correct"] / wrong
        overall = (said["right_says_correct"] + said["wrong_says_correct"]) / (right + wrong)
        if 0.05 < overall < 0.95 or abs(of_right - of_wrong) > 0.05:
            return None
        return (
            f"the reflection says 'correct' of {of_right:.0%} of the right and of {of_wrong:.0%} of the wrong answers: "
            "the reflection signal is dead"
        )


def mean(rows: Sequence[dict], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


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
    import wandb

    settings = {
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "id": files.run_id(folder),
        "name": folder.resolve().name,
        "dir": str(folder),
        "config": config,
    }
    quiet = wandb.Settings(init_timeout=INIT_TIMEOUT_S, console="off", disable_code=True, finish_timeout=600)
    try:
        return wandb.init(**settings, resume="allow", settings=quiet)
    except wandb.errors.Error as error:
        wandb.teardown()  # or its service goes on saying that this run is in use
        print(f"W&B cannot be reached ({error}); logging offline, upload with: wandb sync {folder}/wandb/offline-run-*")
    return wandb.init(**settings, mode="offline", settings=quiet)


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
