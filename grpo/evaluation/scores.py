"""The statistics of an evaluation, from a table of verdicts: correct[problem][sample].

Intervals are over problems: the benchmark's own problems are what a score is a sample of. The samples of one problem
stay together, because they are not independent evidence about the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


def avg_at_k(correct: Sequence[Sequence[bool]]) -> list[float]:
    """[problems] share of each problem's samples that are correct; the mean over problems is avg@k."""
    return [sum(row) / len(row) for row in correct]


def pass_at_k(correct: Sequence[Sequence[bool]], k: int) -> list[float]:
    """[problems] chance that k of the n samples, drawn without replacement, hold a correct one.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv:2107.03374), eq. 1.
    """
    if not 1 <= k <= min(len(row) for row in correct):
        raise ValueError(f"pass@{k} needs between 1 and {min(len(row) for row in correct)} samples a problem")
    return [1 - comb(len(row) - sum(row), k) / comb(len(row), k) for row in correct]


def maj_at_k(answers: Sequence[Sequence[Hashable | None]], correct: Sequence[Sequence[bool]]) -> list[float]:
    """[problems] is the commonest answer correct? Samples without an answer (None) do not vote.

    Answers vote by their text, and a tie gives each tied answer its share: the expectation over fair tie-breaking.
    """
    return [_majority(row, flags) for row, flags in zip(answers, correct, strict=True)]


def _majority(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    truth = dict(zip(answers, correct, strict=True))
    return sum(truth[winner] for winner in winners) / len(winners)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap of the mean, resampling problems with replacement; seeded, so it repeats itself.

    All-equal values give a width of zero: the bootstrap cannot see what no problem showed.
    """
    values = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    blocks = [generator.integers(0, len(values), (RESAMPLES // 10, len(values))) for _ in range(10)]
    means = np.concatenate([values[block].mean(axis=1) for block in blocks])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mean_with_interval(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """{"mean", "low", "high"}"""
    low, high = interval(values, seed)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Mean of b - a on the same problems, with its interval.

    The pairs are resampled together: what is common to both (hard problems are hard for both) cancels, so the interval
    is much narrower than the two scores' own.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs the same problems on both sides, not {len(a)} and {len(b)}")
    return mean_with_interval(np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64), seed)
