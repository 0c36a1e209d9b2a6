"""Selects training examples: by the paper's historical variance, and with filters on any column.

    python -m tools.select_examples runs/NAME --rank 1 --out one.parquet
    python -m tools.select_examples acc_step_500.json --data dsr_sub.parquet --rank 1,2,13 --out three.jsonl
    python -m tools.select_examples --data all.jsonl --where 'level <= 3 and subject == Algebra' --out easy.jsonl

An example is ranked by the standard deviation of its accuracy over training (Wang et al. 2025, arXiv 2504.20571,
section 2): rank 1 is the one whose accuracy varied most. Accuracies come from a run that trained on the whole data
(its accuracy.jsonl) or from a JSON file {row number: [accuracy, ...]}. Writes the rows unchanged.
"""

from __future__ import annotations

import argparse
import json
import operator
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.rows import Row, read, write
from grpo.cli import Parser
from grpo.errors import one_line
from grpo.hub import located_data, located_folder
from grpo.run.files import read_rows
from grpo.settings import read_yaml

COMPARISONS = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt
}  # fmt: skip
CONDITION = re.compile(r"\s*([\w.]+)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*")


@one_line(ValueError, OSError)
def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="python -m tools.select_examples", description=__doc__)
    add = parser.add_argument
    add("accuracies", nargs="?", type=Path, metavar="RUN_OR_JSON", help="a run's folder, or a JSON file")
    add("--data", help="the rows [a run's own data]: a file, a published set, or owner/name:config:split")
    add("--data-dir", help="folder that holds the published sets")
    add("--rank", help="places in the ranking, from 1: 1 or 1,2,13")
    add("--where", help="keep rows for which this holds, such as: level <= 3 and subject == Algebra")
    add("--out", type=Path, required=True, help="the .parquet or .jsonl file to write")
    args = parser.parse_args(argv)
    chosen = select(args)
    write(chosen, args.out)
    print(f"{args.out}: {len(chosen)} rows")
    return 0


def select(args: argparse.Namespace) -> list[Row]:
    """The rows of those ranks, best first, for which the condition holds. ValueError with one line."""
    run = args.accuracies
    data, data_dir = args.data, args.data_dir
    if (args.rank is None) != (run is None):
        raise ValueError("--rank goes with accuracies: python -m tools.select_examples RUN_OR_JSON --rank 1 --out FILE")
    if data is None and run is not None and run.is_dir():
        settings = read_yaml(run / "config.yaml")
        data = located_data(settings["data"], run)
        if data_dir is None and settings.get("data_dir"):
            data_dir = located_folder(settings["data_dir"], run)
    if data is None:
        raise ValueError("no data is named; add --data FILE")
    rows = []
    for place, row in read(data, data_dir):
        if isinstance(row, str):
            raise ValueError(f"{data}, {place}: {row}")
        rows.append(row)
    if run is not None:
        history = read_history(run)
        if max(history) >= len(rows):
            raise ValueError(f"{run} is about other data: it has row {max(history)}, {data} only {len(rows)} rows")
        order = ranking(history)
        rows = [rows[order[rank - 1]] for rank in ranks(args.rank, len(order))]
    rows = [row for row in rows if holds(row, args.where)] if args.where else rows
    if not rows:
        raise ValueError(f"no row of {data} has {args.where}")
    return rows


def read_history(path: Path) -> dict[int, list[float]]:
    """Row number -> its accuracies in the order of training. ValueError if there is none."""
    history: dict[int, list[float]] = {}
    try:
        steps = read_rows(path / "accuracy.jsonl") if path.is_dir() else [{"accuracy": json.loads(path.read_text())}]
        for step in steps:
            for index, accuracies in step["accuracy"].items():
                history.setdefault(int(index), []).extend(np.atleast_1d(accuracies).astype(float))
        if not history:
            raise ValueError("no step is recorded")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} holds no accuracies: expected {{row number: [accuracy, ...]}} ({error})") from error
    return history


def ranking(history: dict[int, list[float]]) -> list[int]:
    """Row numbers, the largest standard deviation first; ties stay in the order of the file."""
    return sorted(history, key=lambda index: -statistics.pstdev(history[index]))


def ranks(text: str, last: int) -> list[int]:
    """'1,2,13' -> [1, 2, 13]"""
    words = text.split(",")
    if not all(word.strip().isdecimal() and 1 <= int(word) <= last for word in words):
        raise ValueError(f"--rank is {text}; it must be numbers from 1 to {last}, as 1 or 1,2,13")
    return list(map(int, words))


def holds(row: Row, where: str) -> bool:
    """True if the row meets the condition. Nothing in it is evaluated as Python.

    >>> holds({"a": {"b": "2"}, "c": "x"}, "a.b <= 3 and c == x")
    True
    """
    return all(_compare(row, part) for part in re.split(r"\band\b", where))


def _compare(row: Row, condition: str) -> bool:
    """Compares as numbers if both sides are, else as texts. A column without a value meets no condition."""
    match = CONDITION.fullmatch(condition)
    if match is None:
        raise ValueError(f"--where has {condition!r}; write column <= value, several joined by 'and' (<= >= == != < >)")
    column, comparison, limit = match.groups()
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"no column {column}; a row has {', '.join(map(str, row))}")
        value = value[name]
    limit = limit.strip("'\"")
    compare = COMPARISONS[comparison]
    try:
        return compare(float(value), float(limit))
    except (TypeError, ValueError):
        return value is not None and compare(str(value), limit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
