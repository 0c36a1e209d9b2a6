"""Read a run folder as it lies on disk: finished, still going, or cut off in the middle of a line.

Nothing here fails because of a damaged line: what cannot be read is counted and said in `Run.notes`, which the page
shows. Only a folder that is missing or is no run folder is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from grpo.errors import UserError
from grpo.run import files

MAX_STEPS_SHARE = 8
"""One step may take this fraction (1/8) of a run's completions, so that the browser always shows a run over time."""
MAX_STEPS = 4_000
"""Of a longer run every second, third, ... step is read: no screen shows more, and a page of 100,000 opens slowly."""
MAX_TEXT = 20_000
"""Characters of one prompt or completion that are kept: the beginning and the end."""
ROW_FIELDS = ("sample", "finish_reason", "tokens", "reward", "signals", "answer", "verdict", "outcome", "ground_truth")


@dataclass(slots=True)
class Run:
    name: str
    folder: Path
    steps: list[int] = field(default_factory=list)
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    """One column a metric, as long as `steps`; None where the step has no finite value."""
    config: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    """False while the run is going, or when it was stopped."""
    summary: dict[str, dict[str, float]] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    """Each distinct prompt once: in One-Shot RLVR there is only one."""
    completions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_run(folder: Path, max_completions: int) -> Run:
    """Everything the page shows of one run.

    Raises:
        UserError: the folder does not exist or holds neither config.yaml nor metrics.jsonl.
    """
    if not folder.is_dir():
        raise UserError(f"no such run folder: {folder}; a run writes runs/NAME")
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        raise UserError(f"not a run folder: {folder} has neither config.yaml nor metrics.jsonl")
    run = Run(name=folder.resolve().name, folder=folder)
    if not (folder / "config.yaml").is_file():
        run.notes.append("config.yaml is missing")
    run.config = read_tree(run, "config.yaml")
    run.finished = (folder / "summary.json").is_file()
    run.summary = read_summary(run)
    read_metrics(run)
    read_completions(run, max_completions)
    return run


def read_lines(path: Path, notes: list[str], stride: int = 1) -> Iterator[dict[str, Any]]:
    """The JSON objects of a .jsonl file. A line that is none is left out and counted in `notes`.

    With a `stride` only each so many-th line is read, and every line with held-out figures.
    """
    unreadable, last_is_cut, number = [], False, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if (number - 1) % stride and b'"eval/' not in line:
                continue
            row = files.row_of(line, checked=False)
            if row is not None:
                yield row
            else:
                unreadable.append(number)
                last_is_cut = not line.endswith(b"\n")
    if last_is_cut:
        unreadable.pop()
        notes.append(f"{path.name}: the last line ({number}) is incomplete and was left out")
    if unreadable:
        notes.append(f"{path.name}: {len(unreadable)} unreadable lines left out, the first is line {unreadable[0]}")


