"""The grader's data (tables.yaml): spellings, units and words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

TABLES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))
FUNCTIONS: str = TABLES["functions"]

Rules = list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]]


def rules(table: Iterable[tuple[str, str]], **callbacks: Callable[[re.Match[str]], str]) -> Rules:
    """The rules of a table, compiled. A replacement that is the name of a callback is the callback."""
    return [
        (re.compile(pattern.replace("FUNCTION", FUNCTIONS)), callbacks.get(replacement, replacement))
        for pattern, replacement in table
    ]


def rewrite(text: str, table: Rules) -> str:
    for pattern, replacement in table:
        text = pattern.sub(replacement, text)
    return text
