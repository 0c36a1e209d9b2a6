"""From a rollout to what the learner learns from: score each completion, compare within each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from grpo.advantage import group_advantages, per_signal_advantages
from grpo.config import Config
from grpo.errors import UserError
from grpo.types import Group, Problem, Sample
from rewards import Reward, Score, make_reward, self_test


def load_reward(config: Config, problems: Sequence[Problem]) -> Reward:
    """The reward that `reward.name` asks for, tested on the problems' ground truths. UserError where it cannot work."""
    c = config.reward
    options = {"model": c.model} if c.name == "hybrid" else {}
    try:
        reward = make_reward(
            c.name,
            weights=(c.alpha, c.beta, c.gamma),
            verifier=c.verifier,
            seed=config.seed,
            workers=c.workers,
            timeout_s=c.timeout_s,
            **options,
        )
        self_test(reward, sorted({problem.ground_truth for problem in problems}))
    except ValueError as error:
        raise UserError(str(error)) from error
    return reward


def decode(tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group]) -> list[list[str]]:
    """The completions' text, without special tokens. For reading and scoring only: what is trained are the ids."""
    return [tokenizer.batch_decode([c.ids for c in g.completions], skip_special_tokens=True) for g in groups]


def score(reward: Reward, groups: Sequence[Group], texts: Sequence[Sequence[str]]) -> list[list[Score]]:
    """[groups][completions] scores. Only the completion is scored: a prompt that shows the tags must not earn them."""
    try:
        flat = reward.score_batch(
            [text for group in texts for text in group],
            [group.problem.ground_truth for group in groups for _ in group.completions],
            [group.problem.prompt for group in groups for _ in group.completions],  # read by a reward model alone
        )
    except ValueError as error:  # a user's own reward that returned something else than it did when it was checked
        raise UserError(str(error)) from error
    scores = iter(flat)
    return [[next(scores) for _ in group.completions] for group in groups]


def compare(
    scores: Sequence[Sequence[Score]],
    weights: dict[str, float],
    how: Literal["std", "no_std", "per_signal"],
) -> torch.Tensor:
    """[groups, completions] advantages. `weights` are the reward's, for the signals that enter its total."""
    if how == "per_signal":
        signals = [[[s.signals[name] for s in group] for group in scores] for name in weights]
        return per_signal_advantages(
            torch.tensor(signals, dtype=torch.float64), torch.tensor(list(weights.values()), dtype=torch.float64)
        )
    totals = torch.tensor([[s.total for s in group] for group in scores], dtype=torch.float64)
    return group_advantages(totals, divide_by_std=how == "std")


def samples(
    groups: Sequence[Group], advantages: torch.Tensor, truncated: Literal["keep", "mask"]
) -> list[list[Sample]]:
    """The rollout as the learner takes it."""
    return [
        [
            Sample(
                group.problem.prompt_ids,
                completion.ids,
                completion.sampler_logprobs,
                advantage,
                trained=truncated == "keep" or completion.finish_reason == "stop",
            )
            for completion, advantage in zip(group.completions, row, strict=True)
        ]
        for group, row in zip(groups, advantages.tolist(), strict=True)
    ]


def completion_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Lengths in tokens, and the shares of truncated and of distinct completions."""
    completions = [completion for group in groups for completion in group.completions]
    lengths = [len(completion.ids) for completion in completions]
    return {
        "completion/tokens_mean": sum(lengths) / len(lengths),
        "completion/tokens_max": max(lengths),
        "completion/truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
        "completion/unique": len({c.ids for c in completions}) / len(completions),
    }
