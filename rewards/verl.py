"""The multi-signal reward for verl: `custom_reward_function.path=rewards/verl.py`, `...name=compute_score`."""

from __future__ import annotations

from functools import cache
from typing import Any

from rewards.multi_signal import MultiSignalMathReward, weights_from_env


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **_: Any
) -> dict[str, float]:
    """`score` is the total, `acc` what verl calls accuracy; the signals are logged beside them."""
    score = _reward()(solution_str, ground_truth)
    return {"score": score.total, "acc": score.verify, **score.signals}


@cache
def _reward() -> MultiSignalMathReward:
    return MultiSignalMathReward(*weights_from_env())
