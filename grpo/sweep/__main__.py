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
from typing import Any, NamedTuple

from grpo.config import build, read_yaml, typed, unknown
from grpo.errors import UserError
from grpo.run.files import read_rows

KEYS = ("preset", "out", "seeds", "cells", "grid")
TRAIN = Path(__file__).resolve().parents[2] / "train.py"
LAST_STEPS = 5
"""Training figures are means over so many steps at the end: a single one is noisy."""
T_95 = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Two-sided 95% quantiles of Student's t with 0, 1, 2, ... degrees of freedom; beyond, 1.96."""


class Cell(NamedTuple):
    label: str
    settings: dict[str, Any]


class Sweep(NamedTuple):
    preset: str
    out: Path
    seeds: list[int]
    cells: list[Cell]


def read_sweep(path: str | Path) -> Sweep:
    """The file, every setting checked before anything runs. UserError with one line."""
    tree = read_yaml(path)
    if strange := [key for key in tree if key not in KEYS]:
        raise UserError(f"{path}: {unknown('key', str(strange[0]), KEYS)}")
    named = tree.get("cells") or {}
    grid = tree.get("grid") or {}
    if not isinstance(named, dict) or not all(isinstance(settings, dict) for settings in named.values()):
        raise UserError(f"{path}: cells is a name for each cell with the settings it changes ({{}}: none)")
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise UserError(f"{path}: grid is settings, each with a list of values that is not empty")
    cells = [Cell(str(label), settings) for label, settings in named.items()]
    if grid:
        for values in itertools.product(*grid.values()):
            settings = dict(zip(grid, values, strict=True))
            cells.append(
                Cell(", ".join(f"{key.rpartition('.')[2]} {typed(v)}" for key, v in settings.items()), settings)
            )
    if not cells:
        raise UserError(f"{path}: an empty grid; give cells, or grid with at least one setting and value")
    seeds = tree.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path}: seeds is a list of whole numbers that is not empty, not {seeds}")
    sweep = Sweep(str(tree.get("preset", "cpu")), Path(tree.get("out", "runs") or "runs"), seeds, cells)
    for cell, seed in itertools.product(cells, seeds):
        build(sweep.preset, _overrides(cell, seed))
    if len({folder(sweep, cell, seeds[0]) for cell in cells}) < len(cells):
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

    def trained(name: str) -> float | None:
        values = [row[name] for row in last if row.get(name) is not None]
        return mean(values) if values else None

    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    right, held_out = percent(trained("signal/verify")), percent(after.get("sampled_accuracy"))
    found = {
        "train reward": trained("reward/mean"),
        "train right": right,
        "held out, sampled": held_out,
        "held out, greedy": percent(after.get("greedy_accuracy")),
        "gap": None if right is None or held_out is None else right - held_out,
        "format": percent(after.get("format_rate")),
        "verdict": percent(after.get("verdict_accuracy")),
        "tokens": trained("completion/tokens_mean"),
    }
    return {name: value for name, value in found.items() if value is not None}


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


def main(argv: list[str]) -> int:
    cli = argparse.ArgumentParser(
        prog="python -m grpo.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("file", metavar="FILE.yaml")
    args = cli.parse_args(argv)
    try:
        sweep = read_sweep(args.file)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = {}
    for cell, seed in itertools.product(sweep.cells, sweep.seeds):
        print(f"{cell.label}, seed {seed}: {folder(sweep, cell, seed)}", file=sys.stderr, flush=True)
        if why := run(sweep, cell, seed):
            failed[cell.label, seed] = why
    print(table(sweep, failed))
    print(f"the curves: python -m grpo.report {sweep.out}/*", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
