"""The reward this project is about: R = alpha * verify + beta * format + gamma * reflect."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from rewards import tags
from rewards.score import Score
from rewards.verify import Verifier

DEFAULT_WEIGHTS = (1.0, 0.5, 0.5)
SIGNALS = ("verify", "format", "reflect")


class MultiSignalMathReward:
    """Scores one completion by three signals, each 0 or 1.

    verify: the answer equals the ground truth. format: the completion is laid out as asked. reflect: the reflection's
    verdict on the answer is true. Workers are started when the first answer needs one; `close` ends them.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.5,
        gamma: float = 0.5,
        *,
        verifier: Verifier | None = None,
        **verifier_options: Any,
    ) -> None:
        self.weights = dict(zip(SIGNALS, check_weights((alpha, beta, gamma)), strict=True))
        self.verifier = verifier or Verifier(**verifier_options)

    def __call__(self, completion: str, ground_truth: Any) -> Score:
        return self.score_batch([completion], [ground_truth])[0]

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], prompts: Sequence[str] | None = None
    ) -> list[Score]:
        """Scores in order. The prompts are never read: tags and boxes of a prompt earn nothing."""
        layouts = [tags.read(completion) for completion in completions]
        pairs = [(layout.answer, truth) for layout, truth in zip(layouts, ground_truths, strict=True)]
        outcomes = self.verifier.check_batch(pairs)
        return [self._score(layout, outcome) for layout, outcome in zip(layouts, outcomes, strict=True)]

    def _score(self, layout: tags.Layout, outcome: str) -> Score:
        correct = outcome == "correct"
        true_verdict = layout.verdict == ("correct" if correct else "wrong")
        signals = {"verify": float(correct), "format": float(layout.format), "reflect": float(true_verdict)}
        total = sum(self.weights[name] * signals[name] for name in SIGNALS)
        return Score(total, signals, layout.answer, layout.verdict, outcome)

    def cache_hit_rate(self) -> float:
        return self.verifier.cache_hit_rate()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(
                f"this reward keeps no state, but the checkpoint holds {sorted(state)}: another reward's run?"
            )

    def close(self) -> None:
        self.verifier.close()


def check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights as floats; ValueError unless they are three finite numbers >= 0."""
    try:
        numbers = tuple(float(weight) for weight in weights)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError(f"reward weights {weights!r}: need three finite numbers >= 0 (alpha, beta, gamma)")
    return numbers


def weights_from_env(default: Sequence[float] = DEFAULT_WEIGHTS) -> tuple[float, ...]:
    """`REWARD_WEIGHTS="alpha,beta,gamma"` where it is set, else the default; ValueError for anything else."""
    text = os.environ.get("REWARD_WEIGHTS")
    if text is None:
        return check_weights(default)
    try:
        return check_weights(text.replace("_", "?").split(","))  # float() would read "1_0" as ten
    except ValueError:
        raise ValueError(
            f'REWARD_WEIGHTS={text!r}: need three finite numbers >= 0 as "alpha,beta,gamma", for example "1.0,0.5,0.5"'
        ) from None


def weight_warnings(weights: dict[str, float]) -> list[str]:
    """Which unwanted strategy the weights pay for; empty when none. Say these once, at the start."""
    alpha, beta, gamma = (weights.get(name, 0.0) for name in SIGNALS)
    warnings = []
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
