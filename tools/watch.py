"""Shows a run's progress from a second terminal: `python -m tools.watch runs/NAME`.

Only reads the run's folder, so it cannot disturb the run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from grpo.cli import Parser
from grpo.errors import one_line
from grpo.run.display import SMOKE_NOTE, figures
from grpo.run.files import read_rows
from grpo.settings import dotted, read_yaml

RECENT = 10
"""Steps whose median is the time of a step"""
SHOWN_STEPS = 5


def describe(planned: int, rows: list[dict], now: float, finished: bool, limit: int | None = None) -> str:
    """Returns the run's state, its time left and its last steps, in a few lines. limit: the run's eval.limit."""
    if not rows:
        return "no step is finished yet"
    done = rows[-1]["step"]
    age = now - rows[-1]["time"]
    seconds = [row["time/step"] for row in rows[-RECENT:] if row["step"]] or [rows[-1]["time/step"]]
    head = f"step {done} of {planned}, {median(seconds):.1f} s a step"
    if finished:
        head = f"finished: {head}"
    else:
        head += f", {(planned - done) * median(seconds) / 60:.1f} min left; last written {age:.0f} s ago"
        if age > 5 * max(seconds):
            head += ": the run has stopped, or this step is very slow"
    evaluated = [row for row in rows[:-SHOWN_STEPS] if any(name.startswith("eval/") for name in row)]
    steps = [f"  step {row['step']}  {'  '.join(figures(row, limit))}" for row in evaluated[-1:] + rows[-SHOWN_STEPS:]]
    notes = [SMOKE_NOTE.format(limit)] if any("*" in step for step in steps) else []
    return "\n".join([head, *steps, *notes])


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    cli = Parser(prog="python -m tools.watch", description="Shows a run's progress until it is finished.")
    cli.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/NAME")
    cli.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="%(default)s; 0: once")
    args = cli.parse_args(argv)
    with suppress(KeyboardInterrupt):
        while True:
            settings = dotted(read_yaml(args.run / "config.yaml"))
            rows = [row for row in read_rows(args.run / "metrics.jsonl") if row.keys() >= {"time", "time/step"}]
            finished = (args.run / "summary.json").is_file()
            if sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")  # to the top left of an empty screen
            text = describe(settings.get("steps", 0), rows, time.time(), finished, settings.get("eval.limit"))
            print(time.strftime("%H:%M:%S ") + text, flush=True)
            if finished or not args.every:
                break
            time.sleep(args.every)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
