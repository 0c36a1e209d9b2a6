r"""What needs no algebra: a ground truth as text, the same text, two numbers. All that an integer task ever asks.

A number is a `Fraction`, or it is not a number. Nothing is ever a float.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

MAX_CHARS = 1000
MAX_DEPTH = 40
"""Limits of what is parsed at all: length, and nesting of brackets"""
MAX_EXPONENT = 2000
"""Largest decimal exponent that is worked out"""


class Unreadable(ValueError):
    """The text is not an answer this package can read; the message says why."""


def alternatives(value: Any) -> tuple[str, ...]:
    r"""The ground truth as accepted texts: "18", 18, 12.8, '["18"]', ["18"]. Any of several counts as right.

    In a string, `["0", "1"]` and `[18]` are lists and `[0,1]` is an interval. ValueError for anything else.
    """
    if isinstance(value, str):
        return _listed(value.strip())
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        return tuple(item.strip() for item in value)
    if isinstance(value, Real | Decimal) and not isinstance(value, bool) and abs(value) < math.inf:
        return (str(value),)
    raise ValueError(f"ground truth {value!r} of type {type(value).__name__}: need a string or a finite number")


def _listed(text: str) -> tuple[str, ...]:
    """The items of a JSON list, else the text."""
    if text.startswith("[") and text.endswith("]"):
        with contextlib.suppress(ValueError, RecursionError):
            items = json.loads(text, parse_int=str, parse_float=str)
            if all(isinstance(item, str) for item in items) and ('"' in text or len(items) == 1):
                return tuple(item.strip() for item in items)
    return (text,)


def ground_truth_text(value: Any) -> str:
    """The ground truth as one string, as a problem stores it; ValueError where it is neither text nor number.

    Nothing is parsed: `check_ground_truths` says whether it can be graded.
    """
    texts = alternatives(value)
    return texts[0] if len(texts) == 1 else json.dumps(list(texts))


def decide(answer: str, truth: str) -> str | None:
    """ "correct", "wrong" or "unparsed" (past a limit) where that is plain; None where algebra must tell."""
    if answer.strip() == truth.strip():
        return "correct"
    try:
        check_limits(answer)
        check_limits(truth)
        given, expected = number(answer.strip()), number(truth.strip())
    except Unreadable:
        return "unparsed"
    if given is None or expected is None:
        return None
    return "correct" if given == expected else "wrong"


def check_limits(text: str) -> None:
    """Raises Unreadable for what no parser should be asked to read."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"{len(text)} characters, the limit is {MAX_CHARS}")
    depth = 0
    for char in text:
        depth += (char in "{([") - (char in "})]")
        if depth > MAX_DEPTH:
            raise Unreadable(f"brackets nested deeper than {MAX_DEPTH}")


_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_PART = rf"(?:\{{([+-]?(?:{_DECIMAL}))\}}|([0-9]))"


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _scaled(mantissa: str | None, braced: str | None, bare: str | None) -> Fraction:
    exponent = int(braced or bare)
    if abs(exponent) > MAX_EXPONENT:
        raise Unreadable(f"exponent {exponent}, the limit is {MAX_EXPONENT}")
    return _decimal(mantissa or "1") * Fraction(10) ** exponent


def _ratio(above: str, below: str) -> Fraction | None:
    return _decimal(above) / _decimal(below) if _decimal(below) else None


def _fraction(whole: str | None, *parts: str | None) -> Fraction | None:
    above, below = filter(None, parts)
    value = _ratio(above, below)
    if value is None or whole is None:
        return value
    mixed = all(part.denominator == 1 and part >= 0 for part in map(_decimal, (above, below)))
    return int(whole) + value if mixed else None


def _repeating(whole: str, fixed: str, period: str) -> Fraction:
    nines = (10 ** len(period) - 1) * 10 ** len(fixed)
    return Fraction(int((whole + fixed) or 0), 10 ** len(fixed)) + Fraction(int(period), nines)


_FORMS: list[tuple[re.Pattern, Callable[..., Fraction | None]]] = [
    (re.compile(f"({_DECIMAL})"), _decimal),
    (re.compile(rf"(?:({_DECIMAL})\\times)?10\^(?:\{{([+-]?[0-9]+)\}}|([0-9]+))"), _scaled),
    (re.compile(f"({_DECIMAL})/({_DECIMAL})"), _ratio),
    (re.compile(rf"([0-9]+)?\\frac{_PART}{_PART}"), _fraction),
    (re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\{([0-9]+)\}"), _repeating),
]
_SIGNS = re.compile("[+-]*")


def number(text: str) -> Fraction | None:
    r"""The exact value, or None.

    Read are 1,234 and -0.5, 1.2\times10^{-5}, 3/4 and \frac34, the mixed number 1\frac{1}{2}, and 0.\overline{3}.
    """
    signs = _SIGNS.match(text)[0]
    for form, value_of in _FORMS:
        if match := form.fullmatch(text, len(signs)):
            value = value_of(*match.groups())
            return -value if value is not None and signs.count("-") % 2 else value
    return None
