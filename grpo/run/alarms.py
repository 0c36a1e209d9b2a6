"""Alarms: figures which show that a run has stopped learning its task."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from statistics import fmean

WINDOW = 5
"""Steps over which an alarm has to hold."""
ENOUGH = 20
"""Reflections on right answers, and on wrong ones, before their rates are compared."""
Means = dict[str, float]
"""Means over WINDOW steps; 0 for a metric that the run does not have"""


class Alarms:
    """Reports each failure mode of the last WINDOW steps once, and only where enough was measured to claim it."""

    def __init__(self) -> None:
        self.rows: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.first: Means = {}
        self.best = -math.inf
        self.reported: set[str] = set()

    def __call__(self, row: dict[str, float]) -> list[str]:
        self.rows.append(row)
        if len(self.rows) < WINDOW:
            return []
        names = set().union(*self.rows)
        now = defaultdict(float, {name: fmean(row.get(name, 0.0) for row in self.rows) for name in names})
        self.first = self.first or now
        modes = dict(failure_modes(self.first, now, self.best))
        new = [text for name, text in modes.items() if name not in self.reported]
        self.reported |= modes.keys()
        self.best = max(self.best, now["reward/mean"])
        return new


def failure_modes(first: Means, now: Means, best: float) -> Iterator[tuple[str, str]]:
    """Name and message of each. `best` is the highest mean reward of any window before.

    Where no answer was verified (a user's own reward), only the reward itself tells whether a task is solved: rewards
    that are all equal are reported when they are below an earlier mean, or were 0 from the start.
    """
    reward = now["reward/mean"]
    right = now["outcome/correct"]
    verified = any(now[name] for name in [*now] if name.startswith("outcome/"))
    flat = now["groups/zero_variance"] == 1
    if flat and verified and right <= 0.95:
        yield "flat", f"for {WINDOW} steps all rewards of each group were equal: nothing was learned; see outcome/*"
    elif flat and not verified and (reward < best - 1e-6 or reward == first["reward/mean"] == 0):
        yield "flat", f"for {WINDOW} steps all rewards of each group were equal, {reward:.3g}: nothing was learned"
    if best >= 0.05 and abs(reward) <= 0.01 * best:
        yield "fallen", f"the reward fell to 0 after a mean of {best:.2g}: lower learner.lr, or go back to a checkpoint"
    tokens = now["completion/length_mean"]
    before = first["completion/length_mean"]
    improved = right > first["outcome/correct"] + 0.05 if verified else reward > first["reward/mean"]
    if tokens <= before / 4 and not improved:
        gain = "are right no more often" if verified else "earn no more"
        yield "shrunk", f"completions shrank from {before:.0f} to {tokens:.0f} tokens and {gain}: read a few"
    if ungraded := now["outcome/over_budget"]:
        fix = "raise it or reward.workers, and read a few answers"
        yield "over budget", f"{ungraded:.1%} of the answers were not graded: reward.budget_s was used up; {fix}"
    yield from _dead_reflection(now)


def _dead_reflection(now: Means) -> Iterator[tuple[str, str]]:
    """The reflection gives the same verdict on right and wrong answers. Shares are of all completions."""
    right_correct, right_wrong = now["verdict/right_says_correct"], now["verdict/right_says_wrong"]
    wrong_correct, wrong_wrong = now["verdict/wrong_says_correct"], now["verdict/wrong_says_wrong"]
    of_right, of_wrong = right_correct + right_wrong, wrong_correct + wrong_wrong
    completions = WINDOW * now["completion/tokens"] / now["completion/length_mean"]
    if completions * min(of_right, of_wrong) < ENOUGH:
        return
    share_correct = right_correct + wrong_correct
    rates = (right_correct / of_right, wrong_correct / of_wrong)
    if not 0.05 < share_correct / (of_right + of_wrong) < 0.95 and abs(rates[0] - rates[1]) <= 0.05:
        verdicts = f"'correct' of {rates[0]:.0%} of the right and of {rates[1]:.0%} of the wrong answers"
        yield "same verdict", f"the reflection says {verdicts}: the reflection signal is dead"
