"""Numbers with a unit: `5 cm`, `5\\text{ cm}`, `3 m/s^2`, `15 days`, `7 million`, `50\\%`, `12个`.

A unit is known by a table, in every spelling, and units are compared and never converted. A word that the table does
not know is no unit, so that it makes an answer another text; only a ground truth may bring a noun of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from fractions import Fraction
from typing import NamedTuple

from rewards.equivalence.plain import depths, number
from rewards.equivalence.tables import TABLES, rewrite, rules

Unit = frozenset[tuple[str, int]]
"""Names with their powers: m/s^2 is {("m", 1), ("s", -2)}"""
PERCENT, DEGREE, RADIAN, CENT = (frozenset({(name, 1)}) for name in ("%", "°", "rad", "cent"))
TEMPERATURES = (frozenset({("°C", 1)}), frozenset({("°F", 1)}))


class Quantity(NamedTuple):
    """A value (text), the number that words such as "million" multiply it by, and its unit."""

    value: str
    factor: Fraction
    unit: Unit


_UNITS = TABLES["units"]


def _table() -> dict[str, str]:
    """Every spelling of a unit -> its name. Symbols keep their case, words are in lower case and singular."""
    table: dict[str, str] = {}
    for group in _UNITS["others"].split():
        table |= dict.fromkeys(group.split("="), group.split("=")[0])
    for group in _UNITS["prefixed"].split():
        symbol, *words = group.split("=")
        for prefix, spoken in [("", ""), *_UNITS["prefixes"].items()]:
            table.setdefault(prefix + symbol, prefix + symbol)
            table |= {(prefix if len(word) == 1 else spoken) + word: prefix + symbol for word in words}
    return table


_TABLE = _table()
_OPEN_VALUE = re.compile(r"(?:[-+/=^]|\\cdot|\\times)$|\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
"""Texts that no unit follows: an operator, or a function of an angle in degrees"""
_START = re.compile(r"\\text\{|\\(?:degree|%|mu|Omega)(?![A-Za-z])|(?<![\\A-Za-z{_^])[A-Za-zΩμ¢€£¥]|[一-鿿]")
_TOKEN = re.compile(
    r"(?:\^\{?|(?<=[A-Za-z]))(-?[0-9])(?![0-9])\}?|([/()])|(°C|°F|[^\W\d_]+(?:-year)?|[%°$¢€£¥])|(\s+|\\cdot|[*.-])|(.)",
    re.DOTALL,
)
_SPELLINGS = rules(_UNITS["spellings"])


def quantity(text: str, nouns: Collection[str] | None = (), glued: bool = True) -> Quantity:
    """The value of a cleaned text and its unit; without a known unit the whole text is the value.

    `nouns` are words that count as units here; None allows any noun behind a plain number (for a ground truth).
    Unless `glued`, `6m` is a product: a letter alone is a unit only behind a space or in `\\text{}`.
    """
    depth = depths(text)
    for match in _START.finditer(text):
        start = match.start()
        value = text[: match.start()].strip()
        if not value or depth[start] or _OPEN_VALUE.search(value):
            continue
        bare = match[0][0] not in "\\" and text[start - 1] != " "
        alone = bare and re.match("[A-Za-z](?![A-Za-z])", text[start:])
        if alone and (not glued or number(value) is None):
            continue
        if match[0].isalpha() and re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+|\b(?:from|to|by)\b", "", value)):
            continue
        parsed = _unit(text[start:], nouns if nouns is not None or number(value) is not None else ())
        if parsed is not None:
            return Quantity(value, *parsed)
    return Quantity(text, Fraction(1), frozenset())


_PIECE = r"([0-9][0-9.]*(?:\\frac\{[0-9]+\}\{[0-9]+\})?) ?([^\W\d_]+|[°']+) ?(?:,? ?and\b|,)? ?(?=[0-9]|$)"
_PIECES = re.compile(f"(?:{_PIECE}){{2,4}}")


def compound(text: str) -> tuple[str, ...]:
    """The values and units of 2 h 30 min, the largest unit first; () for any other text. `\\text{}` is gone."""
    text = rewrite(text, _SPELLINGS)
    pieces = re.findall(_PIECE, text) if _PIECES.fullmatch(text) else []
    names = [_name(word, ()) or word for _, word in pieces]
    if any(names == [name for name in family if name in names] for family in _UNITS["families"] if names):
        return tuple(f"{number(value)} {name}" for (value, _), name in zip(pieces, names, strict=True))
    return ()


def _unit(text: str, nouns: Collection[str] | None) -> tuple[Fraction, Unit] | None:
    """Factor and unit that a text spells; None where one of its words is no unit."""
    powers: Counter[str] = Counter()
    factor = Fraction(1)
    sign = exponent = 1
    group = 0
    last: str | None = None
    for power, mark, word, _, other in _TOKEN.findall(rewrite(text, _SPELLINGS)):
        lower = word.lower()
        if other or (power and last is None):
            return None
        if power and last is not None:
            powers[last] += (int(power) - 1) * (1 if powers[last] > 0 else -1)
        elif mark:
            group += {"(": 1, ")": -1}.get(mark, 0)
            sign = -1 if mark == "/" else sign if mark == "(" else 1
        elif word in _UNITS["later_powers"] and last is not None:
            powers[last] *= _UNITS["later_powers"][word]
        elif lower in _UNITS["powers"]:
            exponent = _UNITS["powers"][lower]
        elif scale := _UNITS["scales"].get(lower.rstrip("s")):
            factor *= scale
        elif word:
            if (last := _name(word, nouns)) is None:
                return None
            for base, power_of_base in _UNITS["compound"].get(last, [(last, 1)]):
                powers[base] += sign * exponent * power_of_base
            exponent = 1
            sign = sign if group else 1
    if exponent != 1 or (last is None and factor == 1):
        return None
    powers.pop("", None)
    return factor, frozenset((name, power) for name, power in powers.items() if power)


def _name(word: str, nouns: Collection[str] | None) -> str | None:
    lower = word.lower()
    for spelling in (word, lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if spelling in _TABLE and (len(spelling) > 2 or spelling in (word, word.removesuffix("s"))):
            return _TABLE[spelling]
    singular = lower.removesuffix("s")
    if nouns is None:
        return singular if len(word) > 2 and word.isalpha() and lower not in _UNITS["no_nouns"].split() else None
    return singular if singular in nouns else None
