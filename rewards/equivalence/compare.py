"""Judges whether an answer is mathematically the ground truth, shape by shape and leaf by leaf. Imports sympy."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction

import sympy

from rewards.equivalence.algebra import equal, same_equations, same_points
from rewards.equivalence.grammar import NotModelled, expression, numeral
from rewards.equivalence.kinds import Text, same_kind, textual, why_prose
from rewards.equivalence.plain import Unreadable, check_limits, decide, number, written_out
from rewards.equivalence.shape import Node, by_name, parse, set_depth
from rewards.equivalence.text import clean, rename_letters, squeeze, strip_harmless
from rewards.equivalence.units import Quantity, quantity


def judge(answer: str, truth: str) -> str:
    """The outcome: correct, wrong, no_answer or unparsed (an expression that cannot be read). May run forever."""
    if outcome := decide(answer, truth):
        return outcome
    answer, truth = clean(answer), clean(truth)
    if not answer:
        return "no_answer"
    if answer == truth:
        return "correct"
    if about := _ABOUT.match(truth):
        truth = truth[about.end() :]
        answer = _ABOUT.sub("", answer)
    try:
        shape = parse(rename_letters(truth, strip_harmless(answer)))
        if same(parse(truth), shape):
            return "correct"
        if shape.kind == "leaf":
            _read(shape, ())
        return "wrong"
    except Unreadable:
        return "unparsed"
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a bug in sympy must cost one answer and not the run
        print(f"rewards: {type(error).__name__} from sympy on {answer[:200]!r}", file=sys.stderr, flush=True)
        return "unparsed"


_ABOUT = re.compile(r"(?:\\text\{ ?)?(?:about|approximately|approx\.?|around|roughly) ?\}? ?|\\approx ?", re.IGNORECASE)
"""The answer may have such a word only if the ground truth has one"""


def why_ungradable(truth: str) -> str:
    """Why no usual answer meets this ground truth; "" if one does. May run for long, or forever."""
    try:
        check_limits(truth)
        if not (cleaned := clean(truth)):
            return "empty"
        if written_out(truth):
            return "a float with all its digits, which no answer repeats; give the exact value"
        if reason := why_prose(cleaned):
            return reason
        node = parse(_ABOUT.sub("", cleaned, count=1))
        _read(node, None)
    except Unreadable as error:
        return str(error)
    plain = quantity(node.text, None, glued=False)
    without_unit = [plain.value] if plain.unit and plain.factor == 1 and not textual(node.text) else []
    answers = [f"\\boxed{{{truth}}}", *without_unit]
    refused = [answer for answer in answers if judge(answer, truth) != "correct"]
    return f"its own plain answer {refused[0]!r} does not count" if refused else ""


def _read(node: Node, nouns: Sequence[str] | None) -> None:
    r"""Raises Unreadable for a part that is neither number nor text of a kind nor mathematics.

    The name in m_{\max}=5 is not read.
    """
    for part in by_name(node).values() or node.parts:
        _read(part, nouns)
    if not node.parts:
        value = quantity(node.text, nouns, glued=False).value
        if textual(node.text) is None and textual(value) is None:
            with suppress(NotModelled):  # compared as text
                expression(value)


def same(truth: Node, answer: Node) -> bool:
    """True if the answer is the ground truth. Not symmetric: the ground truth decides how the answer is read."""
    depths = {set_depth(truth), set_depth(answer)}
    if len(depths) > 1 and max(depths) > 1:  # \{5\} may be 5, but \{\emptyset\} is not \emptyset
        return False
    truth_values, answer_values = by_name(truth), by_name(answer)
    if truth_values and truth_values.keys() == answer_values.keys():
        return all(same(value, answer_values[name]) for name, value in truth_values.items())
    if truth_values and len(answer_values) > 1:
        return False
    if answer.kind == "relation" and truth.kind != "relation" and (value := _nameless(answer)):
        return same(truth, value)
    if truth.kind == "relation" and answer.kind != "relation" and truth_values and (value := _nameless(truth)):
        return same(value, answer)
    if truth_values and answer.kind == "list" and not _has_relation(answer):
        return _in_order(list(truth_values.values()), answer.parts)
    if truth.kind == "relation" and "\\approx" in truth.marks and set(truth.marks) <= {"=", "\\approx"}:
        value = _one_value(answer) if answer.kind == "relation" else answer
        return value is not None and any(same(part, value) for part in truth.parts)
    return _same_shape(truth, answer) or (_may_be_points(truth, answer) and same_points(truth, answer))


def _has_relation(node: Node) -> bool:
    return any(part.kind == "relation" for part in node.parts)


def _nameless(relation: Node) -> Node | None:
    """The value of x=5, the tuple of (x,y)=(1,2), or the one value of a chain."""
    values = tuple(by_name(relation).values())
    if len(values) > 1:
        return Node("tuple", relation.text, values, ("(", ")"))
    return values[0] if values else _one_value(relation)


def _one_value(node: Node) -> Node | None:
    r"""The value of a chain 2+3=5 whose members agree, and of 1/3 \approx 0.333 if the decimal is its rounding."""
    *_, last = node.parts
    agree = {"=": same, "\\approx": _is_rounding}
    pairs = zip(node.marks, node.parts, node.parts[1:], strict=False)
    if not all(mark in agree and agree[mark](first, second) for mark, first, second in pairs):
        return None
    return node.parts[0] if "\\approx" in node.marks else last


def _is_rounding(exact: Node, decimal: Node) -> bool:
    """Returns whether a plain decimal is the correct rounding of an exact number (half a unit of its last digit)."""
    if digits := re.fullmatch(r"-?[0-9,]*\.?([0-9]*)", decimal.text):
        with suppress(Unreadable, TypeError):  # TypeError: symbols have no order
            error = expression(exact.text) - expression(decimal.text)
            return bool(error.is_real and abs(error) <= sympy.Rational(1, 2 * 10 ** len(digits[1])))
    return False


def _same_shape(truth: Node, answer: Node) -> bool:
    """Compares part by part. The order counts in tuples, and if the answer is a tuple."""
    match truth.kind, answer.kind:
        case "leaf", "leaf":
            return same_text(truth.text, answer.text)
        case "leaf", "list" if len(answer.parts) > 1:
            return truth.text == _letters(answer) and not answer.says("or")  # ABC and A, B, C
        case "leaf", "list" | "set":
            return len(answer.parts) == 1 and same(truth, answer.parts[0])
        case "list" | "set", "leaf" if _letters(truth):
            return sorted(_letters(truth)) == sorted(answer.text)
        case "list" | "set", "leaf" if (listed := parse(answer.text, as_list=True)).kind == "list":
            return same(truth, listed)
        case "list", "list":
            joined = {word for node in (truth, answer) for word in ("and", "or") if node.says(word)}
            return len(joined) < 2 and _any_order(truth.parts, answer.parts)
        case "list" | "set", "list" | "set":  # an element may be written twice
            return _all_in(truth.parts, answer.parts) and _all_in(answer.parts, truth.parts)
        case ("union", "union") | ("intersection", "intersection"):  # the same characters in another order
            characters = sorted(squeeze(truth.text)) == sorted(squeeze(answer.text))
            return characters and set(truth.marks) == set(answer.marks) and _any_order(truth.parts, answer.parts)
        case "list" | "set", "tuple":
            return answer.marks == ("(", ")") and _in_order(truth.parts, answer.parts)
        case "list" | "set", _:
            return all(same(part, answer) for part in truth.parts)  # a truth written in several ways
        case "tuple", "tuple":  # with two entries the brackets may make it an interval
            return (truth.marks == answer.marks or len(truth.parts) > 2) and _in_order(truth.parts, answer.parts)
        case "tuple", "list":
            return truth.marks == ("(", ")") and not _has_relation(answer) and _in_order(truth.parts, answer.parts)
        case "matrix", "matrix":
            return _in_order(truth.parts, answer.parts)
        case "relation", "relation":
            orders = (answer.parts, answer.parts[::-1]) if set(answer.marks) == {"="} else (answer.parts,)
            written = truth.marks == answer.marks and any(_in_order(truth.parts, parts) for parts in orders)
            return written or same_equations(truth, answer)
    return False


def _letters(node: Node) -> str:
    """A list of choices as one word; "" for any other list."""
    word = "".join(part.text for part in node.parts)
    return word if len(word) == len(node.parts) and word.isalpha() and word.isupper() else ""


def _may_be_points(truth: Node, answer: Node) -> bool:
    """Returns whether both may describe sets of reals differently. An equation as an answer restates the question."""
    if answer.kind == "relation" and ("=" in answer.marks or (truth.kind == "list" and not truth.says("and"))):
        return False
    return "\\begin" not in answer.text and (truth.kind != "leaf" or "\\mathbb" in truth.text)


def _same_part(truth: Node, answer: Node) -> bool:
    """Like `same`, inside another node, where \\{5\\} is not 5."""
    return set_depth(truth) == set_depth(answer) and same(truth, answer)


def _in_order(truth: Sequence[Node], answer: Sequence[Node]) -> bool:
    return len(truth) == len(answer) and all(map(_same_part, truth, answer))


def _all_in(truth: Sequence[Node], answer: Sequence[Node]) -> bool:
    return all(any(_same_part(part, other) for other in answer) for part in truth)


def _any_order(truth: Sequence[Node], answer: Sequence[Node]) -> bool:
    """One to one. Equality is transitive, so the first match is as good as any other."""
    left = list(answer)
    for part in truth:
        match = next((other for other in left if _same_part(part, other)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


_MAYBE_ALGEBRA = ("letter", "option", "size", "hybrid")


def same_text(truth: str, answer: str) -> bool:
    """Returns whether two cleaned texts without structure are equal: as texts, as quantities, else by algebra."""
    if truth == answer:
        return truth != ""
    truth_text, answer_text = (None if numeral(text) else textual(text) for text in (truth, answer))
    if truth_text and answer_text:
        return same_kind(truth_text, answer_text)
    if truth_text and truth_text.kind not in _MAYBE_ALGEBRA:
        return truth_text.key == answer or _as_ratio(answer) == truth
    truth_quantity = quantity(truth, None, glued=False)
    if answer_text and not truth_quantity.unit and not _may_be_algebra(answer_text):
        return _as_ratio(truth) == answer
    return _same_quantity(truth_quantity, quantity(answer, truth_quantity.unit.split()))


def _may_be_algebra(text: Text) -> bool:
    """Returns whether a text beside mathematics may be a product: x, ab, 2 \\times 3."""
    return text.kind in _MAYBE_ALGEBRA or (text.kind == "words" and len(text.written) < 4)


_FRACTION = re.compile(r"(?:\\frac\{)?([0-9]+)(?:\}\{|/)([0-9]|[0-9]{3,})\}?")


def _as_ratio(text: str) -> str:
    r"""1:2 for \frac{1}{2} and 1/2, unless it could be a time of day."""
    return match.expand(r"\1:\2") if (match := _FRACTION.fullmatch(text)) else ""


def _same_quantity(truth: Quantity, answer: Quantity) -> bool:
    factors = _factors(truth, answer)
    if (truth.unit or answer.unit) and textual(truth.value):
        return factors[:1] == [1] and same_text(truth.value, answer.value)
    return any(_same_value(truth.value, answer.value, factor) for factor in factors)


_FACTORS: dict[tuple[str, str], list] = {
    ("%", ""): [1, 100],  # 50 and 0.5 for 50\%
    ("", "%"): [Fraction(1, 100), 1],
    ("", "°"): [1, sympy.pi / 180],
    ("°", ""): [1, 180 / sympy.pi],
    ("rad", "°"): [sympy.pi / 180],
    ("°", "rad"): [180 / sympy.pi],
    ("°C", "°"): [1],
    ("°F", "°"): [1],
    ("", "cent"): [],
}
"""For a truth's and an answer's unit that differ: the numbers by which the answer may be multiplied"""


def _factors(truth: Quantity, answer: Quantity) -> list:
    """The numbers by which the answer's value may be multiplied to equal the truth's; none if the units differ."""
    differ = truth.unit and answer.unit and truth.unit != answer.unit
    factors = _FACTORS.get((truth.unit, answer.unit), [] if differ else [1])
    if (truth.unit, answer.unit) == ("", "%") and abs(number(truth.value) or Fraction(0)) < 1:
        factors = factors[:1]  # 50\% for 0.5, and for 50, but not 0.5\% for 0.5
    return [factor * (answer.factor / truth.factor) for factor in factors]


_PLAIN = r"(?:[0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+|\\frac\{[0-9.]+\}\{[0-9.]+\})"
_CLOSE = r"(?:[)\]]|\\\})"
_OPERATION = re.compile(
    rf"(?<![\w.}}^\\])(?!1\\cdot){_PLAIN}"
    rf"(?:{_CLOSE}*(?:(?:[+*-]|\\cdot|\\times|\\div)\(*|(?:[(\[]|\\{{)+)|{_CLOSE}+)-?{_PLAIN}"
    r"(?!\)*[\w.^!({]|\\(?!cdot|times|div|frac|\}))"
    r"|^(?!\(*[0-9]+\)*!\)*$).*[0-9]\)*!"  # a factorial beside anything else
    r"|^(?!.*(?:binom|choose)).*[0-9}!)][+-]"  # a sum or difference of anything
)
"""Numbers with an operation left to do (a factor of 1 does not count), which do not answer a numeric ground truth"""


def _same_value(truth: str, answer: str, factor: Fraction | sympy.Expr) -> bool:
    """Returns whether the answer's value times the factor is the ground truth's."""
    if base := numeral(truth):  # 42 restates the question whose answer is 52_8
        return base == numeral(answer)
    truth_number, answer_number = number(truth), number(answer)
    if truth_number is not None and answer_number is not None and isinstance(factor, Fraction):
        return truth_number == answer_number * factor
    if truth_number is not None and answer_number is None and _OPERATION.search(answer):
        return False
    try:
        value = expression(truth)
        return equal(value, expression(answer) if factor == 1 else expression(answer) * sympy.sympify(factor))
    except NotModelled:
        return squeeze(truth) == squeeze(answer)
    except Unreadable:
        return False
