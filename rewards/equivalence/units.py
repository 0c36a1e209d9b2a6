"""Numbers with a unit: `5 cm`, `5\\text{ cm}`, `3 m/s^2`, `15 days`, `7 million`, `50\\%`, `12个`.

A table knows every spelling of each unit; units are compared and never converted. A word that the table lacks is not a
unit, so it makes an answer another text. Only a ground truth may bring a noun of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from fractions import Fraction
from typing import NamedTuple

from rewards.equivalence.plain import depths, number
from rewards.equivalence.tables import TABLES, rewrite, rules


class Quantity(NamedTuple):
    """A value (text), the number that words such as "million" multiply it by, and its unit: "m s^-2", "" for none."""

    value: str
    factor: Fraction
    unit: str


_UNITS = TABLES["units"]


def _table() -> dict[str, str]:
    """Every spelling of a unit -> its name. Symbols keep their case, words are in lower case and singular."""
    groups = [group.split("=") for group in _UNITS["others"].split()]
    for group in _UNITS["prefixed"].split():
        symbol, *words = group.split("=")
        for prefix, spoken in [("", ""), *_UNITS["prefixes"].items()]:
            spellings = [(prefix if len(word) == 1 else spoken) + word for word in words]
            groups.append([prefix + symbol, *spellings])
    return {spelling: group[0] for group in reversed(groups) for spelling in group}


_TABLE = _table()
_OPEN_VALUE = re.compile(r"(?:[-+/=^]|\\cdot|\\times)$|\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
"""Texts that no unit follows: an operator, or a function of an angle in degrees"""
_START = re.compile(r"\\text\{|\\(?:degree|%|mu|Omega)(?![A-Za-z])|(?<![\\A-Za-z{_^])[A-Za-zΩμ¢€£¥]|[一-鿿]")
_LETTER = re.compile(r"(?<! )[A-Za-z](?![A-Za-z])")
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:from|to|by)\b)[A-Za-z]")
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
        value = text[:start].strip()
        if not value or depth[start] or _OPEN_VALUE.search(value):
            continue
        plain = number(value) is not None
        if _LETTER.match(text, start) and not (glued and plain):
            continue
        if match[0].isalpha() and _WORD.search(value):
            continue
        parsed = _unit(text[start:], nouns if nouns is not None or plain else ())
        if parsed is not None:
            return Quantity(value, *parsed)
    return Quantity(text, Fraction(1), "")


_PIECE = r"([0-9][0-9.]*(?:\\frac\{[0-9]+\}\{[0-9]+\})?) ?([^\W\d_]+|[°']+) ?(?:,? ?and\b|,)? ?(?=[0-9]|$)"
_PIECES = re.compile(f"(?:{_PIECE}){{2,4}}")


def compound(text: str) -> str:
    """The values and units of 2 h 30 min, the largest unit first; "" for any other text. `\\text{}` is gone."""
    text = rewrite(text, _SPELLINGS)
    pieces = re.findall(_PIECE, text) if _PIECES.fullmatch(text) else []
    names = [_name(word, ()) or word for _, word in pieces]
    if any(names == [name for name in family if name in names] for family in _UNITS["families"] if names):
        return "|".join(f"{number(value)} {name}" for (value, _), name in zip(pieces, names, strict=True))
    return ""


def _unit(text: str, nouns: Collection[str] | None) -> tuple[Fraction, str] | None:
    """Factor and unit that a text spells; None if one of its words is not a unit."""
    powers: Counter[str] = Counter()
    factor = Fraction(1)
    sign, in_brackets, last = 1, False, ""
    for power, mark, word, _, other in _TOKEN.findall(rewrite(text, _SPELLINGS)):
        if other or (power and not last):
            return None
        if power:
            powers[last] += (int(power) - 1) * (1 if powers[last] > 0 else -1)
        elif mark:
            in_brackets = mark == "(" or (in_brackets and mark == "/")
            sign = -1 if mark == "/" else sign if mark == "(" else 1
        elif scale := _UNITS["scales"].get(word.lower().rstrip("s")):
            factor *= scale
        elif word:
            if (name := _name(word, nouns)) is None:
                return None
            last = name
            powers[name] += sign
            sign = sign if in_brackets else 1
    if not powers and factor == 1:
        return None
    names = sorted(name for name, power in powers.items() if power and name != "unit")
    return factor, " ".join(name if powers[name] == 1 else f"{name}^{powers[name]}" for name in names)


def _name(word: str, nouns: Collection[str] | None) -> str | None:
    lower = word.lower()
    for spelling in (word, lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if spelling in _TABLE and (len(spelling) > 2 or spelling in (word, word.removesuffix("s"))):
            return _TABLE[spelling]
    singular = lower.removesuffix("s")
    if nouns is None:
        return singular if len(word) > 2 and word.isalpha() and lower not in _UNITS["no_nouns"].split() else None
    return singular if singular in nouns else None
