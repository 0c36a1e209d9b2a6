"""Places of the answer, and verdicts, rule by rule."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import make_reward
from rewards.signals import last_box, read, verdict

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
    assert last_box(closed + r"\boxed{42}") == "42"


def test_nested_boxes_take_no_memory():
    """12,000 boxes in one another have a billion characters of content in all."""
    tracemalloc.start()
    assert last_box(r"\boxed{" * 12_000 + "5" + "}" * 12_000).count("boxed") == 11_999
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


ANSWERS = [
    ("last_number", "7 times 8 is 56.", "56"),
    ("last_number", "It is -1,234.50 dollars", "-1,234.50"),
    ("last_number", "56-7", "7"),
    ("last_number", "of x2 and v1.2 nothing", None),
    ("last_number", r"so \boxed{56}", "56"),
    ("last_number", "<think>8</think> It is 3/4 <reflection>step 9 is correct</reflection>", "3/4"),
    ("last_number", "<think>56", None),
    ("answer_tag", "<think><answer>1</answer></think><answer> 56 </answer> 57", "56"),
    ("answer_tag", "<answer>1</answer><answer>56</answer><answer>57", "56"),
    ("answer_tag", "</answer>56<answer>", None),
]


@pytest.mark.parametrize(("source", "text", "expected"), ANSWERS)
def test_what_the_answer_is_can_be_chosen(source, text, expected):
    assert read(text, source).answer == expected


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("last_number", r"\boxed{56}", True),
        ("last_number", r"\boxed{56} or \boxed{57}", False),
        ("last_number", "<think>a</think>56<reflection>correct</reflection>", False),
        ("answer_tag", "<think>a</think><answer>56</answer>\n", True),
        ("answer_tag", "<think>a</think><answer> </answer>", False),
        ("answer_tag", "<think>a</think><answer>56</answer>.", False),
        ("answer_tag", "<answer>56</answer><think>a</think>", False),
    ],
)
def test_the_layout_goes_with_it(source, text, expected):
    assert read(text, source).format == expected


def test_every_reward_takes_the_choice():
    assert (
        make_reward("multi_signal", beta=0.2, gamma=0, verifier="last_number")(r"It is \boxed{56}", "56").total == 1.2
    )
    assert make_reward("verify_only", verifier="last_number")("It is 56", "56").total == 1.0
    assert make_reward("random", verifier="answer_tag")("<answer>56</answer>", "56").verify == 1.0


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
    ("Is it wrong? It is correct", "correct"),
    ("I did not check all cases; it is correct.", "correct"),
    ("correct. wrong.", "wrong"),
    ("It is either right or wrong.", None),
    ("It is neither right nor wrong.", None),
    ("I am not sure that it is correct.", None),
    ("I don't know if this is right.", None),
    ("The right triangle gives 5, so the answer is wrong.", "wrong"),
    ("The right-hand side agrees; correct.", "correct"),
    ("Computed correctly, I hope.", None),
    ("uncorrect", None),
    ("Looks fine.", None),
    # the last verdict word counts; a question or a doubt is not a verdict
    ("The first try was wrong, the final one is correct", "correct"),
    ("It cannot possibly be correct", "wrong"),
    ("I doubt it is correct", None),
    ("No doubt it is correct", "correct"),
    ("Is it correct? No.", None),
    ("Is it right that x = 12.8?", None),
    ("I was not sure, but now it is correct.", "correct"),
    ("Let me check if it is wrong.\nVerdict: correct", "correct"),
    ("correct or not", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), VERDICTS)
def test_verdict(text, expected):
    assert verdict(text) == expected


@given(st.text())
def test_any_text_has_one_of_three_verdicts(text):
    assert verdict(text) in ("correct", "wrong", None)
