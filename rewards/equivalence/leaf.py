"""What stands in an answer beside mathematics: units, words, percent, numerals in other bases."""

from __future__ import annotations

import re
from contextlib import suppress

_POWER = r"\^(?:\{[0-9]\}|[0-9])"
_TEXT_UNIT = re.compile(rf"(.*[^/\\])((?:(?:/|\\cdot)?\\text\{{[^{{}}]*\}}(?:{_POWER})?)+)", re.DOTALL)
_DEGREE = re.compile(r"((?:(?!\\(?:sin|cos|tan|cot|sec|csc)).)+)\\degree ?(?:[CF]|\\text\{[CF]\})?", re.DOTALL)
_BARE_UNIT = re.compile(
    r"(.*[0-9}\s]) ?(?:(?:square|cubic|sq|cu) )?"
    r"(?:(?:kilo|centi|milli)?met(?:er|re)s?|km|cm|mm|m|inch(?:es)?|in|feet|foot|ft|yards?|miles?|units?|kg|g|grams?|"
    r"hours?|hrs?|h|minutes?|min|seconds?|sec|s|days?|weeks?|months?|years?|dollars?|cents?|degrees?|mph|km/h|m/s|"
    r"lit(?:er|re)s?|people|students?|points?|pounds?|ways?)(?:" + _POWER + ")?",
    re.DOTALL,
)
_UNIT_NAMES = {
    "centimeter": "cm", "meter": "m", "kilometer": "km", "millimeter": "mm", "inche": "in", "inch": "in", "feet": "ft",
    "foot": "ft", "second": "s", "sec": "s", "hour": "h", "hr": "h", "minute": "min", "gram": "g", "kilogram": "kg",
    "centimetre": "cm", "metre": "m", "kilometre": "km", "dollar": "", "unit": "", "squareunit": "", "degree": "",
}  # fmt: skip


def split_unit(text: str) -> tuple[str, str]:
    r"""(value, unit) of a cleaned answer; the unit is "" where there is none, "%" for percent. `\degree` is no unit."""
    if text.endswith("\\%"):
        return text[:-2].strip(), "%"
    if match := _DEGREE.fullmatch(text):
        return match[1].strip(), ""
    match = _TEXT_UNIT.fullmatch(text)
    if not match or re.search(r"\b(?:not|or|and)\b|[0-9]", re.sub(_POWER, "", match[2])):
        return text, ""
    unit = re.sub(r"\\text|\\cdot|[^A-Za-z0-9/]", "", match[2]).lower()
    unit = re.sub(r"(?<=[a-z]{2})s$", "", unit)
    return match[1].strip(), _UNIT_NAMES.get(unit, unit)


def strip_bare_unit(text: str) -> str:
    """`5 cm` and `5cm` without their unit; for answers to a ground truth in which no letter stands."""
    match = _BARE_UNIT.fullmatch(text)
    return match[1].strip() if match else text


_LEADING_TEXT = re.compile(r"\\text\{([^{}0-9]*)\}(?=[^_^\s])")


def strip_leading_text(text: str) -> str:
    r"""`\text{The answer is }5` without its words, unless they deny or hedge."""
    match = _LEADING_TEXT.match(text)
    if not match or re.search(r"\b(?:not|no|never|or|except|neither)\b", match[1], re.IGNORECASE):
        return text
    return text[match.end() :].strip()


_WORDS = re.compile(r"\(?([A-Za-z][A-Za-z '\-]*[A-Za-z]|[A-Za-z])\)?")
_CLOCK = re.compile(r"([0-9]{1,2}:[0-9]{2})(?: ?(?:\\text\{)?([ap])\.? ?m\.?\}?)?", re.IGNORECASE)
_FUNCTIONS = frozenset(["sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt"])


def word(text: str) -> str | None:
    r"""The answer as a word or a choice, lower case: `\text{East}`, `east`, `\text{(C)}`, `(C)`; None for mathematics.

    Fewer than four bare letters are a product of symbols and not a word, unless brackets make them a choice.
    """
    if (clock := _CLOCK.fullmatch(text)) and clock[2]:
        return f"{clock[1]} {clock[2].lower()}m"
    typed = "\\text{" in text
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    match = _WORDS.fullmatch(plain)
    if not match or match[1] in _FUNCTIONS:
        return None
    letters = " ".join(match[1].split()).lower()
    long = len(letters) >= 4 and all(len(part) > 2 for part in letters.split("-"))  # kx-a is a difference
    if typed or long or (len(letters) == 1 and plain.startswith("(") and plain.endswith(")")):
        return letters
    return None


_BASE = re.compile(r"(?:\\text\{)?\(?([0-9A-Z]+)\)?\}?_(?:\{(?:\\text\{)?([0-9]{1,2})\}?\}|([0-9]{1,2}))")


def numeral(text: str) -> tuple[int, int] | None:
    """Value and base of a numeral with its base as subscript (52_8, FF_{16}); None for a symbol with an index (a_1)."""
    match = _BASE.fullmatch(text)
    base = int(match[2] or match[3]) if match else 0
    if not 2 <= base <= 36 or re.fullmatch("[A-Z]", match[1]):
        return None
    with suppress(ValueError):  # a digit that the base does not have
        return int(match[1], base), base
    return None
