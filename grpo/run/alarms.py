"""Warnings about a run that has stopped learning what it should."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from statistics import fmean

WINDOW = 5
"""Steps over which an alarm has to hold."""
ENOUGH = 20
"""Reflections on right answers, and on wrong ones, before their rates are compared."""
VERDICTS = tuple(f"verdict/{truth}_says_{word}" for truth in ("right", "wrong") for word in ("correct", "wrong"))
AMOUNTS = ("reward/mean", "outcome/correct", "groups/zero_variance", "completion/tokens", "completion/length_mean")
WATCHED = AMOUNTS + VERDICTS


class Alarms:
    """Says what went wrong over the last WINDOW steps, each thing once, and only where enough was seen to claim it."""

    def __init__(self) -> None:
        self.rows: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.first: dict[str, float] = {}
        """Means over the first WINDOW steps."""
        self.best, self.said = 0.0, set()

    def __call__(self, row: dict[str, float]) -> list[str]:
        self.rows.append(row)
        if len(self.rows) < WINDOW:
            return []
        now = {name: fmean(row[name] for row in self.rows) for name in WATCHED}
        self.first = self.first or now
        found = dict(diseases(self.first, now, self.best))
        new = [text for name, text in found.items() if name not in self.said]
        self.said |= found.keys()
        self.best = max(self.best, now["reward/mean"])
        return new


def diseases(first: dict[str, float], now: dict[str, float], best: float) -> Iterator[tuple[str, str]]:
    """Name, and what to say. `best` is the highest mean reward of any window before."""
    right, reward = now["outcome/correct"], now["reward/mean"]
    if now["groups/zero_variance"] == 1 and right <= 0.95:
        yield "flat", f"for {WINDOW} steps all rewards of each group were equal: nothing was learned; see outcome/*"
    if best >= 0.05 and abs(reward) <= 0.01 * best:
        yield "fallen", f"the reward fell to 0 after a mean of {best:.2g}: lower learner.lr, or go back to a checkpoint"
    tokens, before = now["completion/length_mean"], first["completion/length_mean"]
    if tokens <= before / 4 and right <= first["outcome/correct"] + 0.05:
        shrank = f"completions shrank from {before:.0f} to {tokens:.0f} tokens"
        yield "shrunk", f"{shrank} and are right no more often: read a few"
    # The reflection signal: shares of the completions, by what is true and what the reflection says.
    right_correct, right_wrong, wrong_correct, wrong_wrong = (now[name] for name in VERDICTS)
    of_right, of_wrong = right_correct + right_wrong, wrong_correct + wrong_wrong
    if WINDOW * now["completion/tokens"] / tokens * min(of_right, of_wrong) >= ENOUGH:
        all_correct, rates = right_correct + wrong_correct, (right_correct / of_right, wrong_correct / of_wrong)
        if not 0.05 < all_correct / (of_right + of_wrong) < 0.95 and abs(rates[0] - rates[1]) <= 0.05:
            said = f"'correct' of {rates[0]:.0%} of the right and of {rates[1]:.0%} of the wrong answers"
            yield "same verdict", f"the reflection says {said}: the reflection signal is dead"
