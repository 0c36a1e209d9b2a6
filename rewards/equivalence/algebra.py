"""Exact equality of expressions, equations and sets of points. Runs inside the workers.

Two expressions are equal if their difference is *proved* zero, not if it is small. sympy may raise any exception on
what it cannot compute; `compare.judge` then counts the answer as unparsed.
"""

from __future__ import annotations

import random
from contextlib import suppress

import sympy
from sympy.core.function import AppliedUndef

from rewards.equivalence.grammar import expression
from rewards.equivalence.plain import Unreadable
from rewards.equivalence.shape import Node, by_name


def equal(first: sympy.Basic, second: sympy.Basic) -> bool:
    """Returns whether two expressions are provably the same."""
    if first == second:
        return True
    if not (isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr)):
        return False
    difference = first - second
    return not difference.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo) and is_zero(difference)


def is_zero(difference: sympy.Expr) -> bool:
    """Returns whether a difference is zero: refuted by numbers, proved by algebra or at random points, else not."""
    if difference.has(sympy.factorial, sympy.binomial, sympy.gamma):
        difference = sympy.gammasimp(difference)
    if difference.is_Rational:
        return difference == 0
    symbols = sorted(difference.free_symbols, key=str)
    for start in (sympy.Rational(5, 7), sympy.Rational(-19, 11)):
        point = {symbol: start * (index + 1) + index for index, symbol in enumerate(symbols)}
        if _nonzero(difference.xreplace(point)):
            return False
    if sympy.expand(difference) == 0 or (symbols and _vanishes(difference, symbols)):
        return True
    return sympy.simplify(difference) == 0 or _is_algebraic_zero(difference)


_PIECEWISE = (
    *(sympy.floor, sympy.ceiling, sympy.Abs, sympy.sign, sympy.Max, sympy.Min, sympy.Piecewise, sympy.Mod),
    *(sympy.re, sympy.im, sympy.arg, sympy.conjugate, AppliedUndef),
)
POINTS = 8
"""Random points at which a difference has to vanish to be zero everywhere (Schwartz-Zippel, for analytic functions)"""


def _vanishes(difference: sympy.Expr, symbols: list[sympy.Symbol]) -> bool:
    """Returns whether an analytic expression is zero at random points of either sign and of many sizes."""
    if difference.has(*_PIECEWISE):
        return False
    rng = random.Random(str(difference))
    for _ in range(POINTS):
        sizes = [rng.choice((1, 10, 1000)) for _ in symbols]
        point = {
            symbol: sympy.Rational(rng.randint(-(10**6), 10**6) * size, 10**6 + 3)
            for symbol, size in zip(symbols, sizes, strict=True)
        }
        value = difference.xreplace(point)
        if not value.is_number or value.has(sympy.nan, sympy.zoo) or _nonzero(value):
            return False
    return True


def _nonzero(value: sympy.Expr) -> bool:
    """Returns whether evaluation shows that a constant is not zero (evalf tracks its own accuracy)."""
    if not value.is_number:
        return False
    parts = value.evalf(15, maxn=2000).as_real_imag()
    return any(part.is_Float and part._prec > 1 and part != 0 for part in parts)


def _is_algebraic_zero(value: sympy.Expr) -> bool:
    """Returns whether the minimal polynomial of a constant is x; decides all roots, and cosines of fractions of pi."""
    x = sympy.Dummy("x")
    return bool(value.is_number and value.is_algebraic) and sympy.minimal_polynomial(value, x) == x


def same_equations(truth: Node, answer: Node) -> bool:
    """Returns whether two equations, inequalities or chains of them are equivalent, read from either end."""
    with suppress(Unreadable):
        truth_sides, answer_sides = _sides(truth), _sides(answer)
        if len(truth_sides) == len(answer_sides):
            return any(all(map(_same_relation, truth_sides, order)) for order in (answer_sides, answer_sides[::-1]))
    return False


