"""Is an answer mathematically the ground truth? `judge` says, shape by shape and leaf by leaf. Imports sympy."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction

from rewards.equivalence.algebra import between, equal, same_equations, same_points
from rewards.equivalence.grammar import NotModelled, expression
from rewards.equivalence.leaf import numeral, split_unit, strip_bare_unit, strip_leading_text, word
from rewards.equivalence.plain import Unreadable, check_limits, decide, number
from rewards.equivalence.shape import Node, assignment, parse
from rewards.equivalence.text import clean, squeeze

WRONG = ("7919", "7907")
"""No ground truth equals both"""


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
            _read(answer)
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
        for leaf in _leaves(parse(cleaned)):
            _read(leaf)
    except Unreadable as error:
        return str(error)
    return "every number counts as right" if all(judge(wrong, truth) == "correct" for wrong in WRONG) else ""


def _leaves(node: Node) -> Iterator[str]:
    r"""Texts without structure. In m_{\max}=5 the name is compared as text and not read."""
    named = assignment(node)
    for part in [named[1]] if named else node.parts:
        yield from _leaves(part)
    if not node.parts:
        yield node.text


def _read(leaf: str) -> None:
    """Raises Unreadable for what is neither number nor word nor mathematics."""
    value = split_unit(leaf)[0]
    if number(value) is None and numeral(value) is None and word(value) is None:
        with suppress(NotModelled):  # compared as text
            expression(value)


def same(truth: Node, answer: Node) -> bool:
    """Whether the answer is the ground truth. Not symmetric: the ground truth says how the answer is to be read."""
    truth_named, answer_named = assignment(truth), assignment(answer)
    if truth_named and answer_named:
        if truth_named[0] != answer_named[0]:
            return _same_relation(truth, answer)
        return same(truth_named[1], answer_named[1])
    if answer_named and truth.kind != "relation":
        return same(truth, answer_named[1])
    if truth_named and answer.kind != "relation":
        return same(truth_named[1], answer)
    if answer.kind == "relation" and truth.kind != "relation" and (value := _one_value(answer)):
        return same(truth, value)
    return _SAME[truth.kind](truth, answer)


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
    half = Fraction(1, 2 * 10 ** len(digits))
    return between(given - half, exact.text, given + half)


def _same_leaf(truth: Node, answer: Node) -> bool:
    if answer.kind in ("set", "list") and len(answer.parts) == 1:
        return same(truth, answer.parts[0])
    if answer.kind in ("union", "tuple", "relation") and "\\mathbb" in truth.text:
        return same_points(truth, answer)
    return answer.kind == "leaf" and same_text(truth.text, answer.text)


def same_text(truth: str, answer: str) -> bool:
    """Whether two cleaned texts without structure are equal: as numbers, numerals or words, else by algebra."""
    if truth == answer:
        return truth != ""
    (wanted, wanted_unit), (given, unit) = split_unit(truth), split_unit(answer)
    percents = (wanted_unit, unit).count("%")
    if wanted_unit and unit and wanted_unit != unit and not percents:
        return False
    readings = [strip_leading_text(given)]
    if not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", wanted)):
        readings.append(strip_bare_unit(readings[0]))
    factors = [Fraction(1)]  # 50\% is 0.5, and 50 too: the sign may be left away
    if percents == 1:
        factors.append(Fraction(1, 100) if wanted_unit else Fraction(100))

    expected, value = number(wanted), next(filter(None.__ne__, map(number, readings)), None)
    if expected is not None and value is not None:
        return any(expected * factor == value for factor in factors)
    if (base := numeral(wanted)) or numeral(given):
        return _same_numeral(base or (expected, 10), numeral(given) or (value, 10), base is not None)
    if wanted == given and given:
        return True
    words = word(truth), word(answer)
    if any(words):
        plain = [re.sub(r"\\text\{([^{}]*)\}|[()]", r"\1", text).strip().lower() for text in (truth, answer)]
        return words[0] in (words[1], plain[1]) if words[0] else words[1] == plain[0]
    return _same_expression(wanted, readings, factors)


def _same_numeral(truth: tuple[Fraction | None, int], answer: tuple[Fraction | None, int], based: bool) -> bool:
    """A ground truth in base b wants an answer in base b: 42 restates the question whose answer is 52_8."""
    return truth[0] is not None and truth[0] == answer[0] and (not based or truth[1] == answer[1])


def _same_expression(truth: str, readings: list[str], factors: list[Fraction]) -> bool:
    try:
        expected = expression(truth)
    except NotModelled:
        return squeeze(truth) == squeeze(readings[0])
    except Unreadable:
        return False
    for reading, allowed in zip(readings, (factors, factors[:1]), strict=False):  # no percent beside another unit
        with suppress(Unreadable):
            given = expression(reading)
            if any(equal(expected * factor if factor != 1 else expected, given) for factor in allowed):
                return True
    return False


def _same_list(truth: Node, answer: Node) -> bool:
    """Order does not matter, except where the answer wrote a tuple."""
    if answer.kind == "leaf" and "," in answer.text:
        answer = parse(answer.text, as_list=True)
    if answer.kind == "tuple":
        return answer.marks == ("(", ")") and _in_order(truth.parts, answer.parts)
    if "set" in (truth.kind, answer.kind) and answer.kind in ("list", "set"):
        return _all_in(truth.parts, answer.parts) and _all_in(answer.parts, truth.parts)
    if answer.kind == "list":
        return _any_order(truth.parts, answer.parts)
    if "or" in " ".join(truth.marks) and answer.kind in ("union", "tuple"):
        return same_points(truth, answer)
    return all(same(part, answer) for part in truth.parts)  # a truth written in several ways


def _same_tuple(truth: Node, answer: Node) -> bool:
    """Order matters; for two entries so do the brackets, which may make it an interval."""
    if answer.kind == "tuple":
        same_brackets = truth.marks == answer.marks or len(truth.parts) > 2
        return same_brackets and _in_order(truth.parts, answer.parts)
    if answer.kind == "list" and not any(part.kind == "relation" for part in answer.parts):
        return truth.marks == ("(", ")") and _in_order(truth.parts, answer.parts)
    return _may_be_point_set(answer) and same_points(truth, answer)


def _same_union(truth: Node, answer: Node) -> bool:
    return _may_be_point_set(answer) and same_points(truth, answer)


def _may_be_point_set(node: Node) -> bool:
    return node.kind != "matrix" and (node.kind != "leaf" or "\\mathbb" in node.text)


def _same_matrix(truth: Node, answer: Node) -> bool:
    return (
        answer.kind == "matrix"
        and len(truth.parts) == len(answer.parts)
        and all(_in_order(a.parts, b.parts) for a, b in zip(truth.parts, answer.parts, strict=True))
    )


_TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}


def _same_relation(truth: Node, answer: Node) -> bool:
    """Side by side, also from the other side; else as equations and inequalities."""
    if answer.kind == "relation":
        turned = tuple(_TURNED.get(mark, mark) for mark in reversed(answer.marks))
        return (
            (truth.marks == answer.marks and _in_order(truth.parts, answer.parts))
            or (truth.marks == turned and _in_order(truth.parts, answer.parts[::-1]))
            or same_equations(truth, answer)
        )
    return answer.kind in ("tuple", "union", "list", "set") and same_points(truth, answer)


def _in_order(truth: Sequence[Node], answer: Sequence[Node]) -> bool:
    return len(truth) == len(answer) and all(same(a, b) for a, b in zip(truth, answer, strict=True))


def _all_in(some: Sequence[Node], others: Sequence[Node]) -> bool:
    """Sets do not count how often an element is written."""
    return all(any(same(one, other) for other in others) for one in some)


def _any_order(truth: Sequence[Node], answer: Sequence[Node]) -> bool:
    """One to one. Equality is transitive, so the first match is as good as any other."""
    left = list(answer)
    if len(truth) != len(left):
        return False
    for wanted in truth:
        match = next((index for index, given in enumerate(left) if same(wanted, given)), None)
        if match is None:
            return False
        left.pop(match)
    return True


_SAME: dict[str, Callable[[Node, Node], bool]] = {
    "leaf": _same_leaf,
    "list": _same_list,
    "set": _same_list,
    "tuple": _same_tuple,
    "union": _same_union,
    "matrix": _same_matrix,
    "relation": _same_relation,
}
