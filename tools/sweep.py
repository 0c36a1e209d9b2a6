"""Trains a small grid of runs and prints one table: `python -m tools.sweep configs/sweeps/signals.yaml`.

    preset: cpu
    out: runs/signals                 # the folder of the run folders
    seeds: [0, 1, 2]
    settings: {eval.every: 0}         # the settings of every run
    cells:                            # a name for each cell and the settings it changes; each cell runs with each seed
      all signals: {}
      verify only: {reward.name: verify_only}
    grid:                             # in addition: every combination of these values
      learner.lr: [1.0e-4, 3.0e-4]
      rollout.group_size: [8, 16]

Every run is an ordinary run folder. A sweep can be stopped with Ctrl-C and started again at any time: finished runs are
not repeated, an interrupted run continues. A cell whose settings were edited after it had run is refused; --rename
trains it under another name. A run that fails is named below the table, and the other runs continue. Figures are
percentages of the run's own test problems: the mean over the seeds ± half the width of its 95% interval (Student's t).
"""

from __future__ import annotations

import itertools
import json
import math
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Annotated, Any, NamedTuple

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from grpo.cli import Parser
from grpo.errors import UserError, one_line
from grpo.run.display import SMOKE_NOTE
from grpo.run.files import read_rows
from grpo.run.resume import decisive, read_config, refuse_other
from grpo.settings import Config, build, read_yaml, typed
from rewards.score import OUTCOMES

EXAMPLE = "configs/sweeps/signals.yaml"
TRAIN = Path(__file__).resolve().parents[1] / "train.py"
LAST_STEPS = 5
"""Training figures are means over this many steps at the end, because one step is noisy."""
COLUMNS = {
    "train reward": ("reward/mean", 1),
    "train right": ("outcome/correct", 100),
    "held out, sampled": ("sampled_accuracy", 100),
    "held out, greedy": ("greedy_accuracy", 100),
    "mean score, sampled": ("sampled_mean_score", 100),
    "mean score, greedy": ("greedy_mean_score", 100),
    "format": ("format_rate", 100),
    "verdict": ("verdict_accuracy", 100),
    "tokens": ("completion/length_mean", 1),
}
"""Column -> (metric of the last steps or test figure of the summary, factor)."""
TESTED = [*list(COLUMNS)[2:-1], "gap"]
"""Columns of test figures"""


class Run(NamedTuple):
    """One cell with one seed."""

    cell: str
    folder: Path
    settings: dict[str, str]


class Sweep(BaseModel):
    """The contents of a sweep file (see the module's docstring)."""

    model_config = ConfigDict(extra="forbid")
    preset: str = "cpu"
    out: Path = Path("runs")
    seeds: list[StrictInt] = Field([0], min_length=1)
    settings: dict[str, Any] = {}
    cells: dict[str, dict[str, Any]] = {}
    grid: dict[str, Annotated[list, Field(min_length=1)]] = {}

    def runs(self) -> list[Run]:
        """Returns the named cells, then every combination of the grid's values, each with every seed."""
        cells = list(self.cells.items())  # a list, because a grid's label may equal a name: `read_sweep` refuses that
        for values in itertools.product(*self.grid.values()) if self.grid else ():
            settings = dict(zip(self.grid, values, strict=True))
            label = ", ".join(f"{name.rpartition('.')[2]} {typed(value)}" for name, value in settings.items())
            cells.append((label, settings))
        runs = []
        for (cell, changes), seed in itertools.product(cells, self.seeds):
            name = re.sub(r"[^A-Za-z0-9.]+", "-", cell).strip("-.")
            settings = {key: typed(value) for key, value in (self.settings | changes).items()} | {"seed": str(seed)}
            runs.append(Run(cell, self.out / f"{name}-seed{seed}", settings))
        return runs


def read_sweep(path: str | Path) -> Sweep:
    """Reads the file and checks every setting before anything runs. Raises UserError."""
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


def settle(run: Run, preset: str, rename: bool) -> Run:
    """Returns the run with a folder that is new or holds its cell's settings.

    A folder trained with other settings raises UserError; with `rename` the run takes NAME-2, NAME-3, ...
    """
    cure = f"Give the cell {run.cell!r} another name, remove the folder, or add --rename to train it under a new name"
    settings = figure_settings(build(preset, run.settings))
    settings = {name: value for name, value in settings.items() if value != "auto"}  # was decided at the start
    folder = run.folder
    number = 1
    while (folder / "config.yaml").is_file():
        try:
            refuse_other(figure_settings(read_config(folder)), settings, folder, cure)
            break
        except UserError:
            if not rename:
                raise
        number += 1
        folder = run.folder.with_name(f"{run.folder.name}-{number}")
    return run._replace(folder=folder)


def figure_settings(config: Config) -> dict[str, str]:
    """Returns the settings that decide the figures of the table: those that decide the training, and its length."""
    return decisive(config) | {"steps": typed(config.steps)}


def train(run: Run, preset: str) -> str | None:
    """Trains the missing steps of the run. Returns the last line of its errors when it fails, else None."""
    settings = {"preset": preset, "resume": "auto", "out": run.folder.parent, "name": run.folder.name} | run.settings
    code, errors = call([sys.executable, str(TRAIN), "--quiet", *(f"--{key}={settings[key]}" for key in settings)])
    return None if code == 0 else (errors.strip().splitlines() or [f"exit {code}"])[-1]