def read_tree(run: Run, name: str) -> dict[str, Any]:
    """The mapping in a file of YAML or JSON; with a note, nothing where there is none."""
    loads = json.loads if name.endswith(".json") else yaml.safe_load
    try:
        loaded = loads((run.folder / name).read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return {}
    except (ValueError, yaml.YAMLError):
        loaded = None
    if not isinstance(loaded, dict):
        run.notes.append(f"{name} is not readable")
        return {}
    return loaded


def read_summary(run: Run) -> dict[str, dict[str, float]]:
    """before, after -> name -> the figures that are numbers."""
    halves = {name: half for name, half in read_tree(run, "summary.json").items() if isinstance(half, dict)}
    return {name: {str(k): v for k, v in half.items() if is_number(v)} for name, half in halves.items()}


def read_metrics(run: Run) -> None:
    """Rows -> columns. A step written twice (a resumed run repeats some) counts once, the later value wins."""
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        run.notes.append("metrics.jsonl is not there yet: no step was finished")
        return
    rows: dict[int, dict[str, Any]] = {}
    with path.open("rb") as file:
        stride = -(-sum(1 for _ in file) // MAX_STEPS)
    if stride > 1:
        run.notes.append(f"metrics.jsonl: one row in {stride} is shown, and those with held-out figures")
    for row in read_lines(path, run.notes, stride):
        step = row.pop("step", None)
        if type(step) is int:
            rows.setdefault(step, {}).update(row)
    run.steps = sorted(rows)
    names = sorted({name for row in rows.values() for name, value in row.items() if is_number(value)})
    for name in names:
        run.metrics[name] = [finite(rows[step].get(name)) for step in run.steps]
        broken = [s for s in run.steps if is_number(rows[s].get(name)) and finite(rows[s][name]) is None]
        if broken:
            run.notes.append(f"{name} is NaN or infinite at {len(broken)} steps, the first is step {broken[0]}")


def read_completions(run: Run, limit: int) -> None:
    """At most `limit` rows: the newest step, the first, then the middles of what lies between, until `limit` is met."""
    steps = list(files.numbered(run.folder / "completions", r"\.jsonl\.gz"))
    if not steps:
        run.notes.append("completions/ holds no step yet")
        return
    share = max(1, limit // min(len(steps), MAX_STEPS_SHARE))
    seen: dict[str, int] = {}
    shown, cut = 0, 0
    for index in newest_first_then_spread(len(steps)):
        room = min(share, limit - len(run.completions))
        if room <= 0:
            break
        try:
            rows = files.read_completions(run.folder, steps[index])
        except ValueError as error:
            run.notes.append(str(error))
            continue
        run.completions.extend(completion_row(row, seen) for row in rows[:room])
        shown, cut = shown + 1, cut + (len(rows) > room)
    run.completions.sort(key=lambda row: (row["step"], row["group"]))
    run.prompts = list(seen)
    if cut or shown < len(steps):
        run.notes.append(
            f"the browser holds {len(run.completions)} completions from {shown} of {len(steps)} steps"
            f"{f', {cut} of these steps in part' if cut else ''}; --completions N sets another limit than {limit}"
        )


def completion_row(row: dict[str, Any], seen: dict[str, int]) -> dict[str, Any]:
    """One row for the page; `prompt` becomes its place in `seen`, which maps each distinct prompt to a number."""
    kept = {name: row.get(name) for name in ROW_FIELDS}
    signals = row.get("signals")
    kept["signals"] = {str(k): finite(v) for k, v in signals.items()} if isinstance(signals, dict) else {}
    for name in ("reward", "advantage", "tokens", "step", "group"):
        kept[name] = finite(row.get(name))
    kept["text"] = shorten(str(row.get("completion", "")))
    kept["prompt"] = seen.setdefault(shorten(str(row.get("prompt", ""))), len(seen))
    return kept


def newest_first_then_spread(count: int) -> list[int]:
    """Every index below `count` once: the last, the first, then halves, quarters, eighths of what lies between.

    >>> newest_first_then_spread(5)
    [4, 0, 2, 1, 3]
    """
    order = dict.fromkeys([count - 1, 0] if count else [])
    parts = 1
    while len(order) < count:
        parts *= 2
        order.update(dict.fromkeys(round((count - 1) * part / parts) for part in range(1, parts, 2)))
    return list(order)


def shorten(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    head, tail = MAX_TEXT * 2 // 3, MAX_TEXT // 3
    return f"{text[:head]}\n[... {len(text) - head - tail} characters left out of this page ...]\n{text[-tail:]}"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: object) -> float | None:
    """A number the browser's JSON can hold, six significant digits (whole numbers exactly), or None."""
    if not is_number(value) or not math.isfinite(value):
        return None
    return value if isinstance(value, int) or abs(value) >= 1e6 else float(f"{value:.6g}")


def distinct_names(runs: Sequence[Run]) -> None:
    """Runs of one name (runs/A, other/A) are called by their path, or the legend could not tell them apart."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.folder)
