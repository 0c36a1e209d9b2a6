"""What flows through the loop: Problem -> Request -> Completion -> Group -> Sample.

The ground floor: this module imports nothing of ours. Token ids travel from the sampler to the learner as they are;
nothing is ever decoded and encoded again, because that can change which tokens the log-probabilities belong to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
    extra: dict[str, str | int | float | bool] = field(default_factory=dict, compare=False)
    """The row's other columns that hold text or a number, such as its difficulty; they go into problems.jsonl"""
    chat: list[dict[str, str]] = field(default_factory=list, compare=False)
    """The messages that `prompt` was rendered from, the system message included"""


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
