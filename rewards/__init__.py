"""Rewards: a completion's text and a ground truth in, named signals out. Knows nothing of models or the trainer.

Reading order: score.py (what a reward returns), signals.py (the three signals and their reward), controls.py, hybrid.py
and function.py (other rewards), make.py (a reward by its name and options), verifier.py (which answers reach the
equivalence checker), adapters.py (TRL and verl). equivalence/ decides whether an answer equals a ground truth.

For loading data: `ground_truth_text(value) -> str` (ValueError for anything but text or a number; parses nothing) and
`check_ground_truths(truths, workers=2, timeout_s=5.0, progress=None) -> list[str | None]` (for each truth None, or one
line with the reason why no answer can be graded against it; parses in workers that can be killed).
"""

# ruff: noqa: F401 - what is imported here is what the package offers

from __future__ import annotations

from rewards.equivalence.plain import ground_truth_text
from rewards.make import NAMES, load_reward, make_reward
from rewards.score import (
    DEFAULT_WEIGHTS,
    UNVERIFIED,
    Reward,
    RewardError,
    Row,
    Score,
    right_shares,
    summarize,
    weight_warnings,
    weights_from_env,
)
from rewards.signals import AnswerFrom, MultiSignalMathReward, last_box
from rewards.truths import check_ground_truths
from rewards.verifier import Verifier, verify
