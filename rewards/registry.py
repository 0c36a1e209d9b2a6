"""Every reward by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.controls import CONTROL_WEIGHTS, FunctionReward, RandomReward
from rewards.multi_signal import DEFAULT_WEIGHTS, MultiSignalMathReward, check_weights
from rewards.score import Reward

NAMES = ("multi_signal", "verify_only", "format_only", "random", "hybrid")


def make_reward(
    name: str,
    *,
    weights: Sequence[float] = DEFAULT_WEIGHTS,
    seed: int = 0,
    workers: int = 1,
    timeout_s: float = 2.0,
    memory_limit_mb: int = 1024,
    model: str | None = None,
    **options: Any,
) -> Reward:
    """The reward of that name, or a user's own as `package.module:function`.

    `weights` (alpha, beta, gamma) are multi_signal's, `seed` is random's, `model` and the other `options` are hybrid's.
    ValueError for an unknown name or option.
    """
    limits = {"workers": workers, "timeout_s": timeout_s, "memory_limit_mb": memory_limit_mb}
    if options and name != "hybrid":
        raise ValueError(f"reward {name!r} takes no options {sorted(options)}")
    if name == "multi_signal":
        return MultiSignalMathReward(*check_weights(weights), **limits)
    if name in CONTROL_WEIGHTS:
        return MultiSignalMathReward(*CONTROL_WEIGHTS[name], **limits)
    if name == "random":
        return RandomReward(seed, **limits)
    if name == "hybrid":
        from rewards.hybrid import DEFAULT_MODEL, HybridReward  # torch and transformers, only when asked for

        return HybridReward(model or DEFAULT_MODEL, **limits, **options)
    if ":" in name:
        return FunctionReward(name)
    raise ValueError(f"unknown reward {name!r}: one of {', '.join(NAMES)}, or package.module:function")
