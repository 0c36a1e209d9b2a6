"""What a reward is and returns, its weights, and what the log gets of one step's scores. Imports nothing of ours."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

OUTCOMES = ("correct", "wrong", "no_answer", "unparsed", "timeout")
"""What became of the answer. `unparsed`: past the length or nesting limit, or not readable as mathematics.
`timeout`: past the limit of processor time or memory of its worker."""

UNVERIFIED = "unverified"
"""The outcome where nothing verifies: a reward function of the user's own."""


@dataclass(frozen=True, slots=True)
class Score:
    """One completion's reward, and how it came about."""

    total: float
    signals: dict[str, float]
    answer: str | None
    """The text in the box that counted, or None"""
    verdict: str | None
    """What the reflection says of the answer: "correct", "wrong" or None"""
    outcome: str
    """One of OUTCOMES, or UNVERIFIED"""

    @property
    def verify(self) -> float:
        return self.signals["verify"]


class Reward:
    """Text and ground truth in, signals out. A reward sets `weights` and defines `score_batch`."""

    weights: dict[str, float]
    """What each signal is multiplied with in the total"""
    verifier: Any = None
    """The `rewards.Verifier` that it asks, if any"""

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], questions: Sequence[str] | None = None
    ) -> list[Score]:
        """Scores in the order of the completions. Only a reward model reads the questions (see `hybrid`)."""
        raise NotImplementedError

    def __call__(self, completion: str, ground_truth: Any, question: str = "") -> Score:
        return self.score_batch([completion], [ground_truth], [question])[0]

    def cache_hit_rate(self) -> float:
        """Share of answers whose verdict was already known, since the last call of this function."""
        return self.verifier.cache_hit_rate() if self.verifier else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"this reward keeps no state, but the checkpoint holds {sorted(state)}")

    def close(self) -> None:
        if self.verifier:
            self.verifier.close()


SIGNALS = ("verify", "format", "reflect")
MAX_WEIGHT = 1e6
DEFAULT_WEIGHTS = (1.0, 0.5, 0.5)
"""alpha, beta, gamma"""


def check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """The same; ValueError unless they are three numbers from 0 to MAX_WEIGHT."""
    if len(weights) != 3 or not all(0 <= weight <= MAX_WEIGHT for weight in weights):
        raise ValueError(
            f"reward weights {weights}: need three finite numbers >= 0, at most {MAX_WEIGHT:g} (alpha, beta, gamma)"
        )
    return tuple(weights)


def weights_from_env() -> tuple[float, ...]:
    """`REWARD_WEIGHTS="alpha,beta,gamma"` where it is set, else the default; ValueError for anything else."""
    text = os.environ.get("REWARD_WEIGHTS")
    if text is None:
        return DEFAULT_WEIGHTS
    try:
        return check_weights([float(weight) for weight in text.split(",")])
    except ValueError:
        raise ValueError(
            f'REWARD_WEIGHTS={text!r}: need three finite numbers >= 0 as "alpha,beta,gamma", for example "1.0,0.5,0.5"'
        ) from None


def weight_warnings(weights: dict[str, float]) -> list[str]:
    """Which unwanted strategy the weights pay for; empty when none. Say these once, at the start."""
    alpha, beta, gamma = (weights.get(name, 0.0) for name in SIGNALS)
    warnings = []
    if weights and not any(weights.values()):
        warnings.append("all reward weights are 0: every completion earns the same and nothing is learned. Raise one.")
    if gamma >= alpha and gamma > 0:
        warnings.append(
            f"gamma {gamma:g} >= alpha {alpha:g}: failing on purpose and saying 'wrong' pays {gamma:g}, no less than a "
            f"right answer ({alpha:g}). Lower gamma below alpha."
        )
    if beta + gamma > alpha and beta + gamma > 0:
        warnings.append(
            f"beta + gamma {beta + gamma:g} > alpha {alpha:g}: a well-formed wrong answer that admits it outranks "
            "a right answer without the format. Lower beta or gamma."
        )
    return warnings


def summarize(groups: Sequence[Sequence[Score]]) -> dict[str, float]:
    """Metrics of one step; `groups[g]` are the scores of problem g's completions.

    Standard deviations divide by n - 1, as the advantage does; a group of one has 0. `*_group_std` is the mean over
    groups. `statistics.stdev` computes in fractions, so equal totals are exactly flat.
    """
    scores = [score for group in groups for score in group]
    metrics = {
        "reward/mean": fmean(score.total for score in scores),
        "reward/std": _std([score.total for score in scores]),
        "reward/group_std": fmean(_std([score.total for score in group]) for group in groups),
    }
    for name in scores[0].signals:
        metrics[f"signal/{name}"] = fmean(score.signals[name] for score in scores)
        metrics[f"signal/{name}_group_std"] = fmean(_std([score.signals[name] for score in group]) for group in groups)
    outcomes = Counter(score.outcome for score in scores)
    metrics |= {f"outcome/{name}": outcomes[name] / len(scores) for name in OUTCOMES}
    return metrics | _verdicts(scores)


def _std(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _verdicts(scores: Sequence[Score]) -> dict[str, float]:
    """The 2 x 2 table of verdict and truth, and the share of the larger verdict among those that gave one."""
    table = Counter((score.outcome == "correct", score.verdict) for score in scores)
    given = Counter(score.verdict for score in scores if score.verdict)
    metrics = {
        "verdict/none": (len(scores) - given.total()) / len(scores),
        "verdict/majority_share": max(given.values(), default=0) / max(given.total(), 1),
    }
    for word in ("correct", "wrong"):
        metrics[f"verdict/right_says_{word}"] = table[True, word] / len(scores)
        metrics[f"verdict/wrong_says_{word}"] = table[False, word] / len(scores)
    return metrics
