"""Read a run folder as it lies on disk: finished, still going, or cut off in the middle of a line.

Nothing here fails because of a damaged line: what cannot be read is counted and said in `Run.notes`, which the page
shows. Only a folder that is missing or is no run folder is an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from grpo.errors import UserError
from grpo.run import files

MAX_STEPS_SHARE = 8
"""One step may take this fraction (1/8) of a run's completions, so that the browser always shows a run over time."""
MAX_STEPS = 4_000
"""Of a longer run every second, third, ... step is shown: no screen shows more, and a page of 100,000 opens slowly."""
MAX_TEXT = 20_000
"""Characters of one prompt or completion that are kept: the beginning and the end."""
ROW_FIELDS = ("sample", "finish_reason", "answer", "verdict", "outcome", "ground_truth")
ROW_NUMBERS = ("reward", "advantage", "tokens", "step", "group")


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
    """before, after -> figure -> value"""
    prompts: list[str] = field(default_factory=list)
    """Each distinct prompt once: in One-Shot RLVR there is only one."""
    completions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_run(folder: Path, max_completions: int) -> Run:
    """Everything the page shows of one run.

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
    """What a file of YAML or JSON holds; nothing, with a note, where that is no mapping."""
    try:
        loaded = yaml.safe_load((run.folder / name).read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, yaml.YAMLError):
        loaded = None
    if isinstance(loaded, dict):
        return loaded
    run.notes.append(f"{name} is not readable")
    return {}


def read_metrics(run: Run) -> None:
    """Rows -> columns. A step written twice (a resumed run repeats some) counts once, the later value wins."""
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
    """The whole rows of metrics.jsonl, of a long file one in so many. Lines that are not shown are not parsed: 100,000
    of them would take a gigabyte."""
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        return []
    with path.open("rb") as file:
        stride = max(1, -(-sum(1 for _ in file) // MAX_STEPS))
        file.seek(0)
        lines = [line for number, line in enumerate(file) if number % stride == 0 or b'"eval/' in line]
    if stride > 1:
        run.notes.append(f"metrics.jsonl: one row in {stride} is shown, and those with held-out figures")
    damaged: list[bytes] = []
    rows = files.rows_of(lines, damaged)
    if damaged:
        run.notes.append(f"metrics.jsonl: {len(damaged)} unreadable lines left out")
    return rows


def read_completions(run: Run, limit: int) -> None:
    """At most `limit` rows: the newest step, the first, then the middles of what lies between, until `limit` is met."""
    steps = list(files.numbered(run.folder / "completions", r"\.jsonl\.gz"))
    share = max(1, limit // min(max(1, len(steps)), MAX_STEPS_SHARE))
    seen: dict[str, int] = {}
    left_out, in_part = 0, 0
    for index in newest_first_then_spread(len(steps)):
        room = min(share, limit - len(run.completions))
        if not room:
            left_out += 1
            continue
        try:
            rows = files.read_completions(run.folder, steps[index])
        except ValueError as error:
            run.notes.append(str(error))
            continue
        run.completions.extend(completion_row(row, seen) for row in rows[:room])
        in_part += len(rows) > room
    if left_out or in_part:
        run.notes.append(
            f"the browser holds {len(run.completions)} completions, newest step first: of {len(steps)} steps {in_part} "
            f"are shown in part and {left_out} not; --completions N takes more"
        )
    run.completions.sort(key=lambda row: (row["step"], row["group"]))
    run.prompts = list(seen)


def completion_row(row: dict[str, Any], seen: dict[str, int]) -> dict[str, Any]:
    """One row for the page; `prompt` becomes its place in `seen`, which maps each distinct prompt to a number."""
    signals = row.get("signals")
    kept = {name: row.get(name) for name in ROW_FIELDS} | {name: finite(row.get(name)) for name in ROW_NUMBERS}
    kept["signals"] = {name: finite(value) for name, value in signals.items()} if isinstance(signals, dict) else {}
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