def same_points(truth: Node, answer: Node) -> bool:
    """Returns whether two intervals, unions or inequalities in one unknown describe the same set of real numbers."""
    with suppress(Unreadable):
        of_truth, of_answer = _unknowns(truth), _unknowns(answer)
        if len(of_answer) <= 1 and (of_answer == of_truth or not (of_answer and of_truth)):
            return point_set(truth).symmetric_difference(point_set(answer)) == sympy.S.EmptySet
    return False


_RELATIONS = {
    "=": (sympy.Eq, 1),
    "\\ne": (sympy.Ne, 1),
    "<": (sympy.Lt, 1),
    "\\le": (sympy.Le, 1),
    ">": (sympy.Lt, -1),
    "\\ge": (sympy.Le, -1),
}
"""The relation to 0 that a sign between two sides gives their difference, and the sign of that difference"""


def _sides(node: Node) -> list[tuple[sympy.Expr, type[sympy.Rel]]]:
    """Each pair of neighbours of a chain as (difference, relation to 0)."""
    values = [expression(part.text) for part in node.parts]
    if not (_RELATIONS.keys() >= set(node.marks) and all(isinstance(value, sympy.Expr) for value in values)):
        raise Unreadable(f"not an equation or inequality: {node.text}")
    relations = [_RELATIONS[mark] for mark in node.marks]
    return [
        (sign * (left - right), relation)
        for (relation, sign), left, right in zip(relations, values, values[1:], strict=False)
    ]


def _same_relation(first: tuple[sympy.Expr, type[sympy.Rel]], second: tuple[sympy.Expr, type[sympy.Rel]]) -> bool:
    """p = 0 and q = 0 are equivalent if p / q is a constant, p < 0 and q < 0 if that constant is positive."""
    (p, relation), (q, other) = first, second
    if relation != other:
        return False
    if p == 0 or q == 0 or not (p.free_symbols and p.free_symbols == q.free_symbols):
        return p == q
    ratio = sympy.simplify(p / q)
    turns = relation in (sympy.Eq, sympy.Ne) or ratio.is_positive
    return bool(ratio.is_number and ratio.is_finite and ratio != 0 and turns)


def point_set(node: Node) -> sympy.Set:
    """The set of reals that an interval, a union, a finite set or an inequality in one unknown describes."""
    if node.kind == "tuple" and len(node.parts) == 2:
        start, end = (expression(part.text) for part in node.parts)
        if not (start.is_extended_real and end.is_extended_real) or (start < end) != sympy.true:
            raise Unreadable(f"not an interval: {node.text}")
        return sympy.Interval(start, end, node.marks[0] == "(", node.marks[1] == ")")
    if node.kind == "union" or node.says("or"):
        return sympy.Union(*map(point_set, node.parts))
    if node.kind == "intersection" or node.says("and"):
        return sympy.Intersection(*map(point_set, node.parts))
    if node.kind == "set":
        return sympy.FiniteSet(*(expression(part.text) for part in node.parts))
    if node.kind == "relation" and len(named := by_name(node)) == 1:
        (value,) = named.values()
        is_value = value.kind == "leaf" and "\\in" not in node.marks
        return sympy.FiniteSet(expression(value.text)) if is_value else point_set(value)
    if node.kind == "relation":
        sides = _sides(node)
        if any(len(difference.free_symbols) != 1 for difference, _ in sides):
            raise Unreadable(f"not an inequality in one unknown: {node.text}")
        return sympy.Intersection(*(relation(difference, 0).as_set() for difference, relation in sides))
    if node.kind == "leaf" and isinstance(parsed := expression(node.text), sympy.Set):
        return parsed
    raise Unreadable(f"not a set of reals: {node.text}")


def _unknowns(node: Node) -> set[sympy.Symbol]:
    """The unknowns of equations and inequalities in a description of a set; none for intervals."""
    if node.kind == "relation":
        leaves = [part for part in node.parts if part.kind == "leaf"]
        return set().union(*(expression(part.text).free_symbols for part in leaves))
    return set().union(*map(_unknowns, node.parts))
