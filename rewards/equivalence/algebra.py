"""Exact equality of expressions, equations and sets of points. Runs inside the workers.

Two expressions are equal when their difference is *proved* zero, not when it is small. Where sympy cannot compute
something it raises what it likes, and `compare.judge` counts the answer as unparsed.
"""

from __future__ import annotations

import random
from contextlib import suppress

import sympy
from sympy.core.function import AppliedUndef

from rewards.equivalence.grammar import expression
from rewards.equivalence.plain import Unreadable
from rewards.equivalence.shape import Node, assignment


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
    """Returns whether two equations, inequalities or chains of them mean the same, side by side, from either end."""
    with suppress(Unreadable):
        expected, given = _sides(truth), _sides(answer)
        if len(expected) == len(given):
            return any(all(map(_same_relation, expected, order)) for order in (given, given[::-1]))
    return False


def same_points(truth: Node, answer: Node) -> bool:
    """Returns whether two intervals, unions or inequalities in one unknown describe the same set of real numbers."""
    with suppress(Unreadable):
        expected, given = point_set(truth), point_set(answer)
        asked, unknown = _unknowns(truth), _unknowns(answer)
        same_unknown = len(unknown) <= 1 and (unknown == asked or not (unknown and asked))
        return same_unknown and expected.symmetric_difference(given) == sympy.S.EmptySet
    return False


_TURNED = {">": "<", "\\ge": "\\le", "<": "<", "\\le": "\\le", "=": "=", "\\ne": "\\ne"}


def _sides(node: Node) -> list[tuple[sympy.Expr, str]]:
    """Each pair of neighbours of a chain as (difference, operator), turned so that only = ne < le remain."""
    values = [expression(part.text) for part in node.parts]
    sides = []
    for mark, left, right in zip(node.marks, values, values[1:], strict=False):
        if mark not in _TURNED or not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
            raise Unreadable(f"not an equation or inequality: {node.text}")
        turn = mark in (">", "\\ge")
        sides.append((right - left if turn else left - right, _TURNED[mark]))
    return sides


def _same_relation(first: tuple[sympy.Expr, str], second: tuple[sympy.Expr, str]) -> bool:
    """p = 0 and q = 0 say the same if p / q is a constant; p < 0 and q < 0 if that constant is positive."""
    (p, p_mark), (q, q_mark) = first, second
    if p_mark != q_mark:
        return False
    if p == 0 or q == 0 or not (p.free_symbols and p.free_symbols == q.free_symbols):
        return p == q
    ratio = sympy.simplify(p / q)
    return bool(ratio.is_number and ratio.is_finite and ratio != 0 and (p_mark in ("=", "\\ne") or ratio.is_positive))


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
    if node.kind == "relation":
        if named := assignment(node):
            value = named[1]
            if value.kind == "leaf" and "\\in" not in node.marks:
                return sympy.FiniteSet(expression(value.text))
            return point_set(value)
        return _inequality_set(node)
    if node.kind == "leaf" and isinstance(parsed := expression(node.text), sympy.Set):
        return parsed
    raise Unreadable(f"not a set of reals: {node.text}")


def _unknowns(node: Node) -> set[sympy.Symbol]:
    """The unknowns of equations and inequalities in a description of a set; none for intervals."""
    if node.kind == "relation":
        leaves = [part for part in node.parts if part.kind == "leaf"]
        return set().union(*(expression(part.text).free_symbols for part in leaves))
    return set().union(*map(_unknowns, node.parts))


_OPERATORS = {"<": sympy.Lt, "\\le": sympy.Le, "\\ne": sympy.Ne, "=": sympy.Eq}


def _inequality_set(node: Node) -> sympy.Set:
    sets = []
    for difference, mark in _sides(node):
        if len(difference.free_symbols) != 1:
            raise Unreadable(f"not an inequality in one unknown: {node.text}")
        sets.append(_OPERATORS[mark](difference, 0).as_set())
    return sympy.Intersection(*sets)
