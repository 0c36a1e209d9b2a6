"""Boxes and verdicts, rule by rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.signals import boxes, last_box, verdict

BOXES = [
    (r"\boxed{5}", "5"),
    (r"\boxed {5}", "5"),
    (r"\boxed{1} \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{[0, 1\}}", r"[0, 1\}"),
    (r"\boxed{\boxed{5}}", r"\boxed{5}"),
    (r"\boxed{1} and \boxed{2", "1"),
    (r"\boxed{ \boxed{5}", "5"),
    (r"\boxed{5\}", None),
    (r"\boxed 5", None),
    (r"} \boxed{5}", "5"),
    (r"{ \boxed{5}", "5"),
    (r"\fbox{5}", None),
    (r"\\boxed{5}", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), BOXES)
def test_last_complete_box(text, expected):
    assert last_box(text) == expected


@given(st.text(alphabet="ab{}\\ 1", max_size=60))
def test_a_box_put_behind_any_closed_text_is_the_last(text):
    closed = text.replace("\\", "") + "}" * text.count("{")
    assert boxes(closed + r"\boxed{42}")[-1] == "42"


VERDICTS = [
    ("The answer is correct.", "correct"),
    ("My answer is right", "correct"),
    ("CORRECT", "correct"),
    ("The answer is wrong.", "wrong"),
    ("The answer is incorrect.", "wrong"),
    ("in-correct", "wrong"),
    ("My answer is false.", "wrong"),
    ("I was mistaken.", "wrong"),
    ("This is not correct.", "wrong"),
    ("This is not wrong.", "correct"),
    ("This isn't right.", "wrong"),
    ("By no means correct.", "wrong"),
    ("It is far from being right.", "wrong"),
    ("In no way wrong.", "correct"),
    ("This isn’t right.", "wrong"),
    ("This is not quite right.", "wrong"),
    ("This is not incorrect.", "correct"),
    ("I don't think that my answer is correct.", "wrong"),
    ("I do not believe it to be right.", "wrong"),
    ("It cannot be wrong.", "correct"),
    ("There is nothing wrong with it.", "correct"),
    ("Checked, no mistake: correct", "correct"),
    ("It is correct, and right.", "correct"),
    ("Is it wrong? It is correct", None),
    ("I did not check all cases; it is correct.", "correct"),
    ("correct. wrong.", None),
    ("It is either right or wrong.", None),
    ("It is neither right nor wrong.", None),
    ("I am not sure that it is correct.", None),
    ("I don't know if this is right.", None),
    ("The right triangle gives 5, so the answer is wrong.", "wrong"),
    ("The right-hand side agrees; correct.", "correct"),
    ("Computed correctly, I hope.", None),
    ("uncorrect", None),
    ("Looks fine.", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), VERDICTS)
def test_verdict(text, expected):
    assert verdict(text) == expected


@given(st.text())
def test_any_text_has_one_of_three_verdicts(text):
    assert verdict(text) in ("correct", "wrong", None)
