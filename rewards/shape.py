r"""The shape of an answer: lists, tuples, intervals, sets, unions, matrices, equations; mathematics stays in the leaves.

Splitting at brackets and commas is done here and not by the LaTeX grammar, because there `(5,2)` is an empty interval,
`52_8` is 52 and the order of a list is lost. Comparison goes leaf by leaf, so the leaves decide alone what is equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

from rewards.text import Unreadable, closing, number, unwrap, word

Kind = Literal["leaf", "list", "set", "tuple", "union", "matrix", "relation"]
MAX_PARTS = 64


@dataclass(frozen=True, slots=True)
class Node:
    kind: Kind
    text: str
    parts: tuple[Node, ...] = ()
    marks: tuple[str, ...] = ()
    """The two brackets of a tuple; the operators of a relation; the separator words of a list"""


class Algebra(Protocol):
    """What comparing shapes needs to know about leaves. The fast path has one that gives up instead of calling sympy."""

    def leaf(self, truth: str, answer: str) -> bool: ...

    def relation(self, truth: Node, answer: Node) -> bool:
        """Equations and inequalities."""
        ...

    def point_set(self, truth: Node, answer: Node) -> bool:
        """Intervals, unions and inequalities in one unknown, as sets of real numbers."""
        ...

    def between(self, lower: Fraction, text: str, upper: Fraction) -> bool: ...


_LIST = re.compile(r",? ?\\text\{,?(?:or|and)\} ?|,? (?:or|and) |[,;]")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|lt|gt|ne|in|approx|equiv|sim)(?![A-Za-z])")
_NESTING = re.compile(r"\\begin\{|\\end\{|[{(\[]|[})\]]")
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_ROW, _CELL = re.compile(r"\\\\(?:\[[^\]]*\])?"), re.compile(r"&")
_DEPTH = {"\\begin{": 2, "\\end{": 0} | dict.fromkeys("{([", 1) | dict.fromkeys("})]", -1)
"""What a token adds to the depth; the brace of \\begin{ and \\end{ closes with a token of its own"""


def split(text: str, separator: re.Pattern) -> tuple[list[str], list[str]]:
    """Pieces of the text between separators outside all brackets, and the separators."""
    found = {match.start(): match for match in separator.finditer(text)}
    if not found:
        return [text.strip()], []
    nesting = {match.start(): match.group() for match in _NESTING.finditer(text)}
    pieces, marks, depth, start = [], [], 0, 0
    for position in sorted(found.keys() | nesting.keys()):
        if position in nesting:
            depth += _DEPTH[nesting[position]]
        elif depth == 0 and position >= start:
            pieces.append(text[start:position].strip())
            marks.append(found[position].group().strip())
            start = found[position].end()
    if len(pieces) >= MAX_PARTS:
        raise Unreadable(f"more than {MAX_PARTS} parts")
    return [*pieces, text[start:].strip()], marks


def parse(text: str, as_list: bool = False) -> Node:
    """The shape of a cleaned answer. `as_list` reads 100,200 as two numbers where it could be one."""
    text = unwrap(text)
    if not as_list and (number(text) is not None or word(text) is not None):
        return Node("leaf", text)
    pieces, marks = _split_list(text, as_list)
    if marks:
        return _list(text, pieces, marks)
    pieces, marks = split(text, _RELATION)
    if marks:
        return Node("relation", text, tuple(parse(piece) for piece in pieces), tuple(marks))
    pieces, marks = split(text, _UNION)
    if marks:
        return Node("union", text, tuple(parse(piece) for piece in pieces))
    return _enclosed(text) or _signs(text)


def _split_list(text: str, as_list: bool) -> tuple[list[str], list[str]]:
    """List items; 1,000, 2,000 has two, because a comma with a space says which commas separate."""
    if not as_list and ", " in text and _THOUSANDS.search(text):
        text = _THOUSANDS.sub("", text)
    pieces, marks = split(text, _LIST)
    while len(pieces) > 1 and not pieces[-1]:  # a trailing comma
        pieces.pop()
        marks.pop()
    return pieces, marks


def _list(text: str, pieces: list[str], marks: list[str]) -> Node:
    """x=1,2 and x=1 or 2 mean two values of x: the name before the first is taken off."""
    parts = [parse(piece) for piece in pieces]
    named = [part.kind == "relation" for part in parts]
    if named[0] and not any(named[1:]) and (name_and_value := assignment(parts[0])):
        parts[0] = name_and_value[1]
    flat = [inner for part in parts for inner in (part.parts if part.kind == "list" else (part,))]
    return Node("list", text, tuple(flat), tuple(marks))


def _enclosed(text: str) -> Node | None:
    r"""Matrices, and what stands in (), [], (], [) or \{\} from end to end."""
    if match := _MATRIX.fullmatch(text):
        rows = [Node("list", row, tuple(parse(cell) for cell in split(row, _CELL)[0])) for row in _rows(match[2])]
        return Node("matrix", text, tuple(rows))
    start = 1 if text.startswith("\\{") else 0
    if not text or text[start : start + 1] not in ("{", "(", "[") or closing(text, start) != len(text) - 1:
        return None
    inside = text[start + 1 : -1]
    if start:
        inside = inside.removesuffix("\\")
    if not inside.strip():
        return None
    pieces, marks = _split_list(inside, as_list=", " not in inside)
    if not marks:
        inner = parse(inside)
        if start or inner.kind == "list":
            return Node("set" if start else "list", text, inner.parts if inner.kind == "list" else (inner,))
        return inner if inner.kind == "leaf" and text[0] + text[-1] in ("()", "[]") else None
    parts = [parse(piece) for piece in pieces]
    if start:
        flat = [inner for part in parts for inner in (part.parts if part.kind == "list" else (part,))]
        return Node("set", text, tuple(flat))
    return Node("tuple", text, tuple(parts), (text[0], text[-1]))


def _rows(body: str) -> list[str]:
    rows, _ = split(body, _ROW)
    return [row for row in rows if row]


def _signs(text: str) -> Node:
    r"""a \pm b is the two answers a + b and a - b."""
    if "\\pm" not in text and "\\mp" not in text:
        return Node("leaf", text)
    upper, lower = (
        re.sub(r"^\+|(?<=[({\[])\+", "", text.replace("\\pm", plus).replace("\\mp", minus))
        for plus, minus in (("+", "-"), ("-", "+"))
    )
    return Node("list", text, (Node("leaf", upper), Node("leaf", lower)))


_NAME = re.compile(
    r"(?:[A-Za-z]|\\[A-Za-z]+|\\text\{[^{}]*\})(?:_(?:\{[^{}]*\}|\w))?'*(?:\([A-Za-z](?:,[A-Za-z])*\))?"
    r"|\((?:[A-Za-z],? ?)+\)|[A-Z]{2,4}|\\(?:angle|overline|triangle)\{?[A-Z]+\}?"
)


def assignment(node: Node) -> tuple[str, Node] | None:
    r"""(name, value) of x=5, f(x)=x^2, (x,y)=(1,2), x=2+3=5 and x\in[0,1]; None for any other relation."""
    if node.kind != "relation" or not _NAME.fullmatch(node.parts[0].text):
        return None
    if all(mark == "=" for mark in node.marks) or node.marks == ("\\in",):
        return node.parts[0].text, (node.parts[-1] if len(node.parts) == 2 else _chain(node.parts[1:]))
    if node.marks[0] == "=" and all(mark in ("=", "\\approx") for mark in node.marks):
        return node.parts[0].text, Node("relation", node.text, node.parts[1:], node.marks[1:])
    return None


def _chain(parts: Sequence[Node]) -> Node:
    return Node("relation", "=".join(part.text for part in parts), tuple(parts), ("=",) * (len(parts) - 1))


def same(truth: Node, answer: Node, algebra: Algebra) -> bool:
    """Whether the answer is the ground truth. Not symmetric: the ground truth says how the answer is to be read."""
    truth_named, answer_named = assignment(truth), assignment(answer)
    if truth_named and answer_named:
        if truth_named[0] != answer_named[0]:
            return algebra.relation(truth, answer)
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
    return answer.kind == "leaf" and algebra.leaf(truth.text, answer.text)


def _same_list(truth: Node, answer: Node, algebra: Algebra) -> bool:
    """Order does not matter, except where the answer wrote a tuple."""
    if answer.kind == "leaf" and "," in answer.text:
        answer = parse(answer.text, as_list=True)
    if answer.kind == "tuple":
        return answer.marks == ("(", ")") and _in_order(truth.parts, answer.parts, algebra)
    if answer.kind in ("list", "set"):
        return _any_order(truth.parts, answer.parts, algebra)
    if "or" in " ".join(truth.marks) and answer.kind in ("union", "tuple"):
        return algebra.point_set(truth, answer)
    return len(truth.parts) == 1 and same(truth.parts[0], answer, algebra)


def _same_tuple(truth: Node, answer: Node, algebra: Algebra) -> bool:
    """Order matters; for two entries so do the brackets, which may make it an interval."""
    if answer.kind == "list":
        return truth.marks == ("(", ")") and _in_order(truth.parts, answer.parts, algebra)
    if answer.kind == "tuple":
        same_brackets = truth.marks == answer.marks or len(truth.parts) > 2
        return same_brackets and _in_order(truth.parts, answer.parts, algebra)
    return answer.kind in ("relation", "union") and algebra.point_set(truth, answer)


def _same_union(truth: Node, answer: Node, algebra: Algebra) -> bool:
    return algebra.point_set(truth, answer)


def _same_matrix(truth: Node, answer: Node, algebra: Algebra) -> bool:
    return (
        answer.kind == "matrix"
        and len(truth.parts) == len(answer.parts)
        and all(_in_order(a.parts, b.parts, algebra) for a, b in zip(truth.parts, answer.parts, strict=True))
    )


def _same_relation(truth: Node, answer: Node, algebra: Algebra) -> bool:
    if answer.kind == "relation":
        return algebra.relation(truth, answer)
    return answer.kind in ("tuple", "union", "list") and algebra.point_set(truth, answer)


def _in_order(truth: Sequence[Node], answer: Sequence[Node], algebra: Algebra) -> bool:
    return len(truth) == len(answer) and all(same(a, b, algebra) for a, b in zip(truth, answer, strict=True))


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
