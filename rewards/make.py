"""A reward by its name and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.controls import CONTROL_WEIGHTS, RandomReward
from rewards.function import load_function_reward
from rewards.score import DEFAULT_WEIGHTS, Reward, RewardError, Row, weight_warnings
from rewards.signals import AnswerFrom, MultiSignalMathReward

NAMES = ("multi_signal", *CONTROL_WEIGHTS, "random", "hybrid")


def make_reward(
    name: str,
    *,
    alpha: float = DEFAULT_WEIGHTS[0],
    beta: float = DEFAULT_WEIGHTS[1],
    gamma: float = DEFAULT_WEIGHTS[2],
    verifier: AnswerFrom = "box",
    parallel: int = 1,
    call_limit_s: float | None = None,
    random: Mapping[str, Any] | None = None,
    hybrid: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    **limits: Any,
) -> Reward:
    """Returns the reward of that name, or a user's own as `package.module:function`.

    The arguments are the settings of the section `reward`. alpha, beta and gamma are the weights of multi_signal;
    `verifier` chooses how answers are found, and `limits` are the options of the `Verifier` that grades them;
    `parallel` and `call_limit_s` apply to a user's own function; `random` and `hybrid` are options of these rewards.
    Raises RewardError for an unknown name.
    """
    limits["answer_from"] = verifier
    if name == "multi_signal":
        reward = MultiSignalMathReward(alpha, beta, gamma, **limits)
        reward.warnings = weight_warnings(reward.weights)
        return reward
    if name in CONTROL_WEIGHTS:
        return MultiSignalMathReward(*CONTROL_WEIGHTS[name], **limits)
    if name == "random":
        return RandomReward(seed, **random or {}, **limits)
    if name == "hybrid":
        from rewards.hybrid import HybridReward  # imports torch and transformers

        return HybridReward(device=device, **hybrid or {}, **limits)
    if ":" in name:
        return load_function_reward(name, parallel, call_limit_s)
    raise RewardError(f"unknown reward {name!r}: one of {', '.join(NAMES)}, or package.module:function")


def load_reward(row: Row, seed: int, device: str, **settings: Any) -> Reward:
    """Returns a run's reward after its self-test; `settings` is the section `reward`.

    `row` is that of the first problem, on which a user's own function is tried.
    """
    reward = make_reward(seed=seed, device=device, **settings)
    reward.self_test(row)
    return reward
