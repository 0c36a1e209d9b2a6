r"""Exact equality of mathematical expressions: math-verify's LaTeX grammar, no rounding. Runs inside the workers.

The grammar and the normalisation are those that math-verify uses (latex2sympy2_extended). What is different: decimals
become fractions, so nothing is compared as a float; a base subscript is a base; numbers side by side are a product or
an error and never a sum; and two expressions are equal when their difference is *proved* zero, not when it is small.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from sympy.polys.polyerrors import PolynomialError

from rewards.shape import Node, assignment
from rewards.text import Unreadable, numeral, same_leaf, split_unit, strip_bare_unit, strip_leading_text

MAX_DIGITS = 20_000
"""Decimal digits that a number written in an answer may have when it is worked out."""
_NORMALIZATION = NormalizationConfig(basic_latex=True, malformed_operators=True, boxed="none")
_CONVERSION = ConversionConfig(lowercase_symbols=False)
_REFUSED = re.compile(r"\\[lc]?dots(?![A-Za-z])|\.\.|'|\\text\{[^{}]{2,}\}|\\approx|\?|\\degree")
_TIDY = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"(?<![\\A-Za-z])(sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|pi)(?![A-Za-z])", r"\\\1"),
        (r"\\text\{(.?)\}", r"\1"),
        (r"\\[dt]?binom ?([0-9]) ?([0-9])", r"\\binom{\1}{\2}"),
        (r"\\[dt]binom", r"\\binom"),
    ]
]


class _Exact(_Latex2Sympy):
    """latex2sympy with exact numbers."""

    def parse_number(self, text: str) -> sympy.Rational:
        return sympy.Rational(Fraction(text.replace(",", "")))

    def convert_atom(self, atom):
        if atom.number_subexpr() and atom.number_subexpr().subexpr():
            based = numeral(atom.getText())
            if based is None:
                raise Unreadable(f"{atom.getText()} is no numeral")
            return sympy.Integer(based[0])
        return super().convert_atom(atom)

    def convert_postfix_list(self, arr, i=0):
        """Only 1\\frac{1}{2} is a mixed number; 5(3) is fifteen and `5 6` is nothing."""
        if i + 1 < len(arr):
            left, right = arr[i].getText(), arr[i + 1].getText()
            if re.fullmatch(r"[0-9.,]+", left) and re.fullmatch(r"[0-9.,].*", right):
                raise Unreadable(f"two numbers side by side: {left} {right}")
            if not (left.isdigit() and re.fullmatch(r"\\frac\{[0-9]+\}\{[0-9]+\}", right)):
                rest = self.convert_postfix_list(arr, i + 1)
                first = self.convert_postfix(arr[i])
                if isinstance(first, sympy.Rational) and isinstance(rest, sympy.Rational):
                    return first * rest
        return super().convert_postfix_list(arr, i)


@lru_cache(maxsize=4096)
def expression(text: str) -> sympy.Basic:
    """The expression a cleaned leaf stands for; Unreadable if there is none, or if it is too large to work out."""
    if _REFUSED.search(text):
        raise Unreadable(f"not a single expression: {text}")
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    complex_number = re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])", text) is not None
    try:
        parsed = _Exact(is_real=not complex_number, config=_CONVERSION).parse(normalize_latex(text, _NORMALIZATION))
    except (MemoryError, Unreadable):
        raise
    except Exception as error:  # noqa: BLE001 - the grammar raises Exception itself, and anything else on odd input
        raise Unreadable(f"{type(error).__name__} while reading {text}") from None
    if not isinstance(parsed, sympy.Expr | sympy.Set):
        raise Unreadable(f"a {type(parsed).__name__}, not an expression: {text}")
    if isinstance(parsed, sympy.Expr):
        digits(parsed)
        parsed = parsed.xreplace({s: sympy.I for s in parsed.free_symbols if s.name == "i"})
        parsed = parsed.xreplace({s: sympy.Symbol(s.name, real=True) for s in parsed.free_symbols})
        parsed = parsed.doit()
    if parsed.has(sympy.nan, sympy.zoo):
        raise Unreadable(f"not defined: {text}")
    return parsed


def digits(expr: sympy.Basic) -> float:
    """An upper bound of the decimal digits of a number (symbols count as 1); Unreadable past MAX_DIGITS."""
    if isinstance(expr, sympy.Rational):
        size = max(abs(expr.p), expr.q).bit_length() * math.log10(2)
    elif isinstance(expr, sympy.Pow):
        size = max(digits(expr.base), 1.0) * 10 ** digits(expr.exp) if expr.exp.is_number else 1.0
    elif isinstance(expr, sympy.factorial | sympy.gamma | sympy.factorial2 | sympy.binomial | sympy.exp):
        size = max(digits(arg) * 10 ** digits(arg) if arg.is_number else 1.0 for arg in expr.args)
    elif isinstance(expr, sympy.Mul):
        size = sum(digits(arg) for arg in expr.args)
    else:
        size = max((digits(arg) for arg in expr.args if isinstance(arg, sympy.Basic)), default=0.0) + 0.5
    if size > MAX_DIGITS:
        raise Unreadable(f"a number of more than {MAX_DIGITS} digits")
    return size


def equal(first: sympy.Basic, second: sympy.Basic) -> bool:
    """Whether two expressions are provably the same."""
    if first == second:
        return True
    if not (isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr)):
        return False
    difference = first - second
    return not difference.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo) and is_zero(difference)


def is_zero(difference: sympy.Expr) -> bool:
    """Refuted by numbers, or proved by algebra. What is neither counts as not zero: a reward needs a proof."""
    if difference.is_Rational:
        return difference == 0
    symbols = sorted(difference.free_symbols, key=str)
    for start in (sympy.Rational(5, 7), sympy.Rational(-19, 11)):
        point = {symbol: start * (index + 1) + index for index, symbol in enumerate(symbols)}
        if _nonzero(difference.xreplace(point)):
            return False
    return any(_vanishes(difference, method) for method in (sympy.expand, _rational, sympy.simplify, _algebraic))


def _nonzero(value: sympy.Expr) -> bool:
    """Whether interval-style evaluation shows that a constant is not zero (evalf tracks its own accuracy)."""
    if value.is_Rational:
        return value != 0
    if not value.is_number:
        return False
    try:
        parts = value.evalf(15, maxn=2000).as_real_imag()
    except (ArithmeticError, TypeError, ValueError, NotImplementedError):
        return False
    return any(part.is_Float and part._prec > 1 and part != 0 for part in parts)


def _vanishes(expr: sympy.Expr, method) -> bool:
    try:
        return method(expr) == 0
    except (ArithmeticError, TypeError, ValueError, AttributeError, NotImplementedError, PolynomialError):
        return False


def _rational(expr: sympy.Expr) -> sympy.Expr:
    return sympy.cancel(sympy.together(sympy.radsimp(expr)))


def _algebraic(expr: sympy.Expr) -> sympy.Expr:
    """0 for an algebraic number whose minimal polynomial is x; decides all roots and cosines of fractions of pi."""
    if expr.free_symbols:
        return expr
    x = sympy.Dummy("x")
    return sympy.S.Zero if sympy.minimal_polynomial(expr, x) == x else sympy.S.One


class Exact:
    """Algebra for `shape.same`. `unreadable` tells afterwards why the answer could not be read, if so."""

    def __init__(self) -> None:
        self.unreadable: str | None = None

    def _answer(self, text: str) -> sympy.Basic | None:
        try:
            return expression(text)
        except Unreadable as error:
            self.unreadable = str(error)
            return None

    def leaf(self, truth: str, answer: str) -> bool:
        decided = same_leaf(truth, answer)
        if decided is not None:
            return decided
        (truth, truth_unit), (answer, unit) = split_unit(truth), split_unit(answer)
        answer = strip_leading_text(answer)
        given = self._answer(answer)
        try:
            expected = expression(truth)
        except Unreadable:
            return False
        if given is not None and equal(expected, given):
            return True
        if given is not None and (truth_unit == "%") != (unit == "%"):
            scaled = expected / 100 if truth_unit == "%" else expected * 100
            if equal(scaled, given):
                return True
        bare = strip_bare_unit(answer)
        if bare == answer or re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", truth)):
            return False
        self.unreadable = None
        given = self._answer(bare)
        return given is not None and equal(expected, given)

    def between(self, lower: Fraction, text: str, upper: Fraction) -> bool:
        value = self._answer(text)
        if value is None or not value.is_number or not value.is_real:
            return False
        return bool(sympy.Rational(lower) <= value) and bool(value <= sympy.Rational(upper))

    def relation(self, truth: Node, answer: Node) -> bool:
        if truth.text == answer.text:
            return True
        if "\\in" in truth.marks + answer.marks:
            return self.point_set(truth, answer)
        expected, given = _sides(truth), self._sides(answer)
        if expected is None or given is None:
            return False
        if len(expected) == len(given) == 1 and _same_relation(expected[0], given[0]):
            return True
        if len(expected) == len(given) and all(map(_same_relation, expected, given)):
            return True
        return not {"=", "\\ne"} & set(truth.marks + answer.marks) and self.point_set(truth, answer)

    def _sides(self, node: Node) -> list[tuple[sympy.Expr, str]] | None:
        try:
            return _sides(node)
        except Unreadable as error:
            self.unreadable = str(error)
            return None

    def point_set(self, truth: Node, answer: Node) -> bool:
        try:
            given = point_set(answer)
        except Unreadable as error:
            self.unreadable = str(error)
            return False
        try:
            expected = point_set(truth)
        except Unreadable:
            return False
        return expected == given or expected.symmetric_difference(given) == sympy.S.EmptySet


_TURNED = {">": "<", "\\gt": "<", "\\ge": "\\le", "<": "<", "\\lt": "<", "\\le": "\\le", "=": "=", "\\ne": "\\ne"}


def _sides(node: Node) -> list[tuple[sympy.Expr, str]]:
    """Each pair of neighbours of a chain as (difference, operator), turned so that only = ne < le remain."""
    values = [expression(part.text) for part in node.parts]
    sides = []
    for mark, left, right in zip(node.marks, values, values[1:], strict=False):
        if mark not in _TURNED or not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
            raise Unreadable(f"not an equation or inequality: {node.text}")
        turn = mark in (">", "\\gt", "\\ge")
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
    if node.kind == "union" or (node.kind == "list" and "or" in " ".join(node.marks)):
        return sympy.Union(*map(point_set, node.parts))
    if node.kind == "set":
        return sympy.FiniteSet(*(expression(part.text) for part in node.parts))
    if node.kind == "relation":
        if named := assignment(node):
            value = named[1]
            return point_set(value) if value.kind != "leaf" or "\\in" in node.marks else _equation_set(value)
        return _inequality_set(node)
    if node.kind == "leaf" and isinstance(parsed := expression(node.text), sympy.Set):
        return parsed
    raise Unreadable(f"not a set of reals: {node.text}")


def _equation_set(value: Node) -> sympy.Set:
    return sympy.FiniteSet(expression(value.text))


_OPERATORS = {"<": sympy.Lt, "\\le": sympy.Le, "\\ne": sympy.Ne, "=": sympy.Eq}


def _inequality_set(node: Node) -> sympy.Set:
    sets = []
    for difference, mark in _sides(node):
        if len(difference.free_symbols) != 1:
            raise Unreadable(f"not an inequality in one unknown: {node.text}")
        try:
            sets.append(_OPERATORS[mark](difference, 0).as_set())
        except (NotImplementedError, TypeError, ValueError) as error:
            raise Unreadable(f"{type(error).__name__} while solving {node.text}") from None
    return sympy.Intersection(*sets)
