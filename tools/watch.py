"""A run, watched from a second terminal: `python -m tools.watch runs/NAME` prints where it stands, again and again.

It only reads the run's folder (and asks nvidia-smi, where there is one), so it works over a slow connection and cannot
disturb the run.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from grpo.errors import one_line
from grpo.run.files import read_rows
from grpo.run.terminal import figures
from grpo.settings import read_yaml

RECENT, SHOWN = 10, 5
"""Steps whose time counts; steps that are shown, besides the last one with held-out figures."""
GPU = "utilization.gpu,memory.used,memory.total,temperature.gpu"


def describe(planned: int, rows: list[dict], now: float) -> str:
    """Where the run stands, in a few lines."""
    if not rows:
        return "no step is finished yet"
    done, age = rows[-1]["step"], now - rows[-1]["time"]
    seconds = [row["time/step"] for row in rows if row["step"]][-RECENT:] or [rows[-1]["time/step"]]
    left = (planned - done) * median(seconds) / 60
    slow = ": it has stopped, or this step is very slow" if left and age > 5 * max(seconds) else ""
    head = f"step {done} of {planned}, {median(seconds):.1f} s a step, {left:.1f} min to go"
    shown = rows[-SHOWN:]
    evaluated = [row for row in rows if any(name.startswith("eval/") for name in row)]
    if evaluated and evaluated[-1] not in shown:
        shown = [evaluated[-1], *shown]
    steps = [f"  step {row['step']}  {'  '.join(figures(row))}" for row in shown]
    return "\n".join([f"{head}; last written {age:.0f} s ago{slow}", *steps])


def gpu() -> str:
    """A line of nvidia-smi for each card; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    done = subprocess.run(["nvidia-smi", f"--query-gpu={GPU}", "--format=csv,noheader"], capture_output=True, text=True)
    return "".join(f"\n  GPU (load, memory, temperature)  {line}" for line in done.stdout.splitlines())


@one_line
def main(argv: Sequence[str]) -> int:
    cli = argparse.ArgumentParser(prog="python -m tools.watch", description="Where a run stands, again and again.")
    cli.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/NAME")
    cli.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="%(default)s; 0: once")
    args = cli.parse_args(argv)
    with suppress(KeyboardInterrupt):
        while True:
            planned, rows = read_yaml(args.run / "config.yaml").get("steps", 0), read_rows(args.run / "metrics.jsonl")
            print(time.strftime("%H:%M:%S ") + describe(planned, rows, time.time()) + gpu(), flush=True)
            if not args.every or (rows and rows[-1]["step"] >= planned):
                break
            time.sleep(args.every)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
