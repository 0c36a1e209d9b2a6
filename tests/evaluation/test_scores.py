"""The statistics against brute force and against figures worked out by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.evaluation.scores import (
    avg_at_k,
    bootstrap,
    interval,
    maj_at_k,
    mean_with_interval,
    paired_difference,
    pass_at_k,
)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
@settings(max_examples=200, deadline=None)
def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_correct_one(row, data):
    k = data.draw(st.integers(1, len(row)))
    subsets = list(combinations(row, k))
    assert pass_at_k([row], k) == [pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))]


def test_pass_at_1_is_avg_at_k_and_more_draws_than_samples_is_an_error():
    table = [[True, False, False, True], [False] * 4]
    assert pass_at_k(table, 1) == pytest.approx(avg_at_k(table)) == [0.5, 0.0]
    with pytest.raises(ValueError, match="between 1 and 4"):
        pass_at_k(table, 5)


def test_majority_by_hand():
    answers = [["7", "7", "3"], ["3", "7", None], [None, None, None], ["1", "2", "2"]]
    correct = [[True, True, False], [False, True, False], [False] * 3, [True, False, False]]
    # 7 wins; 3 and 7 tie (one half); nobody votes; 2 wins and is wrong
    assert maj_at_k(answers, correct) == [1.0, 0.5, 0.0, 0.0]


def test_interval_covers_the_true_mean_about_95_percent_of_the_time():
    # 200 draws of 60 coin flips, true mean 0.7: about 190 intervals hold it. Fewer than 175 has chance < 1e-4.
    generator = np.random.default_rng(7)
    held = 0
    for draw in range(200):
        low, high = interval(generator.random(60) < 0.7, seed=draw)
        held += low <= 0.7 <= high
    assert 175 <= held <= 200


def test_interval_is_close_to_the_normal_one_and_repeats_itself():
    values = [1.0] * 180 + [
        0.0
    ] * 320  # mean 0.36; standard error sqrt(.36 * .64 / 500) = 0.02147; 1.96 of them: 0.0421
    result = mean_with_interval(values)
    assert result["mean"] == pytest.approx(0.36)
    assert (result["low"], result["high"]) == pytest.approx((0.318, 0.402), abs=0.004)
    assert bootstrap(np.array(values)) == pytest.approx((0.318, 0.402), abs=0.004)
    assert bootstrap(np.array(values)) == bootstrap(np.array(values)) != bootstrap(np.array(values), seed=1)


def test_no_interval_collapses_at_0_and_100_percent():
    """Wilson's bounds are the p from which the observed share is 1.96 standard errors away."""
    assert interval([0.0] * 30) == pytest.approx((0.0, 3.8415 / 33.8415), abs=1e-4)
    assert interval([1.0] * 5) == pytest.approx((5 / 8.8415, 1.0), abs=1e-4)
    for bound in interval([1.0] * 7 + [0.0] * 13):
        assert (0.35 - bound) ** 2 == pytest.approx(3.8415 * bound * (1 - bound) / 20, rel=1e-4)
    assert interval([0.5] * 10) == (0.5, 0.5)  # several samples a problem: the bootstrap


def test_pairs_are_resampled_together():
    # b is a plus 1/4 on every problem: the difference is certain, though both scores vary from 0 to 0.75.
    a = [0.0, 0.25, 0.5, 0.75] * 10
    assert paired_difference(a, [value + 0.25 for value in a]) == {"mean": 0.25, "low": 0.25, "high": 0.25}
    assert paired_difference([1.0, 0.0], [0.0, 0.0])["mean"] == -0.5
    with pytest.raises(ValueError, match="2 and 3"):
        paired_difference([1, 2], [1, 2, 3])
