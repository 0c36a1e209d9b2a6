"""One answer against one ground truth: first without algebra, then with it."""

from __future__ import annotations

import sys
from fractions import Fraction
from functools import lru_cache

from rewards.equivalence.compare import same
from rewards.equivalence.leaf import same_leaf
from rewards.equivalence.shape import Node, parse
from rewards.equivalence.text import Unreadable, check_limits, clean


class Undecided(Exception):
    """Only algebra can tell."""


class Fast:
    """Algebra for `compare.same` that knows text and exact numbers, and gives up on the rest."""

    def leaf(self, truth: str, answer: str) -> bool:
        decided = same_leaf(truth, answer)
        if decided is None:
            raise Undecided
        return decided

    def relation(self, truth: Node, answer: Node) -> bool:
        if truth.text == answer.text:
            return True
        raise Undecided

    def point_set(self, truth: Node, answer: Node) -> bool:
        raise Undecided

    def between(self, lower: Fraction, text: str, upper: Fraction) -> bool:
        raise Undecided


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
        return "correct" if same(truth_shape, shape, Fast()) else "wrong"
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
