"""A small grid of runs, each an ordinary run folder, and a table: `python -m tools.sweep configs/sweeps/signals.yaml`.

    preset: cpu
    out: runs/signals                 # where the run folders go
    seeds: [0, 1, 2]
    cells:                            # a name for each cell, and what it changes; every cell runs with every seed
      all signals: {}
      verify only: {reward.name: verify_only}
    grid:                             # besides: every combination of these values
      learner.lr: [1.0e-4, 3.0e-4]
      rollout.group_size: [8, 16]

A finished run is not repeated and one that was cut off goes on, so a sweep can be stopped and started again at any
time. A run that fails is named in the table, and the others go on. Figures are percentages of the run's own test
problems: the mean over the seeds and half the width of its 95% interval (Student's t).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from grpo.errors import UserError, one_line
from grpo.run.files import read_rows
from grpo.settings import build, read_yaml, typed

EXAMPLE = "configs/sweeps/signals.yaml"
TRAIN = Path(__file__).resolve().parents[1] / "train.py"
LAST_STEPS = 5
"""Training figures are means over so many steps at the end: a single one is noisy."""
COLUMNS = {
    "train reward": ("reward/mean", 1),
    "train right": ("signal/verify", 100),
    "held out, sampled": ("sampled_accuracy", 100),
    "held out, greedy": ("greedy_accuracy", 100),
    "format": ("format_rate", 100),
    "verdict": ("verdict_accuracy", 100),
    "tokens": ("completion/length_mean", 1),
}
"""Column -> a metric of the last steps or a test figure of the summary, and what it is multiplied with."""
T_95 = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Two-sided 95% quantiles of Student's t with 0, 1, 2, ... degrees of freedom; beyond, 1.96."""


class Run(NamedTuple):
    """One cell with one seed."""

    cell: str
    folder: Path
    settings: dict[str, str]


class Sweep(BaseModel):
    """The file, as it stands above."""

    model_config = ConfigDict(extra="forbid")
    preset: str = "cpu"
    out: Path = Path("runs")
    seeds: list[StrictInt] = Field([0], min_length=1)
    cells: dict[str, dict[str, Any]] = {}
    grid: dict[str, Annotated[list, Field(min_length=1)]] = {}

    def runs(self) -> list[Run]:
        """The cells that have a name, then every combination of the grid's values; each with every seed."""
        cells = list(self.cells.items())  # two of one name stay two: `read_sweep` refuses them
        for values in itertools.product(*self.grid.values()) if self.grid else ():
            settings = dict(zip(self.grid, values, strict=True))
            label = ", ".join(f"{name.rpartition('.')[2]} {typed(value)}" for name, value in settings.items())
            cells.append((label, settings))
        found = []
        for (cell, changes), seed in itertools.product(cells, self.seeds):
            name = re.sub(r"[^A-Za-z0-9.]+", "-", cell).strip("-.")
            settings = {key: typed(value) for key, value in changes.items()} | {"seed": str(seed)}
            found.append(Run(cell, self.out / f"{name}-seed{seed}", settings))
        return found


def read_sweep(path: str | Path) -> Sweep:
    """The file, every setting checked before anything runs. UserError with one line."""
    try:
        sweep = Sweep.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; see {EXAMPLE}") from None
    runs = sweep.runs()
    if not runs:
        raise UserError(f"{path}: an empty grid; give cells, or grid with at least one setting and value")
    for run in runs:
        build(sweep.preset, run.settings)
    if len({run.folder for run in runs}) < len(runs):
        raise UserError(f"{path}: two cells would share a run folder; give them names that differ in letters or digits")
    return sweep


def train(run: Run, preset: str) -> str | None:
    """Trains what is missing of the run. The last line of its errors when it fails."""
    if (run.folder / "summary.json").is_file():
        return None
    settings = {"preset": preset, "resume": "auto", "out": run.folder.parent, "name": run.folder.name} | run.settings
    command = [sys.executable, str(TRAIN), "--quiet"]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]


def figures(folder: Path) -> dict[str, float]:
    """Column -> figure of a finished run, shares in percent. What the run did not measure is left out."""
    after = json.loads((folder / "summary.json").read_text())["after"]
    last = [row for row in read_rows(folder / "metrics.jsonl") if row["step"] > 0][-LAST_STEPS:]
    found = {}
    for column, (name, factor) in COLUMNS.items():
        values = [after[name]] if name in after else [row[name] for row in last if row.get(name) is not None]
        if values:
            found[column] = factor * mean(values)
    if found.keys() >= {"train right", "held out, sampled"}:
        found["gap"] = found["train right"] - found["held out, sampled"]
    return found


def interval(values: Sequence[float]) -> str:
    """
    >>> interval([1.0, 2.0, 3.0]), interval([4.0])  # std 1, 4.30 / sqrt(3)
    ('2.0 ± 2.5', '4.0')
    """
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    t = T_95[len(values) - 1] if len(values) <= len(T_95) else 1.96
    return f"{mean(values):.1f} ± {t * stdev(values) / math.sqrt(len(values)):.1f}"


def table(runs: Sequence[Run], failed: dict[Path, str]) -> str:
    """A row a cell; failures below it."""
    results: dict[str, list[dict[str, float]]] = {run.cell: [] for run in runs}
    for run in runs:
        if run.folder not in failed:
            results[run.cell].append(figures(run.folder))
    columns = list(dict.fromkeys(name for found in results.values() for one in found for name in one))
    lines = [f"| cell | runs | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for cell, found in results.items():
        shown = [interval([one[name] for one in found if name in one]) for name in columns]
        lines.append(f"| {cell} | {len(found)} | {' | '.join(shown)} |")
    return "\n".join([*lines, *(f"failed: {folder}: {why}" for folder, why in failed.items())])


@one_line
def main(argv: Sequence[str]) -> int:
    cli = argparse.ArgumentParser(
        prog="python -m tools.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("file", metavar="FILE.yaml")
    sweep, failed = read_sweep(cli.parse_args(argv).file), {}
    for run in sweep.runs():
        print(run.folder, file=sys.stderr, flush=True)
        if why := train(run, sweep.preset):
            failed[run.folder] = why
    print(table(sweep.runs(), failed))
    print(f"the curves: python -m grpo.report {sweep.out}/*", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
