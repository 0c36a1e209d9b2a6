"""Rewards: a completion's text and a ground truth in, named signals out. Knows nothing of models or the trainer.

Reading order: score.py (what a reward returns), signals.py (the three signals and their reward), controls.py and
hybrid.py (other rewards), verifier.py (which answers reach the equivalence checker), adapters.py (TRL and verl).
equivalence/ answers one question, "is this answer that ground truth?", and can be taken as given.

Where data is loaded: `ground_truth_text(value) -> str` (ValueError for what is neither text nor number; nothing is
parsed) and `check_ground_truths(truths, workers=2, timeout_s=5.0, progress=None) -> list[str | None]`, for each truth
None or one line with the reason why no answer can be graded against it, parsed in workers that can be killed.
"""

# ruff: noqa: F401 - what is imported here is what the package offers

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.controls import CONTROL_WEIGHTS, FunctionReward, RandomReward
from rewards.equivalence.plain import ground_truth_text
from rewards.score import DEFAULT_WEIGHTS, UNVERIFIED, Reward, Score, summarize, weight_warnings, weights_from_env
from rewards.signals import AnswerFrom, MultiSignalMathReward, last_box
from rewards.verifier import Verifier, check_ground_truths, self_test, verify

NAMES = ("multi_signal", "verify_only", "format_only", "random", "hybrid")


def make_reward(
    name: str,
    *,
    weights: Sequence[float] = DEFAULT_WEIGHTS,
    verifier: AnswerFrom = "box",
    seed: int = 0,
    workers: int = 1,
    timeout_s: float = 2.0,
    random_needs_box: bool = False,
    call_limit_s: float | None = None,
    model: str | None = None,
    **options: Any,
) -> Reward:
    """The reward of that name, or a user's own as `package.module:function`.

    `weights` (alpha, beta, gamma) are multi_signal's, `seed` and `random_needs_box` random's, `call_limit_s` a user's
    own function's, `model` and the other `options` (a, b, eps, warmup, offload, ...) hybrid's. `verifier` says what a
    completion's answer is: its last box, its last number, or its last `<answer>` block.
    ValueError for an unknown name or option.
    """
    limits = {"answer_from": verifier, "workers": workers, "timeout_s": timeout_s}
    if options and name != "hybrid":
        raise ValueError(f"reward {name!r} takes no options {sorted(options)}")
    paid = {"multi_signal": weights} | CONTROL_WEIGHTS
    if name in paid:
        return MultiSignalMathReward(*paid[name], **limits)
    if name == "random":
        return RandomReward(seed, random_needs_box, **limits)
    if name == "hybrid":
        from rewards.hybrid import DEFAULT_MODEL, HybridReward  # torch and transformers, only when asked for

        return HybridReward(model or DEFAULT_MODEL, **limits, **options)
    if ":" in name:
        return FunctionReward(name, call_limit_s)
    raise ValueError(f"unknown reward {name!r}: one of {', '.join(NAMES)}, or package.module:function")
