"""Which example to train on: the paper's historical variance, and filters by any column.

    python -m data.select runs/NAME --rank 1 --out one.parquet
    python -m data.select acc_step_500.json --data dsr_sub.parquet --rank 1,2,13 --out three.jsonl
    python -m data.select --data problems.jsonl --where 'difficulty <= 3 and subject == Algebra' --out easy.jsonl

An example is ranked by the standard deviation of its accuracy over training (Wang et al. 2025, arXiv 2504.20571,
section 2): rank 1 is the one whose accuracy varied most. Accuracies come from a run that trained on the whole data
(its accuracy.jsonl) or from a JSON file {row number: [accuracy, ...]}. The rows come out as they are in the data.
"""

from __future__ import annotations

import argparse
import json
import operator
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from data import command
from data.rows import Row, read, write

COMPARISONS = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt
}  # fmt: skip
CONDITION = re.compile(r"\s*([\w.]+)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*")


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.select", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("accuracies", nargs="?", type=Path, metavar="RUN_OR_JSON", help="a run's folder, or a JSON file")
    add("--data", help="the rows [a run's own data]: a file, a published set, or owner/name:config:split")
    add("--data-dir", "--data_dir", help="folder that holds the published sets")
    add("--rank", help="places in the ranking, from 1: 1 or 1,2,13")
    add("--where", help="keep rows for which this holds, such as: level <= 3 and subject == Algebra")
    add("--out", type=Path, required=True, help="the .parquet or .jsonl file to write")
    args = parser.parse_args(argv)
    chosen = select(args.accuracies, args.data, args.data_dir, args.rank, args.where)
    write(chosen, args.out)
    print(f"{args.out}: {len(chosen)} rows")


def select(
    accuracies: Path | None, data: str | None, data_dir: str | None, rank: str | None, where: str | None
) -> list[Row]:
    """The rows of those ranks, best first, for which the condition holds. ValueError with one line."""
    if data is None and accuracies is not None and accuracies.is_dir():
        data = yaml.safe_load((accuracies / "config.yaml").read_text(encoding="utf-8"))["data"]
    if data is None:
        raise ValueError("no data is named; add --data FILE")
    if rank is None and where is None:
        raise ValueError("nothing to select by; add --rank 1 or --where 'difficulty <= 3'")
    if (rank is None) != (accuracies is None):
        raise ValueError("--rank goes with accuracies: python -m data.select RUN_OR_JSON --rank 1 --out FILE")
    rows = []
    for place, row in read(data, data_dir):
        if isinstance(row, str):
            raise ValueError(f"{data}, {place}: {row}")
        rows.append(row)
    if rank is not None:
        history = read_history(accuracies)
        strange = [index for index in history if not 0 <= index < len(rows)]
        if strange:
            raise ValueError(f"{accuracies} is about other data: it has row {strange[0]}, {data} only {len(rows)} rows")
        order = ranking(history)
        rows = [rows[order[place - 1]] for place in places(rank, len(order))]
    if where is not None:
        holds = condition(where)
        rows = [row for row in rows if holds(row)]
        if not rows:
            raise ValueError(f"no row of {data} has {where}")
    return rows


def read_history(path: Path) -> dict[int, list[float]]:
    """Row number -> its accuracies in the order of training."""
    history: dict[int, list[float]] = {}
    try:
        if path.is_dir():
            steps = [json.loads(line)["accuracy"] for line in (path / "accuracy.jsonl").read_text().splitlines()]
            found = [(index, [accuracy]) for step in steps for index, accuracy in step.items()]
        else:
            found = json.loads(path.read_text()).items()
        for index, accuracies in found:
            history.setdefault(int(index), []).extend(map(float, accuracies))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} holds no accuracies: expected {{row number: [accuracy, ...]}} ({error})") from error
    if not history:
        raise ValueError(f"{path} holds no accuracies yet")
    return history


def ranking(history: dict[int, list[float]]) -> list[int]:
    """Row numbers, the largest standard deviation first; ties stay in the order of the file."""
    return sorted(history, key=lambda index: -statistics.pstdev(history[index]))


def places(text: str, last: int) -> list[int]:
    """'1,2,13' -> [1, 2, 13]"""
    found = text.split(",")
    if not all(place.strip().isdecimal() and 1 <= int(place) <= last for place in found):
        raise ValueError(f"--rank is {text}; it must be numbers from 1 to {last}, as 1 or 1,2,13")
    return list(map(int, found))


def condition(text: str) -> Callable[[Row], bool]:
    """'level <= 3 and extra_info.split == train' as a function of a row. Nothing is evaluated as Python.

    >>> condition("a.b <= 3 and c == x")({"a": {"b": "2"}, "c": "x"})
    True
    """
    parts = [CONDITION.fullmatch(part) for part in re.split(r"\band\b", text)]
    if None in parts:
        raise ValueError(
            f"--where is {text!r}; write it as: column <= value, several joined by 'and' (<= >= == != < >)"
        )
    tests = [part.groups() for part in parts]
    return lambda row: all(_holds(row, *test) for test in tests)


def _holds(row: Row, column: str, comparison: str, wanted: str) -> bool:
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"no column {column}; a row has {', '.join(map(str, row))}")
        value = value[name]
    wanted = wanted.strip("'\"")
    try:
        pair = float(value), float(wanted)
    except (TypeError, ValueError):
        pair = str(value), wanted
    return value is not None and COMPARISONS[comparison](*pair)


if __name__ == "__main__":
    sys.exit(main())
