"""Procedural tasks of the package reasoning-gym, by name: `reasoning_gym:NAME?size=500&seed=1&max_terms=4`.

`size` (500) and `seed` (0) choose the items; further options are the task's own and set its difficulty. `split=test`
draws from other seeds and drops questions of the training split. Each task has a scorer for answers, which rows carry
by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

PREFIX = "reasoning_gym:"
OTHER_SEEDS = 1_000_000_007
"""Added to the seed of the test split; item i is made from seed + i"""
EVALUATES = frozenset(
    {
        "binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24",
        "simple_integration", "spiral_matrix", "string_insertion",
    }
)  # fmt: skip
"""Tasks of reasoning-gym 0.1.25 whose scorer runs the answer as Python (eval, sympy.parse_expr)"""


def read(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place and the row of each item: question, answer, and the names by which `scorer` finds it again.

    ValueError for a task or option that does not exist, for a scorer that runs answers, and without the package.
    """
    items = dataset(name)
    test, _ = _options(name)
    seen = {entry["question"] for entry in dataset(name, split="train")} if test else set()
    for number in range(len(items)):
        entry = items[number]
        if entry["question"] not in seen:
            row = {"question": entry["question"], "answer": str(entry["answer"]), "task": name, "item": number}
            yield f"item {number}", row


def item_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the names by which `scorer` finds a task's item again; empty for a row that is of no task."""
    task, item = str(row.get("task", "")), str(row.get("item", ""))
    return {"task": task, "item": int(item)} if task.startswith(PREFIX) and item.isdecimal() else {}


def scorer_of(row: Mapping[str, Any]) -> dict[str, Callable[[str], float]]:
    """Returns {"score_answer": the scorer of the row's item}; empty for a row that is of no task."""
    item = item_of(row)
    return {"score_answer": scorer(item["task"], item["item"])} if item else {}


def scorer(name: str, item: int) -> Callable[[str], float]:
    """Returns the task's own scorer for one item: answer -> 0 to 1."""
    items = dataset(name)
    entry = items[item]
    return lambda answer: items.score_answer(answer, entry)


@cache
def dataset(name: str, split: str | None = None) -> Any:
    """Returns the reasoning-gym data set of that name. See `read` for errors."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ValueError(f"{name} needs the package reasoning-gym: pip install 'reasoning-gym==0.1.25'") from error
    task = name.removeprefix(PREFIX).partition("?")[0]
    if task in EVALUATES:
        raise ValueError(f"{name}: its scorer runs what the model writes as Python, so it is not offered; take another")
    test, options = _options(name)
    if test and split != "train":
        options["seed"] += OTHER_SEEDS
    try:
        return reasoning_gym.create_dataset(task, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error


def _options(name: str) -> tuple[bool, dict[str, Any]]:
    """Returns whether the test split is meant, and the task's options: numbers, true, false, lists, or text."""
    options: dict[str, Any] = {"size": 500, "seed": 0}
    for key, value in parse_qsl(name.partition("?")[2], keep_blank_values=True, strict_parsing="?" in name):
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    split = options.pop("split", "train")
    if split not in ("train", "test"):
        raise ValueError(f"{name}: split is {split!r}; it must be train or test")
    return split == "test", options
