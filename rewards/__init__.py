"""Rewards: a completion's text and a ground truth in, named signals out. Knows nothing of models or the trainer."""

from __future__ import annotations

from rewards.multi_signal import MultiSignalMathReward, weight_warnings, weights_from_env
from rewards.registry import NAMES, make_reward
from rewards.score import OUTCOMES, Reward, Score
from rewards.startup import self_test
from rewards.summary import DeadSignalWatch, summarize
from rewards.verify import Verifier, check_ground_truth, last_box  # `rewards.verify` stays the module

__all__ = [
    "NAMES",
    "OUTCOMES",
    "DeadSignalWatch",
    "MultiSignalMathReward",
    "Reward",
    "Score",
    "Verifier",
    "check_ground_truth",
    "last_box",
    "make_reward",
    "self_test",
    "summarize",
    "weight_warnings",
    "weights_from_env",
]
