"""Accuracy on a list of problems: what train.py measures on the validation half while it trains."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo.rollout import Engine, Sampling
from grpo.types import Problem, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rewards import Reward, Score


def problem_seed(seed: int, index: int) -> int:
    """The sampling seed of one problem: 48 bits that depend on the row, not on what else is evaluated beside it."""
    return int.from_bytes(hashlib.blake2b(f"evaluate/{seed}/{index}".encode(), digest_size=6).digest())


def evaluate_problems(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    reward: Reward,
    sampling: Sampling,
    seed: int,
) -> dict[str, float]:
    """One completion a problem, scored with the run's own reward. The engine has already been synced.

    Returns shares in [0, 1], see `summarise`. `sampling.temperature` 0 is the greedy figure, 1 the sampled one.
    """
    if not problems:
        raise ValueError("no problems to evaluate: the list is empty")
    requests = [Request(problem.prompt_ids, n=1, seed=problem_seed(seed, problem.index)) for problem in problems]
    completions = [group[0] for group in engine.generate(requests, sampling)]
    texts = [tokenizer.decode(completion.ids, skip_special_tokens=True) for completion in completions]
    return summarise(reward.score_batch(texts, [problem.ground_truth for problem in problems]))


def summarise(scores: Sequence[Score]) -> dict[str, float]:
    """Shares over all completions: a missing verdict counts as not accurate, so that silence never looks good.

    accuracy: the last complete box holds the answer. format_rate: the reward's format signal, or the share with a
    complete box where the reward has no such signal. verdict_accuracy: the reflection's verdict agrees with the truth.
    wrong_verdict_rate: the verdict says "wrong", whatever the truth.
    """
    counts = {
        "accuracy": sum(score.outcome == "correct" for score in scores),
        "format_rate": sum(score.signals.get("format", float(score.answer is not None)) for score in scores),
        "verdict_accuracy": sum(
            score.verdict is not None and (score.verdict == "correct") == (score.outcome == "correct")
            for score in scores
        ),
        "wrong_verdict_rate": sum(score.verdict == "wrong" for score in scores),
    }
    return {name: count / len(scores) for name, count in counts.items()}
