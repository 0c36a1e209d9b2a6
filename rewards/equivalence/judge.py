"""One answer against one ground truth: first without algebra, then with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache

from rewards.equivalence.compare import Algebra, Undecided, same
from rewards.equivalence.leaf import split_unit, word
from rewards.equivalence.numbers import number, numeral
from rewards.equivalence.shape import Node, assignment, parse
from rewards.equivalence.text import NotModelled, Unreadable, check_limits, clean


@lru_cache(maxsize=4096)
def read(text: str) -> tuple[str, Node]:
    """Cleaned text and shape; Unreadable for what is past the limits."""
    check_limits(text)
    cleaned = clean(text)
    if not cleaned:
        raise Unreadable("empty")
    return cleaned, parse(cleaned)


def judge_fast(answer: str, truth: str) -> str | None:
    """The outcome where text and exact numbers settle it, in microseconds; None where algebra must decide."""
    if answer.strip() == truth.strip():
        return "correct"
    try:
        cleaned, shape = read(answer)
    except Unreadable as error:
        return "no_answer" if str(error) == "empty" else "unparsed"
    try:
        cleaned_truth, truth_shape = read(truth)
        if cleaned == cleaned_truth:
            return "correct"
        return "correct" if same(truth_shape, shape, Algebra()) else "wrong"
    except Undecided:
        return None
    except Unreadable:
        return "unparsed"


def judge(answer: str, truth: str) -> str:
    """The outcome, with algebra where needed: correct, wrong, no_answer or unparsed. May run for long, or for ever."""
    outcome = judge_fast(answer, truth)
    if outcome is not None:
        return outcome
    from rewards.equivalence.algebra import Exact  # sympy takes a second to import, and most processes never need it

    algebra = Exact()
    try:
        if same(read(truth)[1], read(answer)[1], algebra):
            return "correct"
    except Unreadable:
        return "unparsed"
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a bug in sympy must cost one answer and not the run
        print(f"rewards: {type(error).__name__} from sympy on {answer[:200]!r}", file=sys.stderr, flush=True)
        return "unparsed"
    return "unparsed" if algebra.unreadable else "wrong"


WRONG = ("7919", "7907")
"""No ground truth equals both"""


def why_ungradable(truth: str) -> str:
    """Why no answer can be graded against this ground truth; "" where one can. May run for long, or for ever."""
    from rewards.equivalence.grammar import expression

    try:
        for leaf in _open_leaves(read(truth)[1]):
            with suppress(NotModelled):  # compared as text
                expression(leaf)
    except Unreadable as error:
        return str(error)
    return "every number counts as right" if all(judge(wrong, truth) == "correct" for wrong in WRONG) else ""


def why_ungradable_fast(truth: str) -> str | None:
    """The same where neither grammar nor algebra is needed; None where it is."""
    try:
        return None if any(True for _ in _open_leaves(read(truth)[1])) else ""
    except Unreadable as error:
        return str(error)


def _open_leaves(node: Node) -> Iterator[str]:
    """Leaves that only the grammar can read. In m_{\\max}=5 the name is compared as text and not read."""
    named = assignment(node)
    for part in [named[1]] if named else node.parts:
        yield from _open_leaves(part)
    value = split_unit(node.text)[0]
    if not node.parts and number(value) is None and numeral(value) is None and word(value) is None:
        yield value
