"""Equality of two shapes, leaf by leaf. What a leaf, an equation or a set of points is equal to, the algebra says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from rewards.equivalence.leaf import same_leaf
from rewards.equivalence.numbers import number
from rewards.equivalence.shape import Node, assignment, parse


class Undecided(Exception):
    """Only algebra can tell."""


class Algebra:
    """What comparing shapes needs to know, for texts and exact numbers; Undecided where only sympy can tell."""

    def leaf(self, truth: str, answer: str) -> bool:
        decided = same_leaf(truth, answer)
        if decided is None:
            raise Undecided
        return decided

    def relation(self, truth: Node, answer: Node) -> bool:
        """Equations and inequalities."""
        if truth.text == answer.text:
            return True
        raise Undecided

    def point_set(self, truth: Node, answer: Node) -> bool:
        """Intervals, unions and inequalities in one unknown, as sets of real numbers."""
        raise Undecided

    def between(self, lower: Fraction, text: str, upper: Fraction) -> bool:
        """Whether a constant lies in a closed interval."""
        raise Undecided


def same(truth: Node, answer: Node, algebra: Algebra) -> bool:
    """Whether the answer is the ground truth. Not symmetric: the ground truth says how the answer is to be read."""
    truth_named, answer_named = assignment(truth), assignment(answer)
    if truth_named and answer_named:
        if truth_named[0] != answer_named[0]:
            return _same_relation(truth, answer, algebra)
        return same(truth_named[1], answer_named[1], algebra)
    if answer_named and truth.kind != "relation":
        return same(truth, answer_named[1], algebra)
    if truth_named and answer.kind != "relation":
        return same(truth_named[1], answer, algebra)
    if answer.kind == "relation" and truth.kind != "relation":
        values = _one_value(answer, algebra)
        if values is not None:
            return same(truth, values, algebra)
    return _SAME.get(truth.kind, _same_leaf)(truth, answer, algebra)


def _one_value(node: Node, algebra: Algebra) -> Node | None:
    r"""The value of a chain 2+3=5 whose members agree, and of 1/3 \approx 0.333 where the decimal is its rounding."""
    first = node.parts[0]
    for mark, part in zip(node.marks, node.parts[1:], strict=True):
        if mark == "=" and not same(first, part, algebra):
            return None
        if mark == "\\approx" and not is_rounding(first, part, algebra):
            return None
        if mark not in ("=", "\\approx"):
            return None
    return first


def is_rounding(exact: Node, decimal: Node, algebra: Algebra) -> bool:
    """Whether a plain decimal is the correct rounding of an exact number (half a unit of its last digit)."""
    given, digits = number(decimal.text), decimal.text.partition(".")[2]
    if given is None or not re.fullmatch(r"[0-9]*", digits):
        return False
    half = Fraction(1, 2 * 10 ** len(digits))
    return algebra.between(given - half, exact.text, given + half)


def _same_leaf(truth: Node, answer: Node, algebra: Algebra) -> bool:
    if answer.kind in ("set", "list") and len(answer.parts) == 1:
        return same(truth, answer.parts[0], algebra)
    if answer.kind in ("union", "tuple", "relation") and "\\mathbb" in truth.text:
        return algebra.point_set(truth, answer)
    return answer.kind == "leaf" and algebra.leaf(truth.text, answer.text)


def _same_list(truth: Node, answer: Node, algebra: Algebra) -> bool:
    """Order does not matter, except where the answer wrote a tuple."""
    if answer.kind == "leaf" and "," in answer.text:
        answer = parse(answer.text, as_list=True)
    if answer.kind == "tuple":
        return answer.marks == ("(", ")") and _in_order(truth.parts, answer.parts, algebra)
    if "set" in (truth.kind, answer.kind) and answer.kind in ("list", "set"):
        return _all_in(truth.parts, answer.parts, algebra) and _all_in(answer.parts, truth.parts, algebra)
    if answer.kind == "list":
        return _any_order(truth.parts, answer.parts, algebra)
    if "or" in " ".join(truth.marks) and answer.kind in ("union", "tuple"):
        return algebra.point_set(truth, answer)
    return all(same(part, answer, algebra) for part in truth.parts)  # a truth written in several ways


def _same_tuple(truth: Node, answer: Node, algebra: Algebra) -> bool:
    """Order matters; for two entries so do the brackets, which may make it an interval."""
    if answer.kind == "tuple":
        same_brackets = truth.marks == answer.marks or len(truth.parts) > 2
        return same_brackets and _in_order(truth.parts, answer.parts, algebra)
    if answer.kind == "list" and not any(part.kind == "relation" for part in answer.parts):
        return truth.marks == ("(", ")") and _in_order(truth.parts, answer.parts, algebra)
    return _may_be_point_set(answer) and algebra.point_set(truth, answer)


def _same_union(truth: Node, answer: Node, algebra: Algebra) -> bool:
    return _may_be_point_set(answer) and algebra.point_set(truth, answer)


def _may_be_point_set(node: Node) -> bool:
    return node.kind != "matrix" and (node.kind != "leaf" or "\\mathbb" in node.text)


def _same_matrix(truth: Node, answer: Node, algebra: Algebra) -> bool:
    return (
        answer.kind == "matrix"
        and len(truth.parts) == len(answer.parts)
        and all(_in_order(a.parts, b.parts, algebra) for a, b in zip(truth.parts, answer.parts, strict=True))
    )


_TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}


def _same_relation(truth: Node, answer: Node, algebra: Algebra) -> bool:
    """Side by side, also from the other side; else as equations and inequalities."""
    if answer.kind == "relation":
        turned = tuple(_TURNED.get(mark, mark) for mark in reversed(answer.marks))
        return (
            (truth.marks == answer.marks and _in_order(truth.parts, answer.parts, algebra))
            or (truth.marks == turned and _in_order(truth.parts, answer.parts[::-1], algebra))
            or algebra.relation(truth, answer)
        )
    return answer.kind in ("tuple", "union", "list") and algebra.point_set(truth, answer)


def _in_order(truth: Sequence[Node], answer: Sequence[Node], algebra: Algebra) -> bool:
    return len(truth) == len(answer) and all(same(a, b, algebra) for a, b in zip(truth, answer, strict=True))


def _all_in(some: Sequence[Node], others: Sequence[Node], algebra: Algebra) -> bool:
    """Sets do not count how often an element is written."""
    return all(any(same(one, other, algebra) for other in others) for one in some)


def _any_order(truth: Sequence[Node], answer: Sequence[Node], algebra: Algebra) -> bool:
    """One to one. Equality is transitive, so the first match is as good as any other."""
    left = list(answer)
    if len(truth) != len(left):
        return False
    for wanted in truth:
        match = next((index for index, given in enumerate(left) if same(wanted, given, algebra)), None)
        if match is None:
            return False
        left.pop(match)
    return True


_SAME: dict[str, Callable[[Node, Node, Algebra], bool]] = {
    "list": _same_list,
    "set": _same_list,
    "tuple": _same_tuple,
    "union": _same_union,
    "matrix": _same_matrix,
    "relation": _same_relation,
}
