"""Alarms: figures which show that a run has stopped learning its task."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from statistics import fmean

WINDOW = 5
"""Steps over which an alarm has to hold."""
ENOUGH = 20
"""Reflections on right answers, and on wrong ones, before their rates are compared."""


class Alarms:
    """Reports each failure mode of the last WINDOW steps once, and only where enough was measured to claim it."""

    def __init__(self, completions: int) -> None:
        """completions: of one step."""
        self.completions = completions
        self.rows: deque[Mapping[str, float | None]] = deque(maxlen=WINDOW)
        self.first: Mapping[str, float] = {}
        self.best = -math.inf
        self.reported: set[str] = set()

    def __call__(self, row: Mapping[str, float | None]) -> list[str]:
        self.rows.append(row)
        if len(self.rows) < WINDOW:
            return []
        names = set().union(*self.rows)
        now = defaultdict(float, {name: fmean(row.get(name) or 0.0 for row in self.rows) for name in names})
        self.first = self.first or now
        modes = dict(failure_modes(self.first, now, self.best, WINDOW * self.completions))
        new = [text for name, text in modes.items() if name not in self.reported]
        self.reported |= modes.keys()
        self.best = max(self.best, now["reward/mean"])
        return new


def failure_modes(
    first: Mapping[str, float], now: Mapping[str, float], best: float, completions: int
) -> Iterator[tuple[str, str]]:
    """Name and message of each. `first` and `now` are means over WINDOW steps with `completions` completions in all,
    `best` the highest mean reward before.

    Without verified answers (a user's own reward), equal rewards are reported only if below an earlier mean, or 0 from
    the start.
    """
    reward = now["reward/mean"]
    right = now["outcome/correct"]
    tokens = now["completion/length_mean"]
    before = first["completion/length_mean"]
    if any(now[name] for name in [*now] if name.startswith("outcome/")):
        unsolved = right <= 0.95
        gains = (now[name] - first[name] for name in ("outcome/correct", "signal/verify"))  # the second: partial credit
        improved = max(gains) > 0.05
    else:
        unsolved = reward < best - 1e-6 or reward == first["reward/mean"] == 0
        improved = reward > first["reward/mean"]
    if now["groups/zero_variance"] == 1 and unsolved:
        yield "flat", f"for {WINDOW} steps all rewards of each group were equal, {reward:.3g}: nothing was learned"
    if best >= 0.05 and abs(reward) <= 0.01 * best:
        fix = "start a new run with a lower learner.lr from a checkpoint: --model runs/NAME/checkpoints/step_N"
        yield "fallen", f"the reward fell to 0 after a mean of {best:.2g}: {fix}"
    if tokens <= before / 4 and not improved:
        yield "shrunk", f"completions shrank from {before:.0f} to {tokens:.0f} tokens and earn no more: read a few"
    if ungraded := now["outcome/over_budget"]:
        fix = "raise it or reward.workers, and read a few answers"
        yield "over budget", f"{ungraded:.1%} of the answers were not graded: reward.budget_s was used up; {fix}"
    # Of the right and of the wrong answers: completions with a reflection, and those that it calls correct.
    called_correct = [now[f"verdict/{truth}_says_correct"] for truth in ("right", "wrong")]
    called_wrong = [now[f"verdict/{truth}_says_wrong"] for truth in ("right", "wrong")]
    reflections = [correct + wrong for correct, wrong in zip(called_correct, called_wrong, strict=True)]
    if completions * min(reflections) >= ENOUGH:
        of_right, of_wrong = (part / whole for part, whole in zip(called_correct, reflections, strict=True))
        share = sum(called_correct) / sum(reflections)
        if not 0.05 < share < 0.95 and abs(of_right - of_wrong) <= 0.05:
            verdicts = f"'correct' of {of_right:.0%} of the right and of {of_wrong:.0%} of the wrong answers"
            yield "same verdict", f"the reflection says {verdicts}: the reflection signal is dead"
