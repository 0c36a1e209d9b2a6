"""What a reward returns, and what every reward can do. Ground floor of this package: imports nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

OUTCOMES = ("correct", "wrong", "no_answer", "unparsed", "timeout")
"""What became of the answer. `unparsed`: past the length or nesting limit, or not readable as mathematics.
`timeout`: the wall-clock or memory limit of its worker."""

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

    @property
    def format(self) -> float:
        return self.signals["format"]

    @property
    def reflect(self) -> float:
        return self.signals["reflect"]


@runtime_checkable
class Reward(Protocol):
    """Text and ground truth in, signals out."""

    weights: dict[str, float]
    """What each signal is multiplied with in the total"""

    def __call__(self, completion: str, ground_truth: Any) -> Score: ...

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], prompts: Sequence[str] | None = None
    ) -> list[Score]:
        """Scores in the order of the completions. Only a reward model reads the prompts (see `hybrid`)."""
        ...

    def cache_hit_rate(self) -> float:
        """Share of answers whose verdict was already known, since the last call of this function."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...
