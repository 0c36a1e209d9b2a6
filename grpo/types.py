"""The data of the loop: Problem -> Request -> Completion -> Group -> Sample.

This module imports no other module of the project. Token ids go from the sampler to the learner unchanged: decoding and
encoding them again could give other tokens than those that were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a data set, rendered and tokenised for the policy."""

    index: int
    """Row number in the data set, from 0. Identifies the problem (its text does not); part of its sampling seed."""
    prompt: str
    """The rendered chat prompt, special tokens included, as the model sees it."""
    prompt_ids: tuple[int, ...]
    ground_truth: str
    source: str = ""
    extra: dict[str, str | int | float | bool] = field(default_factory=dict, compare=False)
    """The row's other columns that hold text or a number, such as its difficulty; they go into problems.jsonl"""
    chat: list[dict[str, str]] = field(default_factory=list, compare=False)
    """The messages that `prompt` was rendered from, the system message included"""


@dataclass(frozen=True, slots=True)
class Request:
    """`n` completions of one prompt. Completion i is drawn with `seed + i` and does not depend on the batch."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a prompt. `ids` include the stop token if the model produced one."""

    ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    """[tokens] log-probability of each id under the distribution it was drawn from (temperature applied)."""
    finish_reason: FinishReason
    mask: tuple[bool, ...] | None = None
    """[tokens] False for tokens that the model did not write, such as a tool's output. None: it wrote all of them."""


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one problem: the set within which rewards are compared."""

    problem: Problem
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion for the learner."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    advantage: float
    mask: tuple[bool, ...] | None = None
    """[tokens] False for tokens that are not trained; later tokens attend to them. None: every token is trained."""

    @property
    def trained(self) -> Sequence[int]:
        """Positions of the trained tokens within the completion. Raises ValueError for a mask of another length."""
        positions = range(len(self.completion_ids))
        if self.mask is None:
            return positions
        return [position for position, trained in zip(positions, self.mask, strict=True) if trained]
