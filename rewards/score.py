"""Reward and Score, the signal weights, and one step's metrics. Imports no other module of the project."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Row = Mapping[str, Any]
"""Further facts about a completion, by name: question, prompt, token ids, and the other columns of its data row"""
OUTCOMES = ("correct", "wrong", "no_answer", "unparsed", "timeout", "over_budget")
"""Outcomes of grading an answer. `no_answer`: missing or empty. `unparsed`: past the length or nesting
limit, or not readable as mathematics. `timeout`: past the limit of processor time or memory for one answer.
`over_budget`: not graded, because the answers before it used the processor time of the whole batch."""

UNVERIFIED = "unverified"
"""The outcome under a user's own reward function, which verifies nothing"""


class RewardError(ValueError):
    """A reward that cannot work as it is set up or called. The message is one line with the cause and the fix."""


@dataclass(frozen=True, slots=True)
class Score:
    """One completion's reward and its parts."""

    total: float
    signals: dict[str, float]
    answer: str | None
    """The text of the answer that was graded, or None"""
    verdict: str | None
    """The reflection's verdict on the answer: "correct", "wrong" or None"""
    outcome: str
    """One of OUTCOMES, or UNVERIFIED"""

    @property
    def verify(self) -> float:
        return self.signals["verify"]

    @property
    def correct(self) -> bool:
        """The answer is right. A task's own scorer may pay a part of `verify` for one that is not."""
        return self.outcome == "correct"


class Reward:
    """Text and ground truth in, signals out. A reward sets `weights` and defines `score_batch`."""

    weights: dict[str, float]
    """Factor of each signal in the total"""
    verifier: Any = None
    """The `rewards.Verifier` that grades the answers, if any"""
    warnings: Sequence[str] = ()
    """Lines to report once, at the start of a run"""

    @property
    def calibration_size(self) -> int:
        """Completions that `calibrate` needs before training; 0 if it is not needed, or no longer."""
        return 0

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], rows: Sequence[Row] | None = None
    ) -> list[Score]:
        """Returns the scores in the order of the completions."""
        raise NotImplementedError

    def __call__(self, completion: str, ground_truth: Any, **row: Any) -> Score:
        return self.score_batch([completion], [ground_truth], [row])[0]

    def self_test(self, row: Row) -> None:
        """Raises RewardError if the reward cannot work on this machine or with data such as this row."""

    def calibrate(self, completions: Sequence[str], rows: Sequence[Row]) -> None:
        """Fits the reward's scale to completions of the untrained policy."""

    def cache_hit_rate(self) -> float:
        """Returns the share of answers whose outcome was already known, since the last call."""
        return self.verifier.cache_hit_rate() if self.verifier else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise RewardError(f"this reward keeps no state, but the checkpoint holds {sorted(state)}")

    def close(self) -> None:
        if self.verifier:
            self.verifier.close()


SIGNALS = ("verify", "format", "reflect")
MAX_WEIGHT = 1e6
DEFAULT_WEIGHTS = (1.0, 0.5, 0.5)
"""alpha, beta, gamma"""


def check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """Returns the weights; RewardError unless they are three numbers from 0 to MAX_WEIGHT."""
    if len(weights) != 3 or not all(0 <= weight <= MAX_WEIGHT for weight in weights):
        raise RewardError(
            f"reward weights {weights}: need three finite numbers >= 0, at most {MAX_WEIGHT:g} (alpha, beta, gamma)"
        )
    return tuple(weights)


def weights_from_env() -> tuple[float, ...]:
    """Returns the weights of `REWARD_WEIGHTS="alpha,beta,gamma"`, or the defaults if it is not set.

    Raises RewardError for any other text.
    """
    text = os.environ.get("REWARD_WEIGHTS", ",".join(map(str, DEFAULT_WEIGHTS)))
    try:
        return check_weights([float(weight) for weight in text.split(",")])
    except ValueError:
        raise RewardError(
            f'REWARD_WEIGHTS={text!r}: need three finite numbers >= 0 as "alpha,beta,gamma", for example "1.0,0.5,0.5"'
        ) from None


def weight_warnings(weights: dict[str, float]) -> list[str]:
    """Returns a line for each unwanted strategy that multi_signal's weights pay for."""
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
    """Returns the metrics of one step; `groups[g]` are the scores of problem g's completions.

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


def right_shares(problems: Sequence[int], groups: Sequence[Sequence[Score]]) -> dict[int, float]:
    """Returns the share of correct answers of each problem; `groups[g]` belongs to `problems[g]`.

    Groups of the same problem count as one. Scores without a verified answer do not count.
    """
    outcomes: dict[int, list[str]] = {}
    for problem, scores in zip(problems, groups, strict=True):
        verified = [score.outcome for score in scores if score.outcome != UNVERIFIED]
        if verified:
            outcomes.setdefault(problem, []).extend(verified)
    return {problem: verified.count("correct") / len(verified) for problem, verified in outcomes.items()}


def _std(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _verdicts(scores: Sequence[Score]) -> dict[str, float]:
    """Returns the 2 x 2 table of verdict and truth, and the majority verdict's share of all given verdicts."""
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
