"""These rewards in other trainers.

TRL: `GRPOTrainer(reward_funcs=rewards.adapters.multi_signal, ...)`.
verl 0.9: `reward.custom_reward_function.path=rewards/adapters.py reward.custom_reward_function.name=compute_score`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from rewards.score import Reward, RewardError, weights_from_env
from rewards.signals import MultiSignalMathReward


def reward_func(reward: Reward, column: str = "ground_truth") -> Callable[..., list[float]]:
    """Returns `f(completions, **columns) -> list[float]` for TRL; `column` holds the ground truths."""

    def total(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any) -> list[float]:
        if column not in columns:
            raise RewardError(f"the data set has no column {column!r} with ground truths, only {sorted(columns)}")
        texts = [_text(completion) for completion in completions]
        rows = None if prompts is None else [{"question": _text(prompt)} for prompt in prompts]
        return [score.total for score in reward.score_batch(texts, columns[column], rows)]

    total.__name__ = type(reward).__name__  # TRL logs the reward under this name
    return total


def multi_signal(completions: Sequence[Any], **columns: Any) -> list[float]:
    """The default reward for TRL. Weights come from REWARD_WEIGHTS, ground truths from the column `ground_truth`."""
    return reward_func(_default())(completions, **columns)


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **_: Any
) -> dict[str, float]:
    """The default reward for verl: `score` is the total, `acc` verl's accuracy; verl logs the signals beside them."""
    score = _default()(solution_str, ground_truth)
    return {"score": score.total, "acc": float(score.correct), **score.signals}


@cache
def _default() -> MultiSignalMathReward:
    return MultiSignalMathReward(*weights_from_env())


def _text(message: Any) -> str:
    """Returns a text unchanged; joins the contents of a conversation's messages."""
    return message if isinstance(message, str) else "".join(part["content"] or "" for part in message)
