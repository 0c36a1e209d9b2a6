"""Strict and flexible, on outputs as base models write them."""

from __future__ import annotations

from contextlib import closing

import pytest

from grpo.evaluation.scores import close_numbers, flexible_answer, grade, new_verifier

# What a base model writes | reference | strict | flexible
SAVED = [
    (r"So the answer is $\boxed{12}$.", "12", True, True),
    (r"First \boxed{3}, then \boxed{4}.", "3", False, False),  # the last one counts, in both
    (r"First \boxed{3}, then \boxed{4}.", "4", True, True),
    ("Adding up, the answer is 12.", "12", False, True),  # no box: wrong strictly, "answer is" otherwise
    ("The total is 3 + 9 = 12", "12", False, True),  # the last number
    ("The total is 12, found in 2 steps", "12", False, False),  # ... whatever it counts
    ("There are 1,200 of them", "1200", False, True),  # thousands separators
    ("I cannot solve this.", "12", False, False),
    ("", "12", False, False),
    (r"\boxed{\frac{1}{2}}", "0.5", True, True),  # exactly equal
    (r"\boxed{0.333}", r"\frac{1}{3}", False, False),
    (r"\boxed{12.7}", "12.8", False, False),
    (r"\boxed{3.1416}", "3.14159", False, True),  # within 1e-4: the paper's tolerance, not ours
    (r"\boxed{25}", "0.25", False, True),  # times 100: percent for the paper
    (r"It is \boxed{\frac{3}{4}", r"\frac{3}{4}", False, True),  # cut before the brace closed
    (r"<think>\boxed{5}</think> \boxed{6} <reflection>\boxed{7} correct</reflection>", "6", True, False),
]


def test_saved_outputs_give_these_counts():
    rows = [{"completion": text, "ground_truth": truth} for text, truth, _, _ in SAVED]
    with closing(new_verifier()) as verifier:
        rows = grade(rows, verifier)
    assert [(row["strict"], row["flexible"]) for row in rows] == [(strict, flexible) for *_, strict, flexible in SAVED]
    assert (sum(row["strict"] for row in rows), sum(row["flexible"] for row in rows)) == (4, 9)
    assert [row["outcome"] for row in rows].count("no_answer") == 7


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{a{b}c} tail", "a{b}c"),
        (r"\boxed 5$ rest", "5"),  # without braces, up to the next dollar
        (r"boxed", ""),
        ("the final answer is: 7.", "7"),  # "he answer is" comes first in the paper's order, "final answer is" second
        ("The answer is 3. So the answer is\n 4.", "4"),
        ("x = -2.5", "-2.5"),
        ("1 and .5", ".5"),
        ("nothing", ""),
        (r"\boxed{\$18.90}", "18.90"),
    ],
)
def test_flexible_answer(text, answer):
    assert flexible_answer(text).strip(": ") == answer


def test_close_numbers_is_for_plain_numbers_only():
    assert close_numbers("50%", "0.5")
    assert close_numbers("1,000", "1000.05")  # 5e-5
    assert not close_numbers("1000", "1000.2")  # 2e-4
    assert close_numbers("0.5", "50")
    assert close_numbers("5000", "50")
    assert not close_numbers("1/2", "0.5")
    assert not any(close_numbers(a, b) for a, b in [("nan", "nan"), ("inf", "inf"), ("", "0")])
