"""A run, watched from a second terminal: `python -m grpo.watch runs/NAME` prints where it stands, again and again.

It only reads the run's folder (and asks nvidia-smi, where there is one), so it works over a slow connection and cannot
disturb the run.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from grpo.config import read_yaml
from grpo.errors import UserError
from grpo.run.files import read_rows

RECENT = 10
SHOWN = ("reward/mean", "signal/verify", "completion/tokens_mean", "groups/zero_variance", "mismatch/mean")
GPU = "utilization.gpu,memory.used,memory.total,temperature.gpu"


def read(folder: Path) -> tuple[int, list[dict]]:
    """Steps planned, and the rows of metrics.jsonl that are whole. UserError where it is no run's folder."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml; a run writes runs/NAME")
    return int(read_yaml(folder / "config.yaml").get("steps", 0)), read_rows(folder / "metrics.jsonl")


def describe(planned: int, rows: list[dict], now: float) -> str:
    """Where the run stands, in a few lines."""
    if not rows:
        return "no step is finished yet"
    last, done = rows[-1], rows[-1]["step"]
    seconds = [row["time/step"] for row in rows if row["step"] and row.get("time/step")][-RECENT:]
    lines = [f"step {done} of {planned}"]
    if seconds:
        lines[0] += f", {median(seconds):.1f} s a step, {(planned - done) * median(seconds) / 60:.1f} min to go"
    if last.get("time"):
        age = now - last["time"]
        slow = done < planned and seconds and age > 5 * max(seconds)
        lines[0] += f"; last written {age:.0f} s ago" + (": it has stopped, or this step is very slow" if slow else "")
    lines += [f"  {name:<24} {row_values(rows, name)}" for name in SHOWN if row_values(rows, name)]
    held_out = sorted({name for row in rows for name in row if name.startswith("eval/") and name.endswith("accuracy")})
    return "\n".join([*lines, *(f"  {name:<24} {row_values(rows, name)}" for name in held_out)])


def row_values(rows: list[dict], name: str) -> str:
    """First value -> the last five, to see which way it goes."""
    values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
    return f"{values[0]:.4g} -> {' '.join(f'{value:.4g}' for value in values[-5:])}" if values else ""


def gpu() -> str:
    """A line of nvidia-smi for each card; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    done = subprocess.run(["nvidia-smi", f"--query-gpu={GPU}", "--format=csv,noheader"], capture_output=True, text=True)
    return "".join(f"\n  GPU (load, memory, temperature)  {line}" for line in done.stdout.splitlines())


def main(argv: list[str]) -> int:
    cli = argparse.ArgumentParser(prog="python -m grpo.watch", description="Where a run stands, again and again.")
    cli.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/NAME")
    cli.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="%(default)s; 0: once")
    args = cli.parse_args(argv)
    try:
        while True:
            planned, rows = read(args.run)
            print(time.strftime("%H:%M:%S ") + describe(planned, rows, time.time()) + gpu(), flush=True)
            if not args.every or (rows and rows[-1]["step"] >= planned):
                return 0
            time.sleep(args.every)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
