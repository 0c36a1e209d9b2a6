"""What the log gets of one step's scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from rewards.score import OUTCOMES, Score

DEAD_SHARE = 0.95
"""Above this share of one verdict the reflection signal tells completions apart no longer."""

MIN_GIVEN = 0.1
"""Share of completions that must give a verdict before the share of the larger one means anything."""


def summarize(groups: Sequence[Sequence[Score]]) -> dict[str, float]:
    """Metrics of one step; `groups[g]` are the scores of problem g's completions. ValueError when there are none.

    Standard deviations divide by n - 1, as the advantage does; a group of one has 0. `*_group_std` is the mean over
    groups. Groups of equal totals are exactly flat, whatever float dust a weighted sum leaves.
    """
    scores = [score for group in groups for score in group]
    if not scores:
        raise ValueError("no scores to summarise")
    totals = [[score.total for score in group] for group in groups if group]
    metrics = {
        "reward/mean": _mean(score.total for score in scores),
        "reward/std": _std([score.total for score in scores]),
        "reward/group_std": _mean(map(_std, totals)),
        "groups/zero_variance": _mean(float(_std(group) == 0.0) for group in totals),
    }
    for name in scores[0].signals:
        metrics[f"signal/{name}"] = _mean(score.signals[name] for score in scores)
        metrics[f"signal/{name}_group_std"] = _mean(
            _std([score.signals[name] for score in group]) for group in groups if group
        )
    outcomes = Counter(score.outcome for score in scores)
    metrics |= {f"outcome/{name}": outcomes[name] / len(scores) for name in OUTCOMES}
    return metrics | _verdicts(scores)


def _verdicts(scores: Sequence[Score]) -> dict[str, float]:
    """The 2 x 2 table of verdict and truth, and the share of the larger verdict among those that gave one."""
    table = Counter((score.outcome == "correct", score.verdict) for score in scores)
    says = {verdict: table[True, verdict] + table[False, verdict] for verdict in ("correct", "wrong", None)}
    given = says["correct"] + says["wrong"]
    shares = {
        "verdict/right_says_correct": table[True, "correct"],
        "verdict/right_says_wrong": table[True, "wrong"],
        "verdict/wrong_says_correct": table[False, "correct"],
        "verdict/wrong_says_wrong": table[False, "wrong"],
        "verdict/none": says[None],
    }
    larger = max(says["correct"], says["wrong"]) / given if given else 0.0
    return {name: count / len(scores) for name, count in shares.items()} | {"verdict/larger_share": larger}


class DeadSignalWatch:
    """Says once when the reflection signal is dead: nearly all verdicts are the same, so it rewards no reflection."""

    def __init__(self) -> None:
        self.said = False

    def __call__(self, metrics: dict[str, float]) -> str | None:
        """The warning the first time `verdict/larger_share` is above DEAD_SHARE, else None."""
        share = metrics.get("verdict/larger_share", 0.0)
        if self.said or share <= DEAD_SHARE or metrics["verdict/none"] > 1.0 - MIN_GIVEN:
            return None
        self.said = True
        larger = (
            "correct"
            if metrics["verdict/right_says_correct"] + metrics["verdict/wrong_says_correct"]
            > 0.5 * (1.0 - metrics["verdict/none"])
            else "wrong"
        )
        return (
            f"{share:.0%} of the reflections that give a verdict say '{larger}' (limit {DEAD_SHARE:.0%}): "
            "the reflection signal is dead, it no longer depends on whether the answer is right"
        )


def _mean(values: Iterable[float]) -> float:
    items = list(values)
    return math.fsum(items) / len(items) if items else 0.0


def _std(values: Sequence[float]) -> float:
    if len(values) < 2 or max(values) == min(values):
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
