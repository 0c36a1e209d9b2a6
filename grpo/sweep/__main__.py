"""A small grid of runs, each an ordinary run folder, and one table: `python -m grpo.sweep configs/sweeps/signals.yaml`.

    preset: cpu
    out: runs/signals                 # where the run folders go
    seeds: [0, 1, 2]
    cells:                            # a name for each cell, and what it changes; every cell runs with every seed
      all signals: {}
      verify only: {reward.name: verify_only}
    grid:                             # besides: every combination of these values
      learner.lr: [1.0e-4, 3.0e-4]
      rollout.group: [8, 16]

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

from grpo.config import build, read_yaml, typed
from grpo.errors import UserError, one_line
from grpo.run.files import read_rows

EXAMPLE = "configs/sweeps/signals.yaml"
TRAIN = Path(__file__).resolve().parents[2] / "train.py"
LAST_STEPS = 5
"""Training figures are means over so many steps at the end: a single one is noisy."""
COLUMNS = {
    "train reward": ("reward/mean", 1),
    "train right": ("signal/verify", 100),
    "held out, sampled": ("sampled_accuracy", 100),
    "held out, greedy": ("greedy_accuracy", 100),
    "format": ("format_rate", 100),
    "verdict": ("verdict_accuracy", 100),
    "tokens": ("completion/tokens_mean", 1),
}
"""Column -> a metric of the last steps or a test figure of the summary, and what it is multiplied with."""
T_95 = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Two-sided 95% quantiles of Student's t with 0, 1, 2, ... degrees of freedom; beyond, 1.96."""


class Cell(NamedTuple):
    label: str
    settings: dict[str, Any]


class Sweep(BaseModel):
    """The file, as it stands above."""

    model_config = ConfigDict(extra="forbid")
    preset: str = "cpu"
    out: Path = Path("runs")
    seeds: list[StrictInt] = Field([0], min_length=1)
    named: dict[str, dict[str, Any]] = Field({}, alias="cells")
    grid: dict[str, Annotated[list, Field(min_length=1)]] = {}

    @property
    def cells(self) -> list[Cell]:
        """Those with a name, then every combination of the grid's values."""
        cells = [Cell(label, settings) for label, settings in self.named.items()]
        for values in itertools.product(*self.grid.values()) if self.grid else ():
            settings = dict(zip(self.grid, values, strict=True))
            label = ", ".join(f"{name.rpartition('.')[2]} {typed(value)}" for name, value in settings.items())
            cells.append(Cell(label, settings))
        return cells


def read_sweep(path: str | Path) -> Sweep:
    """The file, every setting checked before anything runs. UserError with one line."""
    try:
        sweep = Sweep.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; see {EXAMPLE}") from None
    if not sweep.cells:
        raise UserError(f"{path}: an empty grid; give cells, or grid with at least one setting and value")
    for cell, seed in itertools.product(sweep.cells, sweep.seeds):
        build(sweep.preset, _overrides(cell, seed))
    if len({folder(sweep, cell, 0) for cell in sweep.cells}) < len(sweep.cells):
        raise UserError(f"{path}: two cells would share a run folder; give them names that differ in letters or digits")
    return sweep


def _overrides(cell: Cell, seed: int) -> dict[str, str]:
    return {key: typed(value) for key, value in cell.settings.items()} | {"seed": str(seed)}


def folder(sweep: Sweep, cell: Cell, seed: int) -> Path:
    return sweep.out / f"{re.sub(r'[^A-Za-z0-9.]+', '-', cell.label).strip('-.')}-seed{seed}"


def run(sweep: Sweep, cell: Cell, seed: int) -> str | None:
    """Trains the run, or what is missing of it. The last line of its errors when it fails."""
    where = folder(sweep, cell, seed)
    if (where / "summary.json").is_file():
        return None
    command = [sys.executable, str(TRAIN), "--preset", sweep.preset, "--quiet"]
    if (where / "config.yaml").is_file():
        command += ["--resume", str(where)]
    else:
        command += ["--out", str(sweep.out), "--name", where.name]
    for key, value in _overrides(cell, seed).items():
        command += [f"--{key}", value]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]


def figures(where: Path) -> dict[str, float]:
    """Column -> figure of a finished run, shares in percent. What the run did not measure is left out."""
    after = json.loads((where / "summary.json").read_text())["after"]
    last = [row for row in read_rows(where / "metrics.jsonl") if row["step"] > 0][-LAST_STEPS:]
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


def table(sweep: Sweep, failed: dict[tuple[str, int], str]) -> str:
    """A row a cell; failures below it."""
    results = {
        cell.label: [figures(folder(sweep, cell, seed)) for seed in sweep.seeds if (cell.label, seed) not in failed]
        for cell in sweep.cells
    }
    columns = list(dict.fromkeys(name for runs in results.values() for one in runs for name in one))
    lines = [f"| cell | runs | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for label, runs in results.items():
        cells = [interval([one[name] for one in runs if name in one]) for name in columns]
        lines.append(f"| {label} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"failed: {label}, seed {seed}: {why}" for (label, seed), why in failed.items())])


@one_line
def main(argv: Sequence[str]) -> int:
    cli = argparse.ArgumentParser(
        prog="python -m grpo.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("file", metavar="FILE.yaml")
    sweep, failed = read_sweep(cli.parse_args(argv).file), {}
    for cell, seed in itertools.product(sweep.cells, sweep.seeds):
        print(f"{cell.label}, seed {seed}: {folder(sweep, cell, seed)}", file=sys.stderr, flush=True)
        if why := run(sweep, cell, seed):
            failed[cell.label, seed] = why
    print(table(sweep, failed))
    print(f"the curves: python -m grpo.report {sweep.out}/*", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
