"""Is an answer mathematically the ground truth? `judge` says, shape by shape and leaf by leaf. Imports sympy."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction

import sympy

from rewards.equivalence.algebra import equal, same_equations, same_points
from rewards.equivalence.grammar import NotModelled, expression
from rewards.equivalence.leaf import numeral, split_unit, strip_bare_unit, strip_leading_text, word
from rewards.equivalence.plain import Unreadable, check_limits, decide, number
from rewards.equivalence.shape import Node, assignment, parse
from rewards.equivalence.text import clean, squeeze


def judge(answer: str, truth: str) -> str:
    """The outcome: correct, wrong, no_answer or unparsed (an expression that cannot be read). May run for ever."""
    if outcome := decide(answer, truth):
        return outcome
    answer, truth = clean(answer), clean(truth)
    if not answer:
        return "no_answer"
    try:
        shape = parse(answer)
        if answer == truth or same(parse(truth), shape):
            return "correct"
        if shape.kind == "leaf":
            _read(shape)
        return "wrong"
    except Unreadable:
        return "unparsed"
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a bug in sympy must cost one answer and not the run
        print(f"rewards: {type(error).__name__} from sympy on {answer[:200]!r}", file=sys.stderr, flush=True)
        return "unparsed"


def why_ungradable(truth: str) -> str:
    """Why no answer can be graded against this ground truth; "" where one can. May run for long, or for ever."""
    try:
        check_limits(truth)
        if not (cleaned := clean(truth)):
            return "empty"
        _read(parse(cleaned))
    except Unreadable as error:
        return str(error)
    return ""


def _read(node: Node) -> None:
    r"""Raises Unreadable for a part that is neither number nor word nor mathematics. The name in m_{\max}=5 is none."""
    named = assignment(node)
    for part in [named[1]] if named else node.parts:
        _read(part)
    value = split_unit(node.text)[0]
    if not node.parts and word(value) is None:
        with suppress(NotModelled):  # compared as text
            expression(value)


def same(truth: Node, answer: Node) -> bool:
    """Whether the answer is the ground truth. Not symmetric: the ground truth says how the answer is to be read."""
    truth_named, answer_named = assignment(truth), assignment(answer)
    if truth_named and answer_named:
        if truth_named[0] == answer_named[0]:
            return same(truth_named[1], answer_named[1])
    elif answer_named and truth.kind != "relation":
        return same(truth, answer_named[1])
    elif truth_named and answer.kind != "relation":
        return same(truth_named[1], answer)
    elif answer.kind == "relation" and truth.kind != "relation" and (value := _one_value(answer)):
        return same(truth, value)
    return _same_shape(truth, answer) or (_may_be_points(truth, answer) and same_points(truth, answer))


def _one_value(node: Node) -> Node | None:
    r"""The value of a chain 2+3=5 whose members agree, and of 1/3 \approx 0.333 where the decimal is its rounding."""
    first = node.parts[0]
    agree = {"=": same, "\\approx": _is_rounding}
    pairs = zip(node.marks, node.parts[1:], strict=True)
    return first if all(mark in agree and agree[mark](first, part) for mark, part in pairs) else None


def _is_rounding(exact: Node, decimal: Node) -> bool:
    """Whether a plain decimal is the correct rounding of an exact number (half a unit of its last digit)."""
    given, digits = number(decimal.text), decimal.text.partition(".")[2]
    if given is None or not re.fullmatch(r"[0-9]*", digits):
        return False
    with suppress(Unreadable, TypeError):  # TypeError: symbols have no order
        error = expression(exact.text) - sympy.Rational(given)
        return bool(error.is_real and abs(error) <= sympy.Rational(1, 2 * 10 ** len(digits)))
    return False


def _same_shape(truth: Node, answer: Node) -> bool:
    """Part by part, where both have such parts. The order counts in tuples, and where the answer wrote a tuple."""
    match truth.kind, answer.kind:
        case "leaf", "leaf":
            return same_text(truth.text, answer.text)
        case "leaf", "list" | "set":
            return len(answer.parts) == 1 and same(truth, answer.parts[0])
        case "list" | "set", "leaf" if "," in answer.text and parse(answer.text, as_list=True).kind == "list":
            return same(truth, parse(answer.text, as_list=True))
        case "list", "list":
            return _any_order(truth.parts, answer.parts)
        case "list" | "set", "list" | "set":
            return _all_in(truth.parts, answer.parts) and _all_in(answer.parts, truth.parts)
        case "list" | "set", "tuple":
            return answer.marks == ("(", ")") and _in_order(truth.parts, answer.parts)
        case "list" | "set", _:
            return all(same(part, answer) for part in truth.parts)  # a truth written in several ways
        case "tuple", "tuple":  # with two entries the brackets may make it an interval
            return (truth.marks == answer.marks or len(truth.parts) > 2) and _in_order(truth.parts, answer.parts)
        case "tuple", "list":
            plain = not any(part.kind == "relation" for part in answer.parts)
            return plain and truth.marks == ("(", ")") and _in_order(truth.parts, answer.parts)
        case "matrix", "matrix":
            return _in_order(truth.parts, answer.parts)
        case "relation", "relation":
            orders = (answer.parts, answer.parts[::-1]) if set(answer.marks) == {"="} else (answer.parts,)
            written = truth.marks == answer.marks and any(_in_order(truth.parts, parts) for parts in orders)
            return written or same_equations(truth, answer)
    return False


def _may_be_points(truth: Node, answer: Node) -> bool:
    """Whether both may describe sets of reals in different ways. An equation as an answer restates the question."""
    if truth.kind == answer.kind and truth.kind not in ("union", "relation"):
        return False
    if answer.kind == "relation" and ("=" in answer.marks or truth.kind == "list"):
        return False
    asked = truth.kind in ("union", "relation", "tuple") or truth.says("or") or "\\mathbb" in truth.text
    given = answer.kind in ("union", "relation", "tuple", "list", "set") or "\\mathbb" in answer.text
    return asked and given


def _in_order(truth: Sequence[Node], answer: Sequence[Node]) -> bool:
    return len(truth) == len(answer) and all(map(same, truth, answer))


def _all_in(some: Sequence[Node], others: Sequence[Node]) -> bool:
    """Sets do not count how often an element is written."""
    return all(any(same(one, other) for other in others) for one in some)


def _any_order(truth: Sequence[Node], answer: Sequence[Node]) -> bool:
    """One to one. Equality is transitive, so the first match is as good as any other."""
    left = list(answer)
    for wanted in truth:
        match = next((given for given in left if same(wanted, given)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def same_text(truth: str, answer: str) -> bool:
    """Whether two cleaned texts without structure are equal: as numerals or words, else by algebra."""
    if truth == answer:
        return truth != ""
    (wanted, wanted_unit), (given, unit) = split_unit(truth), split_unit(answer)
    percents = (wanted_unit, unit).count("%")
    if wanted_unit and unit and wanted_unit != unit and not percents:
        return False
    if base := numeral(wanted):  # 42 restates the question whose answer is 52_8
        return base == numeral(given)
    given = strip_leading_text(given)
    if wanted == given:
        return given != ""
    words = word(truth), word(answer)
    if any(words):
        plain = [re.sub(r"\\text\{([^{}]*)\}|[()]", r"\1", text).strip().lower() for text in (truth, answer)]
        return words[0] == words[1] or plain[0] == plain[1]
    readings = [(given, Fraction(1))]
    if percents == 1:  # 50\% is 0.5, and 50 too: the sign may be left away
        readings.append((given, Fraction(1, 100) if wanted_unit else Fraction(100)))
    if not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", wanted)):
        readings.append((strip_bare_unit(given), Fraction(1)))
    return _same_expression(wanted, readings)


def _same_expression(truth: str, readings: Sequence[tuple[str, Fraction]]) -> bool:
    """Whether one of the readings is the ground truth times its factor."""
    try:
        expected = expression(truth)
    except NotModelled:
        return squeeze(truth) == squeeze(readings[0][0])
    except Unreadable:
        return False
    for reading, factor in readings:
        with suppress(Unreadable):
            if equal(expected if factor == 1 else expected * sympy.Rational(factor), expression(reading)):
                return True
    return False
