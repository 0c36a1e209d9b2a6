"""These rewards as TRL's `reward_funcs`: `GRPOTrainer(reward_funcs=rewards.trl.multi_signal, ...)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from rewards.multi_signal import MultiSignalMathReward, weights_from_env
from rewards.score import Reward


def reward_func(reward: Reward, column: str = "ground_truth") -> Callable[..., list[float]]:
    """`f(completions, **columns) -> list[float]`; `column` is the data set's column with the ground truths."""

    def total(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any) -> list[float]:
        if column not in columns:
            raise ValueError(f"the data set has no column {column!r} with ground truths, only {sorted(columns)}")
        texts = [_text(completion) for completion in completions]
        asked = None if prompts is None else [_text(prompt) for prompt in prompts]
        return [score.total for score in reward.score_batch(texts, columns[column], asked)]

    total.__name__ = type(reward).__name__  # TRL logs the reward under this name
    return total


def multi_signal(completions: Sequence[Any], **columns: Any) -> list[float]:
    """The default reward, weights from REWARD_WEIGHTS where set, ground truths in the column `ground_truth`."""
    return _default()(completions, **columns)


@cache
def _default() -> Callable[..., list[float]]:
    return reward_func(MultiSignalMathReward(*weights_from_env()))


def _text(message: Any) -> str:
    """A text, or the contents of a conversation's messages."""
    return message if isinstance(message, str) else "".join(part["content"] or "" for part in message)
