r"""The shape of an answer: lists, tuples, intervals, sets, unions, matrices, equations; mathematics stays in leaves.

Splitting at brackets and commas is done here and not by the LaTeX grammar, because there `(5,2)` is an empty interval
and the order of a list is lost. compare.py then goes leaf by leaf.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rewards.equivalence.kinds import textual
from rewards.equivalence.plain import depths, enclosed, number
from rewards.equivalence.text import unwrap

Kind = Literal["leaf", "list", "set", "tuple", "union", "intersection", "matrix", "relation"]


@dataclass(frozen=True, slots=True)
class Node:
    kind: Kind
    text: str
    parts: tuple[Node, ...] = ()
    marks: tuple[str, ...] = ()
    """The two brackets of a tuple; the operators of a relation; the separator words of a list"""

    def says(self, word: str) -> bool:
        """Returns whether it is a list with this word between its parts."""
        return self.kind == "list" and word in " ".join(self.marks).lower()


_LIST = re.compile(r",? ?\\text\{,?(?:or|and)\} ?|,?(?: |(?<=[)\]}]))(?:or|and)(?: |(?=[-(\[{\\]))|[,;]", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<![\w,.^])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_OPERATORS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("relation", re.compile(r"[=<>]|\\(?:le|ge|ne|in|approx|equiv|sim)(?![A-Za-z])")),
    ("union", re.compile(r"\\cup(?![A-Za-z])")),
    ("intersection", re.compile(r"\\cap(?![A-Za-z])")),
)
_SUCH_THAT = re.compile(r"[A-Za-z](?:\\in\\mathbb\{R\})? ?(?:\\mid(?![A-Za-z])|[|:])(.*)")
_MATRIX = re.compile(r"([-+\w\\{}./]*?)\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\2\}", re.DOTALL)
_ROW, _CELL = re.compile(r"\\\\(?:\[[^\]]*\])?"), re.compile(r"&")


def split(text: str, separator: re.Pattern) -> tuple[list[str], list[str]]:
    """Pieces of the text between separators outside all brackets, and the separators."""
    depth = depths(text)
    marks = [match for match in separator.finditer(text) if depth[match.start()] == 0]
    edges = [0, *(edge for match in marks for edge in match.span()), len(text)]
    pieces = [text[start:end].strip() for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return pieces, [match.group().strip() for match in marks]


def parse(text: str, as_list: bool = False) -> Node:
    """The shape of a cleaned answer. `as_list` reads 100,200 as two numbers, not one."""
    text = unwrap(text)
    if not as_list and (number(text) is not None or textual(text) is not None):
        return Node("leaf", text)
    pieces, marks = _split_list(text, as_list)
    if marks:
        return _list(text, pieces, marks)
    for kind, separator in _OPERATORS:
        pieces, marks = split(text, separator)
        if marks:
            return Node(kind, text, tuple(map(parse, pieces)), tuple(marks))
    return _matrix(text) or _enclosed(text) or _signs(Node("leaf", text))


def _split_list(text: str, as_list: bool) -> tuple[list[str], list[str]]:
    """List items; 1,000, 2,000 has two, because a comma with a space shows which commas separate."""
    if ", " not in text or as_list:
        return split(text, _LIST)
    depth = depths(text)
    joined = _THOUSANDS.sub(lambda m: m[0] if depth[m.start()] else m[0].replace(",", ""), text)
    return split(joined, _LIST)


def _list(text: str, pieces: list[str], marks: list[str]) -> Node:
    """A list. x=1,2 and x=1 or 2 mean two values of x."""
    parts = _flat(map(parse, pieces))
    first, *others = parts
    if by_name(first) and first.marks[0] == "=" and all(part.kind != "relation" for part in others):
        name = first.parts[0]
        named = (Node("relation", f"{name.text}={part.text}", (name, part), ("=",)) for part in others)
        parts = (first, *named)
    return Node("list", text, parts, tuple(marks))


def _flat(parts: Iterable[Node]) -> tuple[Node, ...]:
    return tuple(inner for part in parts for inner in (part.parts if part.kind == "list" else (part,)))


def _matrix(text: str) -> Node | None:
    """A matrix as its rows, a column as a tuple; a factor before it multiplies each cell."""
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    factor = match[1] if match[1] in ("", "-") else f"({match[1]})"
    rows = [[parse(f"{factor}{{{cell}}}") for cell in split(row, _CELL)[0]] for row in split(match[3], _ROW)[0] if row]
    if all(len(row) == 1 for row in rows):
        return Node("tuple", text, tuple(row[0] for row in rows), ("(", ")"))
    return Node("matrix", text, tuple(Node("tuple", text, tuple(row), ("(", ")")) for row in rows))


def _enclosed(text: str) -> Node | None:
    r"""A text that one pair of (), [], (], [) or \{\} encloses, as a node; None for any other."""
    printed = text.startswith("\\{")
    if not enclosed(text[printed:]):
        return None
    inside = text[printed + 1 : -1].removesuffix("\\" if printed else "")
    pieces, marks = _split_list(inside, as_list=", " not in inside)
    if printed:
        return _condition(inside) or Node("set", text, _flat(map(parse, pieces)))
    if marks:
        return _signs(Node("tuple", text, tuple(map(parse, pieces)), (text[0], text[-1])))
    whole = parse(inside)  # brackets that only hold together: (30^\circ), [5\text{ cm}]
    return whole if whole.kind in ("leaf", "union", "intersection") and text[0] + text[-1] in ("()", "[]") else None


def _condition(inside: str) -> Node | None:
    r"""The condition of x \mid x>3 or x\in\mathbb{R}:x>3 between set braces; None for any other set."""
    match = _SUCH_THAT.fullmatch(inside.strip())
    if match is None:
        return None
    node = parse(match[1].strip())
    every = node.kind == "list" and not node.says("or")
    return Node("list", node.text, node.parts, ("and",)) if every else node


_NO_SIGN = re.compile(r"^\+|(?<=[({\[,])\+")
MAX_SIGNS = 6
"""Most \\pm signs of one answer; each doubles the number of values"""


def _signs(node: Node) -> Node:
    r"""A leaf or tuple; with \pm, the list of its values.

    a \pm b is a + b and a - b. Each further \pm doubles them, and with \mp all signs change together.
    """
    if not 0 < node.text.count("\\pm") + node.text.count("\\mp") <= MAX_SIGNS:
        return node
    count = -1 if "\\mp" in node.text else 1
    texts = [node.text.replace("\\pm", pm, count).replace("\\mp", mp) for pm, mp in ("+-", "-+")]
    return Node("list", node.text, _flat(parse(_NO_SIGN.sub("", text)) for text in texts))


_DENIALS = r"(?!.*\b(?:not|no|never|wrong|except|than|minus|negative|or|and)\b)"
_NAME = re.compile(
    rf"(?:[A-Za-z]|{_DENIALS}[A-Za-z]{{2,}}|\\[A-Za-z]+|\\text\{{{_DENIALS}[^{{}}]*\}})(?:_(?:\{{[^{{}}]*\}}|\w))?'*"
    r"(?:\^\{-1\})?(?:\([A-Za-z](?:,[A-Za-z])*\))?"
    r"|\((?:(?:[A-Za-z]|\\[a-z]+),? ?)+\)|\\(?:angle|overline|triangle|bar|hat|vec|dot|ddot)\{?[A-Za-z]+\}?"
)


def by_name(node: Node) -> dict[str, Node]:
    r"""The value of each name in x=5, f(x)=x^2, x=2+3=5, x\in[0,1], (x,y)=(1,2), x=1,y=2 and \{x=1,y=2\}; else {}.

    Neighbours in the alphabet as names of a tuple are put in its order: (b,a)=(1,2) is (a,b)=(2,1).
    """
    if node.kind in ("list", "set") and not node.says("or"):
        named = [by_name(part) for part in node.parts]
        values = {name: value for part in named for name, value in part.items()}
        return values if {len(part) for part in named} == {1} and len(values) == len(named) else {}
    if node.kind != "relation" or not _NAME.fullmatch(node.parts[0].text):
        return {}
    if node.marks != ("\\in",) and (node.marks[0] != "=" or not set(node.marks) <= {"=", "\\approx"}):
        return {}
    name, *rest = node.parts
    value = rest[0] if len(rest) == 1 else Node("relation", node.text, tuple(rest), node.marks[1:])
    if name.kind == value.kind == "tuple" and len(name.parts) == len(value.parts):
        values = {letter.text: entry for letter, entry in zip(name.parts, value.parts, strict=True)}
        letters = sorted(values)
        return {letter: values[letter] for letter in letters} if "".join(letters) in string.ascii_letters else values
    return {name.text: value}


def set_depth(node: Node) -> int:
    r"""Depth of sets in sets: 0 for 5, 1 for \{5\} and \emptyset, 2 for \{\emptyset\}."""
    inner = max(map(set_depth, node.parts), default=0)
    return inner + 1 if node.kind == "set" else max(inner, int(node.text == "\\emptyset"))
