r"""LaTeX to sympy, exactly: math-verify's grammar and normalisation, with three of its habits taken away.

Decimals become fractions, so nothing is ever a float; a number with a subscript is a numeral or an error; and numbers
side by side are a mixed number, a product in brackets or an error, never a sum. Model text goes to the ANTLR grammar
and nowhere else.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from sympy.core.function import AppliedUndef

from rewards.equivalence.plain import Unreadable, number
from rewards.equivalence.tables import FUNCTIONS, TABLES, rewrite, rules

MAX_DIGITS = 20_000
"""A number with more is refused before it is computed: 9^{9^9} would cost the whole time limit."""
_NORMALIZATION = NormalizationConfig(basic_latex=True, malformed_operators=True, boxed="none")
_CONVERSION = ConversionConfig(lowercase_symbols=False)
_REFUSED = re.compile(
    r"\.\.|'|\\text\{[^{}]{2,}\}|\?|[0-9]\}?\)?_"
    r"|(?<![\\A-Za-z])(?:[A-Za-z]{4,}|[A-Za-z]{2,} [A-Za-z]{2,})|[^\W\d_a-zA-Z]"
)
"""Also words, which the grammar would read as products and sometimes never finish"""
_LETTERS = (
    "alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon|phi|varphi|"
    "chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Sigma|Phi|Psi|Omega|ell|hbar"
)
_UNMODELLED = re.compile(
    rf"\\(?!(?:{_LETTERS}|{FUNCTIONS}|frac|cdot|times|div|infty|binom|[lr]floor|[lr]ceil|[lr]?vert|max|min|gcd|mathbb|"
    r"emptyset|cup|cap|setminus|text)(?![A-Za-z]))[A-Za-z]+"
    r"|\\frac\{d[^{}]*\}\{d ?[A-Za-z\\]|d\[?[A-Za-z]+\]?/d[a-z]"  # a derivative
    r"|!!|^(?![+-]*\\infty$).*\\infty"  # arithmetic with infinity
)
_SCRIPT = r"_(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[A-Za-z]+|\w)"
_NAME = re.compile(
    rf"\\(?:bar|overline|hat|vec|tilde|dot|ddot)(?:\{{[^{{}}]*\}}| ?\w)(?:{_SCRIPT})?'*"
    rf"|\\(?:{_LETTERS})(?:{_SCRIPT}'*|'+)|\\gamma(?![A-Za-z])"
    rf"|(?P<command>\\[A-Za-z]+)|[A-Za-z](?:{_SCRIPT}'*|'+)|[IE]"
)
_TIDY = rules(TABLES["grammar"])


class NotModelled(Unreadable):
    """Readable, but the algebra has no model of it and would drop a part. Such leaves are compared as text."""


class _Exact(_Latex2Sympy):
    """latex2sympy with exact numbers."""

    def parse_number(self, text: str) -> sympy.Rational:
        return sympy.Rational(Fraction(text.replace(",", "")))

    def convert_postfix_list(self, arr, i=0):
        r"""Only 1\frac{1}{2} is a mixed number; 5(3) is fifteen and `5 6` is nothing."""
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


_BASE = re.compile(r"(?:\\text\{)?\(?(?![A-Z]\W*_)([0-9A-Z]+)\)?\}?_(?:\{(?:\\text\{)?)?([2-9]|[12][0-9]|3[0-6])\}*")


def numeral(text: str) -> tuple[int, int] | None:
    """Value and base of a numeral with its base as subscript (52_8, FF_{16}); None for a symbol with an index (a_1)."""
    if match := _BASE.fullmatch(text):
        with suppress(ValueError):  # a digit that the base does not have
            return int(match[1], int(match[2])), int(match[2])
    return None


@lru_cache(maxsize=4096)
def expression(text: str) -> sympy.Basic:
    """The expression a cleaned leaf stands for; Unreadable if there is none.

    NotModelled where sympy would drop a part of the text: such leaves are equal only as texts.
    """
    if (value := number(text)) is not None:
        return sympy.Rational(value)
    if based := numeral(text):
        return sympy.Integer(based[0])
    text = rewrite(text, _TIDY)
    named = _NAME.sub(_symbol, text)
    if _REFUSED.search(named):
        raise Unreadable(f"not a single expression: {text}")
    if unmodelled := _UNMODELLED.search(named):
        raise NotModelled(f"{unmodelled[0]} in {text}")
    try:
        parsed = _Exact(is_real=True, config=_CONVERSION).parse(normalize_latex(named, _NORMALIZATION))
        if isinstance(parsed, sympy.Expr):
            digits(parsed)
            parsed = parsed.xreplace({s: sympy.I for s in parsed.free_symbols if s.name == "i"}).doit()
    except (MemoryError, Unreadable):
        raise
    except Exception as error:  # noqa: BLE001 - the grammar raises Exception itself, and sympy anything on odd input
        raise Unreadable(f"{type(error).__name__} while reading {text}") from None
    if not isinstance(parsed, sympy.Expr | sympy.Set):
        raise Unreadable(f"a {type(parsed).__name__}, not an expression: {text}")
    if parsed.has(sympy.nan, sympy.zoo):
        raise Unreadable(f"not defined: {text}")
    if isinstance(parsed, sympy.Expr) and (lost := _lost(named, parsed)):
        raise NotModelled(f"{lost} is lost in {text}")
    return parsed


def _symbol(match: re.Match) -> str:
    r"""A name with an index, a prime or a bar is one symbol: E_0, x', \bar{x}. So are I and E, no constants here."""
    if match["command"]:
        return match["command"]
    name = re.sub(r"[\s{}]|\\text", "", match.group())
    return f" z_{{{int.from_bytes(name.encode())}}}"


def _lost(text: str, parsed: sympy.Basic) -> str:
    """Letters of the text that no name in the parsed expression has: 0 times x, x - x."""
    kept = {symbol.name for symbol in parsed.free_symbols} | {str(f.func) for f in parsed.atoms(AppliedUndef)}
    letters = set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text))) - set("ie")
    return "".join(sorted(letters - set("".join(kept))))


def digits(expr: sympy.Basic) -> float:
    """About how many decimal digits a number has (symbols count as 1); Unreadable past MAX_DIGITS."""
    inner = [digits(arg) for arg in expr.args if isinstance(arg, sympy.Basic)]
    if isinstance(expr, sympy.Rational):
        size = max(abs(expr.p), expr.q).bit_length() * math.log10(2)
    elif isinstance(expr, sympy.Pow | sympy.factorial | sympy.gamma | sympy.factorial2 | sympy.binomial | sympy.exp):
        largest = expr.exp if isinstance(expr, sympy.Pow) else expr.args[0]
        size = max(inner[0], 1.0) * 10 ** inner[-1] if largest.is_number else 1.0
    else:
        size = sum(inner) if isinstance(expr, sympy.Mul) else max(inner, default=0.0) + 0.5
    if size > MAX_DIGITS:
        raise Unreadable(f"a number of more than {MAX_DIGITS} digits")
    return size
