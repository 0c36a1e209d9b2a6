"""Answers without structure: units, words, percent, numerals. Decides what text and exact numbers can decide."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.equivalence.plain import number

_POWER_SIGN = r"(?:\^(?:\{([0-9])\}|([0-9])))?"
_TEXT_UNIT = re.compile(rf"(.*[^/\\])((?:(?:/|\\cdot)?\\text\{{[^{{}}]*\}}{_POWER_SIGN})+)", re.DOTALL)
_DEGREE = re.compile(r"(.+)\\degree ?(?:[CF]|\\text\{[CF]\})?", re.DOTALL)
_BARE_UNIT = re.compile(
    r"(.*[0-9}\s]) ?((?:square|cubic|sq|cu) )?"
    r"(?:(?:kilo|centi|milli)?met(?:er|re)s?|km|cm|mm|m|inch(?:es)?|in|feet|foot|ft|yards?|miles?|units?|kg|g|grams?|"
    r"hours?|hrs?|h|minutes?|min|seconds?|sec|s|days?|weeks?|months?|years?|dollars?|cents?|degrees?|mph|km/h|m/s|"
    r"lit(?:er|re)s?|people|students?|points?|pounds?|ways?)(?:\^(?:\{[0-9]\}|[0-9]))?",
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
    if (match := _TEXT_UNIT.fullmatch(text)) and not re.search(r"\bnot\b|\bor\b|\band\b|[0-9]", _no_power(match[2])):
        return match[1].strip(), _unit_name(match[2])
    return text, ""


def _no_power(unit: str) -> str:
    return re.sub(r"\^(?:\{[0-9]\}|[0-9])", "", unit)


def _unit_name(unit: str) -> str:
    letters = re.sub(r"\\text|\\cdot|[^A-Za-z0-9/]", "", unit).lower()
    name = re.sub(r"(?<=[a-z]{2})s$", "", letters)
    return _UNIT_NAMES.get(name, name)


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


def same_leaf(truth: str, answer: str) -> bool | None:
    """Whether two cleaned answers without structure are equal; None where only algebra can tell."""
    if truth == answer:
        return truth != ""
    truth_value, truth_unit = split_unit(truth)
    value, unit = split_unit(answer)
    if "%" in (truth_unit, unit) or not (truth_unit and unit):
        pass
    elif truth_unit != unit:
        return False
    expected, given = number(truth_value), number(value)
    if given is None and expected is not None:
        value = strip_leading_text(strip_bare_unit(value))
        given = number(value)
    if expected is not None and given is not None:
        return expected == given or _percent_equal(expected, truth_unit, given, unit)
    expected_numeral, given_numeral = numeral(truth_value), numeral(value)
    if expected_numeral or given_numeral:
        return _same_numeral(expected_numeral, expected, given_numeral, given)
    if truth_value == value and value:
        return True
    truth_word, answer_word = word(truth), word(answer)
    if truth_word or answer_word:
        other = answer_word if truth_word else truth_word
        bare = re.sub(r"\\text\{([^{}]*)\}|[()]", r"\1", answer if truth_word else truth).strip().lower()
        return (truth_word or answer_word) in (other, bare)
    return None


def _percent_equal(expected: Fraction, truth_unit: str, given: Fraction, unit: str) -> bool:
    r"""50\% is 0.5, and where only one side has the sign it may also be left away (handled by plain equality)."""
    if (truth_unit == "%") == (unit == "%"):
        return False
    return expected == given / 100 if unit == "%" else expected / 100 == given


def _same_numeral(
    truth: tuple[int, int] | None, truth_number: Fraction | None, answer: tuple[int, int] | None, given: Fraction | None
) -> bool:
    """A ground truth in base b wants an answer in base b: 42 restates the question whose answer is 52_8."""
    expected, base = truth or (truth_number, 10)
    value, answer_base = answer or (given, 10)
    if expected is None or value is None or (truth and answer_base != base):
        return False
    return expected == value


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
