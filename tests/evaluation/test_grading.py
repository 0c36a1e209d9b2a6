"""Strict and flexible, on outputs as base models write them."""

from __future__ import annotations

from contextlib import closing

import pytest

from grpo.evaluation.scores import close_numbers, flexible_answer, grade, new_verifier, score_rows
from rewards import make_reward

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


def test_an_answer_that_says_nothing_is_blank_as_in_training():
    texts = [r"\boxed{}", r"\boxed{?}", r"\boxed{\text{unknown}}", "no box", r"\boxed{12}"]
    rows = [{"problem": i, "completion": text, "ground_truth": "7"} for i, text in enumerate(texts)]
    with closing(new_verifier()) as verifier:
        rows = grade([row | {"finish_reason": "stop"} for row in rows], verifier)
    with closing(make_reward("multi_signal")) as reward:
        trained = [score.outcome for score in reward.score_batch(texts, ["7"] * len(texts))]
    assert [row["outcome"] for row in rows] == trained == ["no_answer"] * 4 + ["wrong"]
    assert score_rows(rows)["no_answer"] == 0.8


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
        (r"Final Answer: The final answer is $\frac{3}{4}$. I hope it is correct.", r"\frac{3}{4}"),
        ("答案是B", "B"),
        ("所以答案是：7。\n\n谢谢", "：7"),
    ],
)
def test_flexible_answer(text, answer):
    assert flexible_answer(text).strip(": ") == answer


@pytest.mark.parametrize(
    ("answer_from", "text", "strict", "flexible"),
    [
        ("answer_tag", "<think>3+4</think><answer>7</answer>", True, True),
        ("answer_tag", r"<think>3+4</think><answer>\frac{14}{2}</answer>", True, True),
        ("answer_tag", r"<answer>\boxed{7}</answer>", True, True),
        ("answer_tag", "The answer is 7.", False, True),
        ("box", r"<think>3+4</think><answer>\frac{14}{2}</answer>", False, False),
        ("last_number", "The total is 7", True, True),
    ],
)
def test_an_answer_is_read_as_the_run_reads_it(answer_from, text, strict, flexible):
    with closing(new_verifier(workers=1)) as verifier:
        (row,) = grade([{"completion": text, "ground_truth": "7"}], verifier, answer_from)
    assert (row["strict"], row["flexible"]) == (strict, flexible)


def test_close_numbers_is_for_plain_numbers_only():
    assert close_numbers("50%", "0.5")
    assert close_numbers("1,000", "1000.05")  # 5e-5
    assert not close_numbers("1000", "1000.2")  # 2e-4
    assert close_numbers("0.5", "50")
    assert close_numbers("5000", "50")
    assert not close_numbers("1/2", "0.5")
    assert not any(close_numbers(a, b) for a, b in [("nan", "nan"), ("inf", "inf"), ("", "0")])
