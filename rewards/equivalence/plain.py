r"""Comparison without algebra: identical text or exact rational numbers. Integer tasks never need more.

A number is a `Fraction`, or it is not a number. Nothing is ever a float.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from numbers import Real
from typing import Any

import numpy as np

MAX_CHARS = 1000
MAX_DEPTH = 40
"""Limits of what is parsed at all: length, and nesting of brackets"""
MAX_EXPONENT = 2000
"""Largest decimal exponent that is worked out"""


class Unreadable(ValueError):
    """The text is not an answer this package can read; the message has the reason."""


def alternatives(value: Any) -> tuple[str, ...]:
    r"""The accepted texts of a ground truth: "18", 18, 12.8, '["18"]', ["18"], a NumPy number or array.

    Each of several texts counts as right. In a string, `["0", "1"]` and `[18]` are lists and `[0,1]` is an interval.
    Raises ValueError for anything else.
    """
    if hasattr(value, "tolist") and not isinstance(value, Real):  # an array of NumPy is a list
        value = value.tolist()
    if isinstance(value, list | tuple) and len(value) == 1 and not isinstance(value[0], str | list | tuple):
        value = value[0]
    if isinstance(value, str):
        texts = _listed(value.strip())
    elif isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        texts = [item.strip() for item in value]
    elif isinstance(value, Real | Decimal) and not isinstance(value, bool) and abs(value) < math.inf:  # type: ignore[operator]  # Real's stub has no order
        texts = [str(value)]
    else:
        raise ValueError(f"ground truth {value!r} of type {type(value).__name__}: need a string or a finite number")
    return tuple(map(shortest, texts))


_LONG = re.compile(r"-?[0-9]+\.[0-9]+")
LONG_DIGITS = 15
"""Significant digits from which a decimal is a float written out"""


def shortest(text: str) -> str:
    """The decimal that a written-out float means: 0.1 for 0.10000000149011612 (float32), 0.3 for 0.30000000000000004.

    Returns any other text unchanged, also a float without a short decimal (33.333333333333336).
    """
    digits = len(text.lstrip("-0.").replace(".", ""))
    if digits < 12 or not _LONG.fullmatch(text) or repr(float(text)) != text:
        return text
    value = float(text)
    mantissa = Fraction(value).numerator.bit_length()  # 0.0000152587890625 is 1 / 2^16, and meant as it stands
    for precision, bits, largest in ((np.float16, 9, 60), (np.float32, 19, 1000)):
        with np.errstate(over="ignore"):
            stored = precision(value)
        if float(stored) == value and mantissa >= bits:
            short = np.format_float_positional(stored, trim="-")
            near = Fraction(value).limit_denominator(largest)
            recurs = precision(float(near)) == stored and 10**9 % near.denominator
            return text if recurs or len(short) > digits - 3 else short
    meant = f"{value:.{LONG_DIGITS}g}"
    return f"{Decimal(meant):f}" if digits > LONG_DIGITS and len(meant) < LONG_DIGITS - 2 else text


def written_out(text: str) -> bool:
    """Returns whether a decimal has all the digits of a float without a short decimal."""
    return bool(_LONG.fullmatch(text)) and len(text.strip("-0.")) > LONG_DIGITS and repr(float(text)) == text


def _listed(text: str) -> list[str]:
    """The items of a JSON list, else the text."""
    if text.startswith("[") and text.endswith("]"):
        with contextlib.suppress(ValueError, RecursionError):
            items = json.loads(text, parse_int=str, parse_float=str)
            if all(isinstance(item, str) for item in items) and ('"' in text or len(items) == 1):
                return [item.strip() for item in items]
    return [text]


def ground_truth_text(value: Any) -> str:
    """The ground truth as one string, as a problem stores it. Raises ValueError if it is neither text nor number.

    Nothing is parsed: `check_ground_truths` reports whether it can be graded.
    """
    texts = alternatives(value)
    return texts[0] if len(texts) == 1 else json.dumps(list(texts))


def decide(answer: str, truth: str) -> str | None:
    """Returns "correct", "wrong" or "unparsed" (past a limit) if that needs no algebra, else None."""
    if answer.strip() == truth.strip():
        return "correct"
    try:
        check_limits(answer)
        check_limits(truth)
        answer_value, truth_value = number(answer.strip()), number(truth.strip())
    except Unreadable:
        return "unparsed"
    if answer_value is None or truth_value is None:
        return None
    return "correct" if answer_value == truth_value else "wrong"


def check_limits(text: str) -> None:
    """Raises Unreadable for text that is too long or too deeply nested to parse."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"{len(text)} characters, the limit is {MAX_CHARS}")
    if max(depths(text), default=0) > MAX_DEPTH:
        raise Unreadable(f"brackets nested deeper than {MAX_DEPTH}")


_OPENS = ("{", "(", "[", "\\begin")
_NESTING = re.compile(r"\\begin|\\end|[{}()\[\]]")


def depths(text: str) -> list[int]:
    """The number of open brackets and environments after each character; any bracket closes any other."""
    steps = [0] * len(text)
    for match in _NESTING.finditer(text):
        steps[match.start()] = 1 if match.group() in _OPENS else -1
    return list(accumulate(steps))


def enclosed(text: str) -> bool:
    """Returns whether the last character closes the bracket that the text begins with."""
    depth = depths(text)
    return text[:1] in ("{", "(", "[") and depth[-1] == 0 and 0 not in depth[:-1]


_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_PART = rf"(?:\{{([+-]?(?:{_DECIMAL}))\}}|([0-9]))"


_POWER_OF_TEN = re.compile(rf"(?:({_DECIMAL})\\times)?10\^(?:\{{([+-]?[0-9]+)\}}|([0-9]+))")
_FRACTION = re.compile(rf"({_DECIMAL})/({_DECIMAL})|\\frac{_PART}{_PART}")
_MIXED = re.compile(r"([0-9]+)(?:(\\frac(?:[0-9]|\{[0-9]+\}){2})| ([0-9]+/[0-9]+))")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\{([0-9]+)\}")


def number(text: str) -> Fraction | None:
    r"""The exact value, or None.

    Reads 1,234 and -0.5, 1.2\times10^{-5}, 3/4 and \frac34, mixed numbers (1\frac{1}{2}, 1 1/2), and 0.\overline{3}.
    """
    unsigned = text.lstrip("+-")
    value = _unsigned(unsigned)
    minus = text[: len(text) - len(unsigned)].count("-") % 2
    return -value if value is not None and minus else value


def _unsigned(text: str) -> Fraction | None:
    if re.fullmatch(_DECIMAL, text):
        return _decimal(text)
    if match := _POWER_OF_TEN.fullmatch(text):
        exponent = int(match[2] or match[3])
        if abs(exponent) > MAX_EXPONENT:
            raise Unreadable(f"exponent {exponent}, the limit is {MAX_EXPONENT}")
        return _decimal(match[1] or "1") * Fraction(10) ** exponent
    if match := _FRACTION.fullmatch(text):
        above, below = (_decimal(part) for part in match.groups() if part)
        return above / below if below else None
    if match := _MIXED.fullmatch(text):
        part = _unsigned(match[2] or match[3])
        return int(match[1]) + part if part is not None and (match[2] or part < 1) else None
    if match := _REPEATING.fullmatch(text):
        whole, fixed, period = match.groups()
        nines = (10 ** len(period) - 1) * 10 ** len(fixed)
        return Fraction(int((whole + fixed) or 0), 10 ** len(fixed)) + Fraction(int(period), nines)
    return None


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
