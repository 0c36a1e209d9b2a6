"""Right or wrong, twice: the strict column and the flexible one.

strict: the last complete box of the answer part, as the training reward reads it (`rewards.signals`), compared exactly.
flexible: what the paper's harness does (Qwen2.5-Math's evaluation, `extract_answer` and `math_equal`): without a box it
takes what follows "answer is", else the last number in the text, and numbers within 1e-4 or off by a factor of 100
count as equal. The gap between the two is format, not mathematics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rewards import Verifier
from rewards.signals import read

NUMBER = re.compile(r"-?\d*\.?\d+")
ANNOUNCED = ("he answer is", "final answer is")
RELATIVE_TOLERANCE = 1e-4


def new_verifier(workers: int = 2) -> Verifier:
    """More patient than in training (2 s): a benchmark's figure should not depend on how busy the machine was."""
    return Verifier(workers=workers, timeout_s=10.0)


class Checker(Protocol):
    """`rewards.Verifier`: pairs of (answer or None, truth) in, outcomes out."""

    def check_batch(self, pairs: Sequence[tuple[str | None, str]]) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Grade:
    answer: str | None
    strict: bool
    flexible_answer: str
    flexible: bool
    outcome: str
    """of the strict answer: correct, wrong, no_answer, unparsed, timeout"""


def grade(texts: Sequence[str], truths: Sequence[str], checker: Checker) -> list[Grade]:
    """One Grade a completion, in order."""
    strict = [read(text).answer for text in texts]
    flexible = [flexible_answer(text) for text in texts]
    outcomes = checker.check_batch(list(zip(strict, truths, strict=True)))
    other = checker.check_batch([(answer or None, truth) for answer, truth in zip(flexible, truths, strict=True)])
    return [
        Grade(s, outcome == "correct", f, outcome_f == "correct" or close_numbers(f, truth), outcome)
        for s, f, truth, outcome, outcome_f in zip(strict, flexible, truths, outcomes, other, strict=True)
    ]


def flexible_answer(text: str) -> str:
    """The paper's rule, in its order; "" where the text holds nothing that could be an answer."""
    if "boxed" in text:
        answer = _after_last_boxed(text)
    elif phrase := next((phrase for phrase in ANNOUNCED if phrase in text), None):
        answer = text.split(phrase)[-1].strip()
    else:
        numbers = NUMBER.findall(text.replace(",", ""))
        answer = numbers[-1] if numbers else ""
    answer = re.sub(r"\n\s*", "", answer).removeprefix(":").removesuffix(".").removesuffix("/")
    return answer.replace("\\$", "").replace("$", "").strip()


def _after_last_boxed(text: str) -> str:
    """Inside the braces after the last "boxed", to the end where they never close; without braces, up to the next $."""
    rest = text.rpartition("boxed")[2]
    if not rest.startswith("{"):
        return rest.partition("$")[0].strip()
    depth = 0
    for place, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[1:place]
    return rest[1:]


def close_numbers(answer: str, truth: str) -> bool:
    """Both are plain numbers, and equal to 1e-4 relative, times 100 or divided by 100 (percent) included."""
    a, b = _number(answer), _number(truth)
    if a is None or b is None:
        return False
    return any(math.isclose(a, b * factor, rel_tol=RELATIVE_TOLERANCE) for factor in (0.01, 1, 100))


def _number(text: str) -> float | None:
    text = text.replace(",", "").strip()
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%").removesuffix("\\"))
    except ValueError:
        return None
    return None if not math.isfinite(value) else value / 100 if percent else value
