"""`last_number` reads whole numbers: signs, exponents, fractions and groups of digits belong to them."""

from __future__ import annotations

import pytest

from rewards.signals import last_number

NUMBERS = [
    ("7 times 8 is 56.", "56"),
    ("It is -1,234.50 dollars", "-1,234.50"),
    ("56-7", "7"),
    ("It is \u22125", "-5"),
    ("It is \u20135.", "-5"),
    ("x = \u20145", "-5"),
    ("(-5)", "-5"),
    ("\u22123/4", "-3/4"),
    ("1.5e-3", "1.5e-3"),
    ("about 1.5E-3 m", "1.5E-3"),
    ("2 x 10^5", "2x10^5"),
    ("6.02*10^23", "6.02*10^23"),
    (r"$2 \times 10^{5}$", r"2\times 10^{5}"),
    ("2^10", "2^10"),
    ("3 / 4", "3/4"),
    ("It is 3/4.", "3/4"),
    (r"-\frac{3}{4}", r"-\frac{3}{4}"),
    (r"1\frac{1}{2}", r"1\frac{1}{2}"),
    (r"\boxed{\frac{3}{4}}", r"\frac{3}{4}"),
    (r"\boxed{56} I checked it 3 times", "56"),
    (r"\boxed{x} and 3", "3"),
    ("12 345 people", "12345"),
    ("1 234 567", "1234567"),
    (r"10\,080", "10080"),
    ("1,234,567.89", "1,234,567.89"),
    ("3, 4", "4"),
    ("50%", "50"),
    ("\uff11\uff12", "12"),
    ("12\u4e2a", "12"),
    ("7 cm^2", "7"),
    ("7 cm2", "7"),
    ("area 7 cm^{2}.", "7"),
    ("7 m/s^2", "7"),
    ("15th", "15"),
    ("x^2 = 9", "9"),
    ("The answer is 7 on 2024-05-01", "7"),
    ("5 at 12:30 pm", "5"),
    ("The answer is not 42 but 43", "43"),
    ("It is 41, not 42", "41"),
]
NO_NUMBERS = [
    "on 2024-05-01",
    "5/8/2024",
    "at 12:30",
    "14:30:15",
    "1.2.3",
    "v2.1",
    "x^2",
    "of x2 and v1.2 nothing",
    "not 42",
    "definitely not 42",
    "Is it 42? definitely not 42",
    "it isn't equal to 42",
    "\u2260 5",
]


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_a_whole_number_is_read(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_a_piece_of_something_else_or_a_denied_number_is_no_answer(text):
    assert last_number(text) is None