def call(command: Sequence[str]) -> tuple[int, str]:
    """Runs the command; returns its exit code and its errors. Passes Ctrl-C on, waits, and raises it again."""
    with Popen(command, stdout=DEVNULL, stderr=PIPE, text=True, start_new_session=True) as process:
        try:
            errors = process.communicate()[1]
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.communicate()  # the run saves its last step before it ends
            raise
    return process.returncode, errors


def figures(folder: Path) -> dict[str, float]:
    """Column -> figure of a finished run, shares in percent. Figures that the run did not measure are missing."""
    last = pd.DataFrame(read_rows(folder / "metrics.jsonl")).query("step > 0").tail(LAST_STEPS)
    tested = json.loads((folder / "summary.json").read_text())["after"]
    measured = last.mean(numeric_only=True).dropna().to_dict() | tested
    row = {column: factor * measured[name] for column, (name, factor) in COLUMNS.items() if name in measured}
    if not any(measured.get(f"outcome/{outcome}") for outcome in OUTCOMES):  # a reward function of the user's own
        row.pop("train right", None)
    if row.keys() >= {"train right", "held out, sampled"}:
        row["gap"] = row["train right"] - row["held out, sampled"]
    return row


def interval(values: pd.Series) -> str:
    """Returns "mean ± half the width of the 95% interval" of the values.

    >>> interval(pd.Series([1.0, 2.0, 3.0])), interval(pd.Series([4.0]))  # std 1, 4.30 / sqrt(3)
    ('2.0 ± 2.5', '4.0')
    """
    count = values.count()
    if count < 2:
        return f"{values.mean():.1f}" if count else "-"
    return f"{values.mean():.1f} ± {t_quantile(count - 1) * values.sem():.1f}"


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Returns the t with P(|T| < t) = confidence, for Student's T with 1, 2, ... degrees of freedom. By bisection.

    >>> [round(t_quantile(degrees), 3) for degrees in (1, 2, 10, 30)]
    [12.706, 4.303, 2.228, 2.042]
    """
    low, high = 0.0, math.pi / 2  # of the angle atan(t / sqrt(degrees))
    while low < (angle := (low + high) / 2) < high:
        low, high = (angle, high) if central_probability(angle, degrees) < confidence else (low, angle)
    return math.sqrt(degrees) * math.tan(angle)


def central_probability(angle: float, degrees: int) -> float:
    """Returns P(|T| < sqrt(degrees) tan(angle)): Abramowitz and Stegun (1964), 26.7.3 and 26.7.4."""
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= power / (power + 1) * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def table(runs: Sequence[Run], failed: dict[Path, str]) -> str:
    """Returns a Markdown table with a row for each cell, and a line for each failed run below it."""
    rows = [{"runs": 0} if run.folder in failed else {"runs": 1} | figures(run.folder) for run in runs]
    cells = pd.DataFrame(rows).groupby([run.cell for run in runs], sort=False)
    texts = cells.agg(interval)
    texts["runs"] = cells["runs"].sum().astype(str)
    limits = {run.cell: read_config(run.folder).eval.limit for run in runs if run.folder not in failed}
    smoke: set[int] = set()
    for cell, column in itertools.product(limits, texts.columns.intersection(TESTED)):
        if (limit := limits[cell]) and texts.loc[cell, column] != "-":
            texts.loc[cell, column] += "*"
            smoke.add(limit)
    lines = [f"| cell | {' | '.join(texts)} |", "|---" * (len(texts.columns) + 1) + "|"]
    lines += [f"| {cell} | {' | '.join(row)} |" for cell, row in texts.iterrows()]
    lines += [SMOKE_NOTE.format(" or ".join(map(str, sorted(smoke))))] if smoke else []
    return "\n".join([*lines, *(f"failed: {folder}: {why}" for folder, why in failed.items())])


def run_all(runs: Sequence[Run], preset: str) -> dict[Path, str]:
    """Trains every unfinished run in turn and reports the time left. Returns folder -> error of those that failed."""
    failed: dict[Path, str] = {}
    start = time.monotonic()
    missing = [run for run in runs if not (run.folder / "summary.json").is_file()]
    for number, run in enumerate(missing):
        minutes = (time.monotonic() - start) / 60
        left = f", about {minutes / number * (len(missing) - number):.0f} min left" if number else ""
        print(f"run {number + 1} of {len(missing)}{left}: {run.folder}", file=sys.stderr, flush=True)
        if error := train(run, preset):
            failed[run.folder] = error
    return failed


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    cli = Parser(prog="python -m tools.sweep", description=__doc__)
    cli.add_argument("file", metavar="FILE.yaml")
    cli.add_argument("--rename", action="store_true", help="train a cell that was edited under a new name")
    args = cli.parse_args(argv)
    sweep = read_sweep(args.file)
    runs = [settle(run, sweep.preset, args.rename) for run in sweep.runs()]
    try:
        failed = run_all(runs, sweep.preset)
    except KeyboardInterrupt:
        print("interrupted; the same command continues the sweep", file=sys.stderr)
        return 130
    print(table(runs, failed))
    print(f"the curves: python -m grpo.report {sweep.out}/*", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
