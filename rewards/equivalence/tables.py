"""The grader's data (tables.yaml): spellings, units and words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

TABLES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))
FUNCTIONS: str = TABLES["macros"]["FUNCTION"]

Rules = list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]]


def pattern(text: str) -> re.Pattern[str]:
    """The pattern of a table, compiled, with its macros written out."""
    for name, macro in TABLES["macros"].items():
        text = text.replace(name, macro)
    return re.compile(text)


def rules(table: Iterable[tuple[str, str]], **callbacks: Callable[[re.Match[str]], str]) -> Rules:
    """The rules of a table, compiled. A replacement that is the name of a callback is the callback."""
    return [(pattern(old), callbacks.get(new, new)) for old, new in table]


def rewrite(text: str, table: Rules) -> str:
    for old, new in table:
        text = old.sub(new, text)
    return text
