r"""Answers as text: limits, one spelling for what TeX spells in many ways, exact numbers, units. No sympy in here.

This is the fast path. It decides nothing by approximation: a number is a `Fraction` or it is not a number.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARS = 1000
MAX_DEPTH = 40
MAX_EXPONENT = 2000
"""Limits of what is parsed at all: length, nesting of brackets, and the decimal exponent of a number."""


class Unreadable(ValueError):
    """The text is not an answer this package can read; the message says why."""


def check_limits(text: str) -> None:
    """Raises Unreadable for what no parser should be asked to read."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"{len(text)} characters, the limit is {MAX_CHARS}")
    depth = 0
    for char in text:
        if char in "{([":
            depth += 1
            if depth > MAX_DEPTH:
                raise Unreadable(f"brackets nested deeper than {MAX_DEPTH}")
        elif char in "})]":
            depth -= 1


_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "θ": r"\theta ",
        "°": r"^\circ ", "∞": r"\infty ", "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "≈": r"\approx ", "∅": r"\emptyset ", "²": "^2",
        "³": "^3", "¹": "^1", "⁰": "^0", "′": "'", "’": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "",
        "…": r"\ldots ",
    }
)  # fmt: skip

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?(?=[\s()\[\]|\\.]|$)", ""),
        (r"\\(?:displaystyle|textstyle|limits|nolimits|hfill|quad|qquad|thinspace)(?![A-Za-z])", " "),
        (r"\\!\s*", ""),
        (r"(?<=[0-9])(?:\\[,;:]|\\ |~|\{,\})(?=[0-9]{3}(?![0-9]))", ""),  # thousands: 10\,080 and 10{,}080
        (r"(?<!\\)\\[,;: ]|~", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (
            r"\\(?:mbox|hbox|textrm|textbf|textit|textnormal|textsf|texttt|mathrm|mathbf|mathit|mathsf|rm|bf)\s*\{",
            r"\\text{",
        ),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:lbrack)(?![A-Za-z])", "["),
        (r"\\(?:rbrack)(?![A-Za-z])", "]"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])|\\text\{\s*degrees?\s*\}", r"\\degree "),
        (r"\\text\{\s*(?:percent|per cent)\s*\}|(?<=[0-9])\s*percent\b", r"\\%"),
        (r"(?<!\\)%", r"\\%"),
        (r"(?<![A-Za-z\\0-9.])([0-9]+\.?[0-9]*|\.[0-9]+)[eE]([+-]?[0-9]{1,9})(?![0-9A-Za-z.])", r"\1\\times10^{\2}"),
        (r"(?<=[0-9])\s*(?:[xX*]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*", r"\\times10^"),
        (r"\^\s*([+-]\s*[0-9]+)", r"^{\1}"),
        (r"\*\*", "^"),
        (r"\\text\{\s*\}", " "),
        (r"[ \t\r\n\f\v]+", " "),
        (r" ?([-+*/=<>|()\[\]{}^_&]) ?", r"\1"),
        (r" +([,;])", r"\1"),
        (r"\\text\{([ie])\}", r"\1"),
        (r" (?=\\)", ""),
        (r"(\\[A-Za-z]+) (?![A-Za-z])", r"\1"),
    ]
]
_DELIMITERS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")


def clean(text: str) -> str:
    """One spelling of the answer; never joins two numbers. Commands that only set type are gone."""
    text = text.translate(_CHARACTERS)
    text = _DELIMITERS.sub(" ", text).replace("\\$", "")
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip()
    while text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return unwrap(text)


_WRAPPERS = ("\\boxed{", "{", "\\text{")


def unwrap(text: str) -> str:
    r"""Takes off braces, `\boxed{}` and `\text{}` that enclose the whole text."""
    while text.endswith("}"):
        head = next((head for head in _WRAPPERS if text.startswith(head)), None)
        if head is None or closing(text, len(head) - 1) != len(text) - 1:
            break
        text = text[len(head) : -1].strip()
    return text


_OPENING, _CLOSING = "{([", "})]"


def closing(text: str, start: int) -> int:
    r"""Position of the brace or bracket that closes the one at `start`, or -1. Printed braces `\{ \}` count as brackets."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] in _OPENING:
            depth += 1
        elif text[position] in _CLOSING:
            depth -= 1
            if depth == 0:
                return position
    return -1


_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(rf"([+-]*)({_DECIMAL})(?:\\times10\^(?:\{{([+-]?[0-9]+)\}}|([0-9]+)))?")
_POWER = re.compile(r"([+-]*)10\^(?:\{([+-]?[0-9]+)\}|([0-9]+))")
_FRACTION = re.compile(
    r"([+-]*)([0-9]+)?\\frac(?:\{([+-]?)(%s)\}|([0-9]))(?:\{([+-]?)(%s)\}|([0-9]))" % (_DECIMAL, _DECIMAL)  # noqa: UP031
)
_SLASH = re.compile(rf"([+-]*)({_DECIMAL})/({_DECIMAL})")
_REPEATING = re.compile(r"([+-]*)([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\{([0-9]+)\}")


def number(text: str) -> Fraction | None:
    r"""The exact value of a cleaned number: 1,234, -0.5, 1.2\times 10^{-5}, 3/4, 1\frac{1}{2}, 0.\overline{3}; else None."""
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


_POWER_SIGN = r"(?:\^(?:\{([0-9])\}|([0-9])))?"
_TEXT_UNIT = re.compile(rf"(.*[^/\\])((?:(?:/|\\cdot)?\\text\{{[^{{}}]*\}}{_POWER_SIGN})+)", re.DOTALL)
_DEGREE = re.compile(r"(.+)\\degree ?[CF]?", re.DOTALL)
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
_FUNCTIONS = frozenset("sin cos tan cot sec csc log ln exp sqrt".split())


def word(text: str) -> str | None:
    r"""The answer as a word or a choice, lower case: `\text{East}`, `east`, `\text{(C)}`, `(C)`; None for mathematics.

    Fewer than four bare letters are a product of symbols and not a word, unless brackets make them a choice.
    """
    typed = "\\text{" in text
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    match = _WORDS.fullmatch(plain)
    if not match or match[1] in _FUNCTIONS:
        return None
    letters = " ".join(match[1].split()).lower()
    if typed or len(letters) >= 4 or (len(letters) == 1 and plain.startswith("(") and plain.endswith(")")):
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
        bare = re.sub(r"\\text\{([^{}]*)\}|[()]", r"\1", answer if truth_word else truth).strip().lower()
        return bare == (truth_word or answer_word)
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
