"""Control rewards: they log the same signals and pay for something else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rewards.score import SIGNALS, RewardError, Row, Score
from rewards.signals import MultiSignalMathReward, one_box

CONTROL_WEIGHTS = {"verify_only": (1.0, 0.0, 0.0), "format_only": (0.0, 1.0, 0.0)}
"""Weights of the controls that pay for one signal; all three signals are logged"""


class RandomReward(MultiSignalMathReward):
    """Pays 0 or 1 by a fair coin that does not depend on the answer: it teaches nothing that the model did not know.

    `needs_box`: pays only completions with exactly one box, so that the format is still rewarded (as in arXiv
    2506.10947). The same seed, texts and order give the same coins, also after a resume: `state_dict` holds the number
    of tosses.
    """

    def __init__(self, seed: int = 0, needs_box: bool = False, **verifier_options: Any) -> None:
        super().__init__(0.0, 0.0, 0.0, **verifier_options)
        self.weights = {"random": 1.0} | dict.fromkeys(SIGNALS, 0.0)
        self.seed = seed
        self.needs_box = needs_box
        self.tossed = 0

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], rows: Sequence[Row] | None = None
    ) -> list[Score]:
        scores = []
        for text, score in zip(completions, super().score_batch(completions, ground_truths, rows), strict=True):
            drawn = f"{self.seed} {self.tossed} ".encode() + text.encode("utf-8", "surrogatepass")
            self.tossed += 1
            heads = hashlib.sha256(drawn).digest()[0] & 1
            coin = float(heads and (not self.needs_box or one_box(text)))
            scores.append(replace(score, total=coin, signals={"random": coin, **score.signals}))
        return scores

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "tossed": self.tossed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("seed") != self.seed:
            raise RewardError(f"random reward: seed {self.seed}, but the checkpoint was made with {state.get('seed')}")
        self.tossed = state["tossed"]
