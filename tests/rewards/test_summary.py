"""The step's metrics, by hand."""

from __future__ import annotations

import math

import pytest

from rewards import Score, make_reward, summarize


def score(verify: float, verdict: str | None = None, outcome: str | None = None, total: float | None = None) -> Score:
    return Score(
        verify if total is None else total,
        {"verify": verify},
        None,
        verdict,
        outcome or ("correct" if verify else "wrong"),
    )


def test_means_and_standard_deviations():
    metrics = summarize([[score(1), score(0)], [score(1), score(1)]])
    assert metrics["reward/mean"] == metrics["signal/verify"] == 0.75
    # all four: deviations .25 .75 .25 .25, squares sum to 0.75, over n - 1 = 3
    assert metrics["reward/std"] == pytest.approx(math.sqrt(0.25))
    # first group: sqrt((0.25 + 0.25) / 1), second group: 0; their mean
    assert metrics["reward/group_std"] == metrics["signal/verify_group_std"] == pytest.approx(math.sqrt(0.5) / 2)


def test_equal_rewards_are_flat_whatever_the_float_dust():
    """The mean of three 0.1 is not 0.1 in floats, of twelve 0.3 it is: neither group may have a spread."""
    for value, size in ((0.1, 3), (0.1 + 0.2, 7), (0.3, 12)):
        assert summarize([[score(1, total=value)] * size])["reward/group_std"] == 0.0


def test_outcomes_and_the_table_of_verdict_and_truth():
    scores = [
        score(1, "correct"),
        score(1, "wrong"),
        score(0, "wrong"),
        score(0, "wrong", "timeout"),
        score(0, "correct", "unparsed"),
        score(0, None, "no_answer"),
        score(1, "correct"),
        score(0, None),
    ]
    metrics = summarize([scores])
    shares = {"correct": 3, "wrong": 2, "no_answer": 1, "unparsed": 1, "timeout": 1}
    assert {name: metrics[f"outcome/{name}"] * 8 for name in shares} == shares
    table = {"right_says_correct": 2, "right_says_wrong": 1, "wrong_says_correct": 1, "wrong_says_wrong": 2, "none": 2}
    assert {name: metrics[f"verdict/{name}"] * 8 for name in table} == table
    assert metrics["verdict/majority_share"] == 0.5  # three of the six that gave one
    assert all(isinstance(value, float) for value in metrics.values())


def test_every_signal_of_the_reward_is_logged():
    metrics = summarize([make_reward("random").score_batch(["", r"\boxed{5}"], ["5", "5"])])
    assert {f"signal/{name}" for name in ("random", "verify", "format", "reflect")} <= metrics.keys()
