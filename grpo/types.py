"""What flows through the loop: Problem -> Request -> Completion -> Group -> Batch.

The ground floor: this module imports nothing of ours. Token ids travel from the sampler to the learner as they are;
nothing is ever decoded and encoded again, because that can change which tokens the log-probabilities belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a data set, rendered and tokenised for the policy."""

    index: int
    """Row number in the data set, from 0. Part of the sampling seed; groups are never identified by their text."""
    prompt: str
    """The rendered chat prompt, special tokens included, as the model sees it."""
    prompt_ids: tuple[int, ...]
    ground_truth: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """`n` completions of one prompt. Completion i is drawn with `seed + i`, whatever else is in the batch."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What the sampler wrote: ids include the stop token when the model produced one."""

    ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    """[tokens] log-probability of each id under the distribution it was drawn from (temperature applied)."""
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one problem: the set within which rewards are compared."""

    problem: Problem
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion as the learner needs it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    advantage: float
    trained: bool = True
    """False: counted in its group's statistics, but without gradient (learner.truncated: mask)"""

    @property
    def length(self) -> int:
        """Tokens of prompt and completion together: what a micro-batch's budget is spent on."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class Segments:
    """Who attends to whom in a packed sequence of T tokens: S runs of queries, each with the keys it may see.

    A run sees its own tokens causally and, before them, all of its prefix. Whole sequences have no prefix; completions
    packed behind one copy of their prompt have that prompt as prefix.
    """

    spans: tuple[tuple[int, int, int, int], ...]
    """[S] (first token, end, first prefix token, prefix end)"""
    cu_queries: torch.Tensor
    """[S + 1] int32: run s holds queries cu_queries[s] .. cu_queries[s + 1]"""
    cu_keys: torch.Tensor
    """[S + 1] int32: the same for the gathered keys"""
    key_index: torch.Tensor | None
    """[K] long: tokens whose keys and values are gathered, prefix first; None when no run has a prefix (K = T)"""
    max_queries: int
    max_keys: int

    def to(self, device: torch.device) -> Segments:
        return _to(self, device)


@dataclass(frozen=True, slots=True)
class Batch:
    """A padding-free micro-batch: sequences laid end to end. T tokens, N completion tokens."""

    input_ids: torch.Tensor
    """[T] long"""
    position_ids: torch.Tensor
    """[T] long: each token's position in its own sequence"""
    segments: Segments
    predictors: torch.Tensor
    """[N] long: the token whose output predicts each completion token (the one before it)"""
    targets: torch.Tensor
    """[N] long: the completion tokens, the stop token included when the model produced it"""
    advantages: torch.Tensor
    """[N] float: the advantage of the token's completion"""
    weights: torch.Tensor
    """[N] float: the token's share in the loss, fixed over the whole optimiser step and not by this micro-batch"""
    sampler_logprobs: torch.Tensor
    """[N] float"""
    slots: torch.Tensor
    """[N] long: each token's place among all completion tokens of the optimiser step, in the order of its samples"""

    def to(self, device: torch.device) -> Batch:
        return _to(self, device)


def _to(record, device: torch.device):
    """A copy with every tensor on `device`; on a GPU from pinned memory, so that the copies overlap with computing."""

    def move(value):
        if isinstance(value, torch.Tensor):
            return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
        return value.to(device) if isinstance(value, Segments) else value

    return type(record)(**{name: move(getattr(record, name)) for name in record.__dataclass_fields__})
