"""Exact numbers, read without sympy: a number is a `Fraction`, or it is not a number. Nothing is ever a float."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.equivalence.text import Unreadable

MAX_EXPONENT = 2000
"""Largest decimal exponent that is worked out."""

_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(rf"([+-]*)({_DECIMAL})(?:\\times10\^(?:\{{([+-]?[0-9]+)\}}|([0-9]+)))?")
_POWER = re.compile(r"([+-]*)10\^(?:\{([+-]?[0-9]+)\}|([0-9]+))")
_FRACTION = re.compile(
    r"([+-]*)([0-9]+)?\\frac(?:\{([+-]?)(%s)\}|([0-9]))(?:\{([+-]?)(%s)\}|([0-9]))" % (_DECIMAL, _DECIMAL)  # noqa: UP031
)
_SLASH = re.compile(rf"([+-]*)({_DECIMAL})/({_DECIMAL})")
_REPEATING = re.compile(r"([+-]*)([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\{([0-9]+)\}")


def number(text: str) -> Fraction | None:
    r"""The exact value of a cleaned number, or None.

    Read are 1,234 and -0.5, 1.2\times10^{-5}, 3/4 and \frac34, the mixed number 1\frac{1}{2}, and 0.\overline{3}.
    """
    if not text or text[-1] not in "0123456789.}":
        return None
    if match := _NUMBER.fullmatch(text):
        exponent = int(match[3] or match[4] or 0)
        return _signed(match[1], _decimal(match[2]) * _power_of_ten(exponent))
    if match := _FRACTION.fullmatch(text):
        return _fraction(match)
    if match := _SLASH.fullmatch(text):
        below = _decimal(match[3])
        return _signed(match[1], _decimal(match[2]) / below) if below else None
    if match := _POWER.fullmatch(text):
        return _signed(match[1], _power_of_ten(int(match[2] or match[3])))
    if match := _REPEATING.fullmatch(text):
        whole, fixed, period = match[2] or "0", match[3], match[4]
        nines = (10 ** len(period) - 1) * 10 ** len(fixed)
        return _signed(match[1], Fraction(int(whole + fixed), 10 ** len(fixed)) + Fraction(int(period), nines))
    return None


def _fraction(match: re.Match) -> Fraction | None:
    r"""\frac{a}{b}, \frac12, and the mixed number 1\frac{1}{2} where nothing in it has a sign or is not whole."""
    sign, whole, top_sign, top, top_digit, bottom_sign, bottom, bottom_digit = match.groups()
    above, below = _decimal(top or top_digit), _decimal(bottom or bottom_digit)
    if not below:
        return None
    value = above / below * (-1 if (top_sign == "-") != (bottom_sign == "-") else 1)
    if whole is None:
        return _signed(sign, value)
    if top_sign or bottom_sign or above.denominator != 1 or below.denominator != 1:
        return None
    return _signed(sign, int(whole) + value)


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def _signed(signs: str, value: Fraction) -> Fraction:
    return -value if signs.count("-") % 2 else value


def _power_of_ten(exponent: int) -> Fraction:
    if abs(exponent) > MAX_EXPONENT:
        raise Unreadable(f"exponent {exponent}, the limit is {MAX_EXPONENT}")
    return Fraction(10) ** exponent


_BASE = re.compile(r"(?:\\text\{)?\(?([0-9A-Z]+)\)?\}?_(?:\{(?:\\text\{)?([0-9]{1,2})\}?\}|([0-9]{1,2}))")


def numeral(text: str) -> tuple[int, int] | None:
    """Value and base of a numeral with its base as subscript (52_8, FF_{16}); None for a symbol with an index (a_1)."""
    match = _BASE.fullmatch(text)
    if not match or (match[1].isalpha() and len(match[1]) == 1):
        return None
    base = int(match[2] or match[3])
    if not 2 <= base <= 36:
        return None
    try:
        return int(match[1], base), base
    except ValueError:
        return None
