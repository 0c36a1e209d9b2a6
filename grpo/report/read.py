"""Reads a run folder in any state: finished, running, or cut off in the middle of a line.

A damaged line is not an error. It is counted and reported in `Run.notes`, which the page shows. Only a missing folder,
or one that is not a run folder, is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml

from grpo.errors import UserError
from grpo.run import files
from grpo.run.display import SMOKE_NOTE
from grpo.settings import dotted
from grpo.terminal import shorten

LEAST_STEPS = 8
"""One step may fill 1/8 of a run's completions, so that the browser always shows several steps."""
MAX_STEPS = 2_000
"""Longer runs are thinned to this many steps: a screen shows no more, and a page of 100,000 opens slowly."""
MAX_TEXT = 20_000
"""Characters kept of a prompt or completion: its beginning and its end."""
FIELDS = (
    *("step", "group", "sample", "reward", "advantage", "signals", "tokens"),
    *("finish_reason", "answer", "verdict", "outcome", "ground_truth"),
)


class Run:
    """Everything that the page shows of one run."""

    def __init__(self, folder: Path, max_completions: int):
        """Raises UserError where the folder does not exist or holds neither config.yaml nor metrics.jsonl."""
        if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
            problem = "has neither config.yaml nor metrics.jsonl" if folder.exists() else "does not exist"
            raise UserError(f"not a run folder: {folder} {problem}; a run writes runs/NAME")
        self.name = folder.resolve().name
        self.folder = folder
        self.notes: list[str] = []
        self.config = dotted(self._mapping("config.yaml", yaml.safe_load))
        """Settings by their dotted names."""
        self.finished = (folder / "summary.json").is_file()
        """False while the run is running, or when it was stopped."""
        self.summary = self._mapping("summary.json", json.loads) if self.finished else {}
        self.limit = self.config.get("eval.limit")
        """Where it is set, the held-out figures are smoke figures."""
        self._read_metrics()
        if self.limit and (self.summary.get("after") or any(name.startswith("eval/") for name in self.metrics)):
            self.notes.append(SMOKE_NOTE.format(self.limit))
        self._read_completions(max_completions)

    def _mapping(self, name: str, load: Callable[[str], Any]) -> dict[str, Any]:
        """The mapping in a file; an empty one, with a note, when it holds none."""
        try:
            return dict(load((self.folder / name).read_text(encoding="utf-8", errors="replace")))
        except (OSError, TypeError, ValueError, yaml.YAMLError):
            self.notes.append(f"{name} is not readable")
            return {}

    def _read_metrics(self) -> None:
        """Rows become columns: metric -> values as long as `steps`, None where the step has no finite value."""
        damaged: list[bytes] = []
        rows = files.read_rows(self.folder / "metrics.jsonl", damaged)
        if damaged:
            self.notes.append(f"metrics.jsonl: {len(damaged)} unreadable lines were skipped")
        stride = -(-len(rows) // MAX_STEPS)
        if stride > 1:
            self.notes.append(f"metrics.jsonl: one row in {stride} is shown, and those with held-out figures")
        shown = [row for i, row in enumerate(rows) if i % stride == 0 or any(name.startswith("eval/") for name in row)]
        by_step = {row.pop("step"): row for row in shown}
        self.steps = sorted(by_step)
        columns = {name: [by_step[step].get(name) for step in self.steps] for name in sorted(set().union(*shown))}
        self.metrics = {name: column for name, column in columns.items() if any(v is not None for v in column)}

    def _read_completions(self, limit: int) -> None:
        """At most `limit` rows: of the newest step, of the first, then of steps spread evenly between them.

        `prompts` holds the distinct prompts (One-shot RLVR has only one), each completion the index of its own.
        """
        steps = list(files.numbered(self.folder / "completions", ".jsonl.gz"))
        share = max(1, limit // min(len(steps) or 1, LEAST_STEPS))
        prompts: dict[str, int] = {}
        self.completions: list[dict[str, Any]] = []
        in_part = False
        for index in newest_first_then_spread(len(steps)):
            room = min(share, limit - len(self.completions))
            try:
                rows = files.read_completions(self.folder, steps[index], room + 1)
            except ValueError as error:
                self.notes.append(str(error))
                continue
            in_part = in_part or len(rows) > room
            if not room:
                break
            for row in rows[:room]:
                prompt = shorten(row.get("prompt", ""), MAX_TEXT)
                shown = {name: row.get(name) for name in FIELDS} | {"text": shorten(row["completion"], MAX_TEXT)}
                self.completions.append(shown | {"prompt": prompts.setdefault(prompt, len(prompts))})
        if in_part:
            self.notes.append(f"This page holds {len(self.completions)} completions of the run. More: --completions N")
        self.completions.sort(key=itemgetter("step", "group"))
        self.prompts = list(prompts)


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
