"""Reads a run folder in any state: finished, running, or cut off in the middle of a line.

A damaged line is not an error. It is counted and reported in `Run.notes`, which the page shows. Only a missing folder,
or one that is not a run folder, is an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from data.rows import bounded_lines
from grpo.errors import UserError
from grpo.run import files

MAX_STEPS_SHARE = 8
"""One step may fill 1/8 of a run's completions, so that the browser always shows several steps."""
MAX_STEPS = 4_000
"""Longer runs are thinned to this many steps: a screen shows no more, and a page of 100,000 opens slowly."""
MAX_TEXT = 20_000
"""Characters kept of a prompt or completion: its beginning and its end."""
ROW_FIELDS = ("sample", "finish_reason", "answer", "verdict", "outcome", "ground_truth")
ROW_NUMBERS = ("reward", "advantage", "tokens", "step", "group")


@dataclass(slots=True)
class Run:
    name: str
    folder: Path
    steps: list[int] = field(default_factory=list)
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    """Metric -> column as long as `steps`, with None where the step has no finite value."""
    config: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    """False while the run is running, or when it was stopped."""
    summary: dict[str, dict[str, float]] = field(default_factory=dict)
    """before, after -> figure -> value"""
    prompts: list[str] = field(default_factory=list)
    """The distinct prompts. One-shot RLVR has only one."""
    completions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_run(folder: Path, max_completions: int) -> Run:
    """Reads everything that the page shows of one run.

    Raises:
        UserError: the folder does not exist or holds neither config.yaml nor metrics.jsonl.
    """
    if not folder.exists():
        raise UserError(f"no such run folder: {folder}; a run writes runs/NAME")
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        raise UserError(f"not a run folder: {folder} has neither config.yaml nor metrics.jsonl")
    run = Run(name=folder.resolve().name, folder=folder)
    run.config = read_mapping(run, "config.yaml")
    run.finished = (folder / "summary.json").is_file()
    halves = read_mapping(run, "summary.json") if run.finished else {}
    for name in ("before", "after"):
        half = halves.get(name)
        run.summary[name] = {k: v for k, v in half.items() if is_number(v)} if isinstance(half, dict) else {}
    read_metrics(run)
    read_completions(run, max_completions)
    return run


def read_mapping(run: Run, name: str) -> dict[str, Any]:
    """Returns the mapping in a YAML or JSON file; an empty one, with a note, when it holds none."""
    try:
        loaded = yaml.safe_load((run.folder / name).read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, yaml.YAMLError):
        loaded = None
    if isinstance(loaded, dict):
        return loaded
    run.notes.append(f"{name} is not readable")
    return {}


def read_metrics(run: Run) -> None:
    """Turns rows into columns. Of a step that a resumed run wrote twice, the later values count."""
    by_step: dict[int, dict[str, Any]] = {}
    for row in shown_rows(run):
        if type(row.get("step")) is int:
            by_step.setdefault(row.pop("step"), {}).update(row)
    run.steps = sorted(by_step)
    for name in sorted({name for row in by_step.values() for name, value in row.items() if is_number(value)}):
        values = {step: by_step[step].get(name) for step in run.steps}
        run.metrics[name] = [finite(value) for value in values.values()]
        broken = [step for step, value in values.items() if is_number(value) and not math.isfinite(value)]
        if broken:
            run.notes.append(f"{name} is NaN or infinite at {len(broken)} steps, the first is step {broken[0]}")


def shown_rows(run: Run) -> list[dict[str, Any]]:
    """Returns the complete rows of metrics.jsonl; of a long file every n-th, and those with held-out figures.

    Lines that are not shown are not parsed: 100,000 of them would take a gigabyte.
    """
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        return []
    with path.open("rb") as file:
        stride = max(1, -(-sum(1 for _ in bounded_lines(file)) // MAX_STEPS))
        file.seek(0)
        lines = [line for number, line in enumerate(bounded_lines(file)) if number % stride == 0 or b'"eval/' in line]
    if stride > 1:
        run.notes.append(f"metrics.jsonl: one row in {stride} is shown, and those with held-out figures")
    damaged: list[bytes] = []
    rows = files.rows_of(lines, damaged)
    if damaged:
        run.notes.append(f"metrics.jsonl: {len(damaged)} unreadable lines were skipped")
    return rows


def read_completions(run: Run, limit: int) -> None:
    """Reads at most `limit` rows: of the newest step, of the first, then of steps spread evenly between them."""
    steps = list(files.numbered(run.folder / "completions", r"\.jsonl\.gz"))
    share = max(1, limit // min(max(1, len(steps)), MAX_STEPS_SHARE))
    seen: dict[str, int] = {}
    missing = 0
    in_part = 0
    for index in newest_first_then_spread(len(steps)):
        room = min(share, limit - len(run.completions))
        if not room:
            missing += 1
            continue
        try:
            rows = files.read_completions(run.folder, steps[index], room + 1)
        except ValueError as error:
            run.notes.append(str(error))
            continue
        run.completions.extend(completion_row(row, seen) for row in rows[:room])
        in_part += len(rows) > room
    if missing or in_part:
        run.notes.append(
            f"This page holds {len(run.completions)} completions: all of {len(steps) - in_part - missing} steps, some "
            f"of {in_part} and none of {missing}. To hold more: --completions N"
        )
    run.completions.sort(key=lambda row: (row["step"], row["group"]))
    run.prompts = list(seen)


def completion_row(row: dict[str, Any], seen: dict[str, int]) -> dict[str, Any]:
    """Returns one row for the page. `prompt` becomes its index in `seen`, which numbers the distinct prompts."""
    signals = row.get("signals")
    kept = {name: row.get(name) for name in ROW_FIELDS} | {name: finite(row.get(name)) for name in ROW_NUMBERS}
    kept["signals"] = {name: finite(value) for name, value in signals.items()} if isinstance(signals, dict) else {}
    kept["text"] = shorten(str(row.get("completion", "")))
    kept["prompt"] = seen.setdefault(shorten(str(row.get("prompt", ""))), len(seen))
    return kept


def newest_first_then_spread(count: int) -> list[int]:
    """Returns every index below `count` once: the last, the first, then halves, quarters, eighths between them.

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
    return f"{text[:head]}\n[... {len(text) - head - tail} characters are not on this page ...]\n{text[-tail:]}"


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: object) -> float | None:
    """Returns a finite number for JSON, rounded to six digits (whole numbers exactly), or None."""
    if not is_number(value) or not math.isfinite(value):
        return None
    return value if isinstance(value, int) or abs(value) >= 1e6 else float(f"{value:.6g}")
