"""What flows through the loop: Problem -> Request -> Completion -> Group -> Batch.

The ground floor: this module imports nothing of ours. Token ids travel from the sampler to the learner as they are;
nothing is ever decoded and encoded again, because that can change which tokens the log-probabilities belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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

    @property
    def length(self) -> int:
        """Tokens of prompt and completion together: what a micro-batch's budget is spent on."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(slots=True)
class Batch:
    """A padding-free micro-batch: whole sequences laid end to end. T tokens, N completion tokens, S sequences."""

    input_ids: torch.Tensor
    """[T] long"""
    position_ids: torch.Tensor
    """[T] long, restarting at 0 with each sequence"""
    cu_seqlens: torch.Tensor
    """[S + 1] int32: sequence s holds tokens cu_seqlens[s] .. cu_seqlens[s + 1]"""
    max_seqlen: int
    predictors: torch.Tensor
    """[N] long: the position whose output predicts each completion token (one before it)"""
    targets: torch.Tensor
    """[N] long: the completion tokens, the stop token included when the model produced it"""
    sequence: torch.Tensor
    """[N] long: which of the S sequences a completion token belongs to"""
    advantages: torch.Tensor
    """[N] float: the advantage of the token's completion"""
    weights: torch.Tensor
    """[N] float: the token's share in the loss; sums to one over the whole optimiser step, not over this micro-batch"""
    sampler_logprobs: torch.Tensor
    """[N] float"""
    rows: Sequence[int] = field(default_factory=list)
    """[S] index of each sequence in the optimiser step's list of samples"""

    def to(self, device: torch.device) -> Batch:
        """Copies every tensor; from pinned memory the copies are asynchronous."""
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        }
        return Batch(**moved)
