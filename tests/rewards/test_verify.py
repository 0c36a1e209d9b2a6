"""Equality: a labelled table of pairs, every ground truth of MATH-500, and exactness as a property."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import truths
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rewards import check_ground_truths, ground_truth_text, last_box
from rewards.equivalence.plain import alternatives
from rewards.verifier import Verifier, verify

PAIRS = [json.loads(line) for line in Path(__file__).with_name("pairs.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def verifier():
    verifier = Verifier(workers=2, timeout_s=20)
    yield verifier
    verifier.close()


def test_every_labelled_pair(verifier):
    outcomes = verifier.check_batch([(row["answer"], row["truth"]) for row in PAIRS])
    wrong = [(row, got) for row, got in zip(PAIRS, outcomes, strict=True) if (got == "correct") != row["equal"]]
    assert len(PAIRS) >= 500
    assert not wrong


def test_in_process_says_the_same():
    for row in PAIRS[::40]:
        assert verify(row["answer"], row["truth"]) == row["equal"], row


def test_a_truth_nobody_can_grade_has_a_reason_and_ends_nothing():
    """The product keeps the grammar busy for minutes; its worker is killed and the next truth is read."""
    hang = "x!y!z!a!b!" * 4
    truths = ["5", hang, r"\sqrt{2}", r"\frac{1}{", '["1", "2"]', ["5", ""], hang, r"\infty"]
    seen = []
    reasons = check_ground_truths(truths, timeout_s=1, progress=lambda *counts: seen.append(counts))
    assert [bool(reason) for reason in reasons] == [False, True, False, True, False, True, True, False]
    assert "not read within 1 s" in reasons[1]
    assert reasons[3].startswith(r"ground truth '\\frac{1}{' is unreadable: ")
    assert seen == [(0, 5)], "five different texts that are no numbers"


def test_no_mutation_of_a_truth_is_right(data_dir, verifier):
    """A sample of what `python tests/truths.py` tries in full: a digit or a letter changed."""
    pools = [answers for _, answers in truths.pools(str(data_dir))]
    mutants = [(mutant, truth) for answers in pools for truth in answers for mutant in truths.mutations(truth)][::101]
    assert len(mutants) > 100
    outcomes = verifier.check_batch(mutants)
    assert [pair for pair, outcome in zip(mutants, outcomes, strict=True) if outcome in ("correct", "timeout")] == []


def test_math500_truths_are_graded_and_equal_the_box_of_their_solution_only(data_dir, verifier):
    """Every tenth row; `python tests/truths.py` reads all."""
    path = data_dir / "eval" / "math500" / "test.jsonl"
    if not path.is_file():
        pytest.skip("no MATH-500 in the data folder")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][::10]
    truths = [row["answer"] for row in rows]
    assert check_ground_truths(truths, timeout_s=20) == [None] * len(truths)
    right = [(answer, row["answer"]) for row in rows for answer in (f"${row['answer']}$.", last_box(row["solution"]))]
    neighbours = [(a, b) for a, b in zip(truths[1:] + truths[:1], truths, strict=True) if a != b]
    assert set(verifier.check_batch(right)) == {"correct"}
    assert not {"correct", "timeout"} & set(verifier.check_batch(neighbours))


@pytest.mark.parametrize("name", ["pi1_r128", "pi2_r128", "pi13_r128", "pi1209_r128"])
def test_the_examples_of_the_paper_can_be_graded(name, data_dir):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(data_dir / f"{name}.parquet").to_pylist()
    truths = [row["reward_model"]["ground_truth"] for row in rows]
    assert check_ground_truths(truths) == [None] * len(truths)


rationals = st.fractions(max_denominator=10**6).filter(lambda value: abs(value) < 10**12)


def latex(value: Fraction) -> str:
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


@given(rationals, rationals)
def test_fractions_are_equal_exactly_when_they_are(a, b):
    assert verify(latex(a), f"{b.numerator}/{b.denominator}") == (a == b)
    assert verify(f"{a.numerator}/{a.denominator}", latex(a))


@given(st.integers(0, 10**33), st.integers(0, 29))
def test_a_change_in_any_digit_is_a_wrong_answer(digits, place):
    """30 decimals, of which one changes: no float has that many."""
    plain, changed = (f"{n // 10**30}.{n % 10**30:030d}" for n in (digits, digits + 10**place))
    assert verify(plain.rstrip("0"), plain)
    assert not verify(changed, plain)


@given(st.integers(-(10**9), 10**9), st.integers(0, 300))
def test_notations_of_one_number_agree(mantissa, exponent):
    assert verify(f"{mantissa}e-{exponent}", rf"{mantissa} \times 10^{{-{exponent}}}")
    assert verify(rf"{mantissa}*10^-{exponent}", f"{mantissa}e-{exponent}")
    assert verify(f"{mantissa}e{exponent}", str(mantissa * 10**exponent)) or exponent > 900
    assert not verify(f"{mantissa}1e-{exponent}", f"{mantissa}e-{exponent}") or mantissa == 0


@settings(deadline=None, max_examples=25)
@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(2, 30))
def test_surds_need_a_proof(a, b, root):
    """(a + b sqrt r)^2 expands to a^2 + b^2 r + 2ab sqrt r; one more is another number."""
    square = rf"({a} + ({b})\sqrt{{{root}}})^2"
    rational = a * a + b * b * root
    assert verify(rf"{rational} + ({2 * a * b})\sqrt{{{root}}}", square)
    assert not verify(rf"{rational + 1} + ({2 * a * b})\sqrt{{{root}}}", square)


def test_what_evaluation_cannot_refute_still_needs_a_proof():
    """sin(e) - e is -e^3 / 6, 3800 digits below e = 10^-1900, and the polynomial is 0 wherever `is_zero` looks."""
    assert not verify(r"\sin(10^{-1900})", "10^{-1900}")
    assert not verify(r"x + (x-\frac{5}{7})(x+\frac{19}{11})", "x")


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_order_matters_in_tuples_and_not_in_lists(items, rng):
    turned = rng.sample(items, len(items))
    assume(turned != items)
    assert verify(", ".join(map(str, turned)), ", ".join(map(str, items)))
    assert not verify(f"({', '.join(map(str, turned))})", f"({', '.join(map(str, items))})")


GROUND_TRUTHS = [
    ("12.8", "12.8"),
    (" 12.8 ", "12.8"),
    (18, "18"),
    (12.8, "12.8"),
    (np.int64(3), "3"),
    (np.float64(0.5), "0.5"),
    ('["18"]', "18"),
    (["18"], "18"),
    ('["1", "2"]', '["1", "2"]'),
    ("[18]", "18"),
    ("[12.80]", "12.80"),
    ("[1, 2]", "[1, 2]"),
    (r"\text{east}", r"\text{east}"),
    (Fraction(1, 2), "1/2"),
    (Decimal("0.50"), "0.50"),
]


@pytest.mark.parametrize(("value", "expected"), GROUND_TRUTHS)
def test_ground_truths_as_data_sets_have_them(value, expected):
    assert ground_truth_text(value) == expected


def test_what_cannot_be_a_ground_truth_has_a_reason():
    neither_text_nor_number = [None, True, float("nan"), float("inf"), [], {}, object(), b"5"]
    unreadable = ["", "  ", '[""]', r"\frac{1}{", "9" * 2000, "(" * 60]
    for value, reason in zip(unreadable, check_ground_truths(unreadable), strict=True):
        assert reason.startswith("ground truth "), value
    for value in neither_text_nor_number:
        with pytest.raises(ValueError, match="ground truth"):
            ground_truth_text(value)


def test_any_of_several_ground_truths_counts():
    assert alternatives('["1", "2"]') == ("1", "2")
    assert verify("2", '["1", "2"]')
    assert not verify("3", '["1", "2"]')
    assert not verify("1", "[1, 2]"), "this is an interval"


def test_the_cache_knows_repeated_answers():
    verifier = Verifier()
    verifier.check_batch([("77", "78")] * 9 + [("79", "78")])
    assert verifier.cache_hit_rate() == 0.8  # two of ten were new
    verifier.check_batch([("77", "78")])
    assert verifier.cache_hit_rate() == 1.0
    assert verifier.cache_hit_rate() == 0.0  # nothing asked since


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr("rewards.verifier.CACHE_SIZE", 100)
    verifier = Verifier()
    verifier.check_batch([(str(i), "5") for i in range(1000)])
    assert len(verifier._cache) == 100
    verifier.cache_hit_rate()
    verifier.check_batch([("999", "5"), ("1", "5"), ("9" * 2000, "5")])
    assert verifier.cache_hit_rate() == 1 / 3, "the newest are kept"
    assert max(len(answer) for answer, _ in verifier._cache) < 2000, "what is too long to be read is not"


UNMEETABLE = [
    ("The total is 7 apples", "sentence"),
    ("It is impossible to select 16 such numbers.", "sentence"),
    ("the answer is yes", "sentence"),
    *[(junk, "placeholder") for junk in ("TODO", "nan", "None", "null", "N/A", "...", "?", "-", "[TBD]")],
    *[(label, "label") for label in ("Answer: 7", "Step 1: add the numbers", "Final answer: 12 cm", "Solution: x")],
    *[(digits, "float") for digits in ("33.333333333333336", "3.141592653589793", "0.3333333432674408")],
]


@pytest.mark.parametrize(("truth", "reason"), UNMEETABLE)
def test_what_no_usual_answer_meets_has_its_reason(truth, reason):
    assert reason in check_ground_truths([truth])[0]


MEETABLE = {
    "15 days": ["15", "15 days"],
    "15 cm^2": ["15", "15 cm^2", r"15\text{ cm}^2"],
    "5 apples": ["5", "5 apples"],
    "1443 hours": ["1443"],
    "5 red apples": ["5", "5 red apples"],
    "25^\\circ C": ["25", "25°C"],
    "10-20%": [r"10-20\%", "10-20"],
    "does not exist": ["Does not exist"],
    "2:30 pm": ["2:30 PM"],
}


@pytest.mark.parametrize("truth", MEETABLE)
def test_a_truth_with_a_unit_is_met_with_and_without_it(truth):
    assert check_ground_truths([truth]) == [None]
    assert all(verify(answer, truth) for answer in MEETABLE[truth])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_float_means_its_shortest_decimal(dtype):
    """float32(0.1) is 0.100000001490116...; as a Python float it is 0.10000000149011612, and 0.1 is meant."""
    for short in ("0.1", "12.8", "33.3", "5.7", "-0.7"):
        number = dtype(short)
        assert ground_truth_text(number) == short
        if dtype is not np.float16:  # 12.796875 may be float16's 12.8 or meant as it stands
            assert ground_truth_text(float(number)) == ground_truth_text(repr(float(number))) == short
    assert ground_truth_text(0.1 + 0.2) == "0.3"
    exact = ["0.0009765625", "0.0000152587890625", "12.796875", "123456789.123456", "0.123456789012345678"]
    assert [ground_truth_text(text) for text in exact] == exact


def test_ground_truths_of_numpy():
    arrays = [np.array("18"), np.array(["18"]), np.array([18]), np.array(["18"], dtype=object), np.array(18)]
    assert [ground_truth_text(array) for array in arrays] == ["18"] * len(arrays)
    assert alternatives(np.array(["1", "2"], dtype=object)) == ("1", "2")
    with pytest.raises(ValueError, match="ground truth"):
        ground_truth_text(np.array([1, 2]))


def test_a_ground_truth_is_checked_once_for_each_version_of_the_grader(tmp_path, monkeypatch):
    truths = [r"\sqrt{2}", r"\frac{1}{"]
    first = check_ground_truths(truths)
    with monkeypatch.context() as patch:
        patch.setattr(Verifier, "ask", lambda *_: pytest.fail("asked again"))
        assert check_ground_truths(truths) == first
    (file,) = (tmp_path / "one-shot-grpo").iterdir()
    file.write_text("damaged")
    assert check_ground_truths(truths) == first
