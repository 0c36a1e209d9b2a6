"""The statistics against brute force and against figures worked out by hand."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from grpo.evaluation.scores import bootstrap, figure, majority, newcombe, paired_difference, pass_at_k


def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_correct_one():
    for size in range(1, 7):
        for correct, k in product(range(size + 1), range(1, size + 1)):
            row = [True] * correct + [False] * (size - correct)
            subsets = list(combinations(row, k))
            assert pass_at_k(size, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(
    ("answers", "right", "score"),
    [
        (["7", "7", "3"], [True, True, False], 1.0),
        (["3", "7", None], [False, True, False], 0.5),  # a tie
        ([None, "", None], [False] * 3, 0.0),  # nobody votes
        (["", "", "2"], [False, False, True], 1.0),
        (["?", r"\text{unknown}", "2"], [False, False, True], 1.0),
        (["1", "2", "2"], [True, False, False], 0.0),
    ],
)
def test_majority_by_hand(answers, right, score):
    assert majority(pd.Series(answers), pd.Series(right)) == score


def test_interval_covers_the_true_mean_about_95_percent_of_the_time():
    # 200 draws of 60 coin flips, true mean 0.7: about 190 intervals hold it. Fewer than 175 has chance < 1e-4.
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(200):
        found = figure(generator.random(60) < 0.7)
        held += found["low"] <= 0.7 <= found["high"]
    assert 175 <= held <= 200


def test_interval_is_close_to_the_normal_one_and_repeats_itself():
    values = [1.0] * 180 + [
        0.0
    ] * 320  # mean 0.36; standard error sqrt(.36 * .64 / 500) = 0.02147; 1.96 of them: 0.0421
    result = figure(values)
    assert result["mean"] == pytest.approx(0.36)
    assert (result["low"], result["high"]) == pytest.approx((0.318, 0.402), abs=0.004)
    assert bootstrap(np.array(values)) == pytest.approx((0.318, 0.402), abs=0.004)
    assert bootstrap(np.array(values)) == bootstrap(np.array(values)) != bootstrap(np.array(values), seed=1)


def test_no_interval_collapses_at_0_and_100_percent():
    """Wilson's bounds are the p from which the observed share is 1.96 standard errors away."""

    def bounds(values):
        found = figure(values)
        return found["low"], found["high"]

    assert bounds([0.0] * 30) == pytest.approx((0.0, 3.8415 / 33.8415), abs=1e-4)
    assert bounds([1.0] * 5) == pytest.approx((5 / 8.8415, 1.0), abs=1e-4)
    for bound in bounds([1.0] * 7 + [0.0] * 13):
        assert (0.35 - bound) ** 2 == pytest.approx(3.8415 * bound * (1 - bound) / 20, rel=1e-4)
    assert bounds([0.5] * 10) == (0.5, 0.5)  # several samples a problem: the bootstrap


def test_pairs_are_resampled_together():
    """b is a plus 1/4 on every problem: the difference is certain, though both scores vary from 0 to 0.75."""
    a, b = pd.Series([0, 0.25, 0.5, 0.75] * 10), pd.Series([0.25, 0.5, 0.75, 1] * 10)
    gain = paired_difference(a, b)
    assert (gain["mean"], gain["low"], gain["high"]) == (0.25, 0.25, 0.25)
    assert (gain["gained"], gain["lost"]) == (list(range(40)), [])
    worse = paired_difference(pd.Series([1.0, 0.0]), pd.Series([0.0, 0.0]))
    assert (worse["mean"], worse["gained"], worse["lost"]) == (-0.5, [], [0])


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, lost, gained, neither)
    return np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)


def test_the_paired_interval_is_newcombes():
    """Newcombe 1998, table III: 36, 12, 2 and 0 pairs give 0.0569 to 0.3404 for the first share minus the second."""
    a, b = pairs(36, 12, 2, 0)
    assert newcombe(b, a) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert newcombe(a, b) == pytest.approx((-0.3404, -0.0569), abs=5e-5)


def test_the_paired_interval_keeps_a_width_where_all_agree():
    """30 pairs. Wilson of 30/30 is [1 - w, 1] with w = 3.8415 / 33.8415 = 0.11351. Nothing flips: phi is 0, [-w, w].
    Everything flips: 1 - sqrt(w^2 + w^2) = 1 - 0.16053, to 1."""
    for count in ((30, 0, 0, 0), (0, 0, 0, 30)):
        assert newcombe(*pairs(*count)) == pytest.approx((-0.11351, 0.11351), abs=1e-5)
    assert newcombe(*pairs(0, 0, 30, 0)) == pytest.approx((1 - 0.16053, 1.0), abs=1e-5)


def test_the_paired_interval_covers_the_true_difference():
    """400 draws of 40 pairs, P(right) 0.6 and 0.8 and correlated: 95% is 380; fewer than 360 has chance 1e-5."""
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        common, own = generator.random(40), generator.random((2, 40))
        mixed = np.where(generator.random(40) < 0.5, common, own)  # half of the problems are equally hard for both
        low, high = newcombe((mixed[0] < 0.6).astype(float), (mixed[1] < 0.8).astype(float))
        covered += low <= 0.2 <= high
    assert covered >= 360
