"""Completions -> padding-free micro-batches under a token budget.

Sequences are laid end to end and attention is told where each begins (`Segments`), so no token is spent on padding. The
completions of one problem have the same prompt: it is laid down once, and every completion sees it as its prefix.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, chain
from typing import Literal, Self

import numpy as np
import torch

from grpo.types import Group, Sample

Span = tuple[int, int, int, int]
"""A run of tokens: first token, end, first token of its prefix, end of its prefix."""


class _Tensors:
    __slots__ = ()

    def to(self, device: torch.device) -> Self:
        """A copy with every tensor on `device`; on a GPU from pinned memory, so that copies overlap with work."""

        def move(value):
            if isinstance(value, torch.Tensor):
                return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
            return value.to(device) if isinstance(value, _Tensors) else value

        return type(self)(**{field.name: move(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, slots=True)
class Segments(_Tensors):
    """Who attends to whom in a packed sequence of T tokens: S runs of queries, each with the keys it may see.

    A run sees its own tokens causally and, before them, all of its prefix. A prompt is a run without a prefix, and the
    prefix of the completions behind it.
    """

    spans: tuple[Span, ...]
    """[S]"""
    cu_queries: torch.Tensor
    """[S + 1] int32: run s holds queries cu_queries[s] .. cu_queries[s + 1]"""
    cu_keys: torch.Tensor
    """[S + 1] int32: the same for the gathered keys"""
    key_index: torch.Tensor
    """[K] long: tokens whose keys and values are gathered, a run's prefix first"""
    max_queries: int
    max_keys: int


@dataclass(frozen=True, slots=True)
class Batch(_Tensors):
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
    owners: torch.Tensor
    """[N] long: which completion of this micro-batch the token belongs to"""
    completions: int


def samples(
    groups: Sequence[Group], advantages: torch.Tensor, truncated: Literal["keep", "mask"]
) -> list[list[Sample]]:
    """A rollout as the learner takes it. `advantages` is [groups, completions]."""
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


def sequence_length(sample: Sample) -> int:
    """Tokens of prompt and completion together: what a micro-batch's budget is spent on."""
    return len(sample.prompt_ids) + len(sample.completion_ids)


def pack(samples: Sequence[Sample], weights: Sequence[float], token_budget: int) -> list[Batch]:
    """Micro-batches of at most `token_budget` tokens that hold every completion token once.

    `weights[i]` is what each token of sample i weighs in the loss. A sequence longer than the budget goes alone.
    """
    slots = [0, *accumulate(len(sample.completion_ids) for sample in samples)]
    return [
        _lay_out([samples[i] for i in rows], [weights[i] for i in rows], [slots[i] for i in rows])
        for rows in assign(samples, token_budget)
    ]


def assign(samples: Sequence[Sample], token_budget: int) -> list[list[int]]:
    """Indices of the samples in each micro-batch: equal prompts together, and the batches about equally full.

    Filling up to the budget gives the fewest batches but leaves a short last one; the smallest capacity that needs no
    more of them is found by bisection. Empty completions are left out.
    """
    written = [i for i, sample in enumerate(samples) if sample.completion_ids]
    order = sorted(written, key=lambda i: (samples[i].prompt_ids, len(samples[i].completion_ids)))
    fewest = len(_fill(samples, order, token_budget))
    smaller = range(1, token_budget)
    capacity = 1 + bisect_left(smaller, True, key=lambda tokens: len(_fill(samples, order, tokens)) <= fewest)
    return _fill(samples, order, capacity)


def _fill(samples: Sequence[Sample], order: Sequence[int], capacity: int) -> list[list[int]]:
    batches: list[list[int]] = []
    used = 0
    for i in order:
        sample = samples[i]
        shared = batches and samples[batches[-1][-1]].prompt_ids == sample.prompt_ids
        cost = len(sample.completion_ids) if shared else sequence_length(sample)
        if batches and used + cost <= capacity:
            batches[-1].append(i)
            used += cost
        else:
            batches.append([i])
            used = sequence_length(sample)
    return batches


def _lay_out(samples: Sequence[Sample], weights: Sequence[float], slots: Sequence[int]) -> Batch:
    """One micro-batch. `slots[i]` is where sample i's tokens begin among those of the optimiser step."""
    # 1. Lay every prompt down once and its completions behind it. A prompt's run has an empty prefix.
    ids: list[tuple[int, ...]] = []
    spans: list[Span] = []
    end = 0
    for i, sample in enumerate(samples):
        if i == 0 or sample.prompt_ids != samples[i - 1].prompt_ids:
            prompt_start, prompt_end = end, end + len(sample.prompt_ids)
            ids.append(sample.prompt_ids)
            spans.append((prompt_start, prompt_end, prompt_start, prompt_start))
            end = prompt_end
        start, end = end, end + len(sample.completion_ids)
        ids.append(sample.completion_ids)
        spans.append((start, end, prompt_start, prompt_end))
    starts, ends, prefix_starts, prefix_ends = np.array(spans).T
    queries, prefixes = ends - starts, prefix_ends - prefix_starts  # [S] tokens of each

    # 2. A run's keys: its prefix, then its own tokens.
    keys = _ranges(np.stack([prefix_starts, starts], 1).ravel(), np.stack([prefixes, queries], 1).ravel())
    segments = Segments(
        spans=tuple(spans),
        cu_queries=torch.tensor(np.append(0, np.cumsum(queries)), dtype=torch.int32),
        cu_keys=torch.tensor(np.append(0, np.cumsum(prefixes + queries)), dtype=torch.int32),
        key_index=torch.tensor(keys),
        max_queries=int(queries.max()),
        max_keys=int((prefixes + queries).max()),
    )

    # 3. A token is predicted at the token before it; the first of a completion at the last of its prompt.
    completion = prefixes > 0  # [S] bool: the runs that are completions
    lengths = queries[completion]
    predictors = _ranges(starts[completion] - 1, lengths)
    predictors[np.cumsum(lengths) - lengths] = prefix_ends[completion] - 1

    # 4. What belongs to a completion is repeated for each of its tokens. float64 costs nothing at a few numbers a
    # token, and keeps the sum of the loss exact in any order.
    return Batch(
        input_ids=torch.tensor(_flat(ids, np.int64)),
        position_ids=torch.tensor(_ranges(prefixes, queries)),  # a run's go on where its prefix ends
        segments=segments,
        predictors=torch.tensor(predictors),
        targets=torch.tensor(_flat([sample.completion_ids for sample in samples], np.int64)),
        advantages=torch.tensor(np.repeat([sample.advantage for sample in samples], lengths)).double(),
        weights=torch.tensor(np.repeat(weights, lengths)).double(),
        sampler_logprobs=torch.tensor(_flat([sample.sampler_logprobs for sample in samples], np.float64)),
        slots=torch.tensor(_ranges(np.array(slots), lengths)),
        owners=torch.tensor(np.repeat(np.arange(len(samples)), lengths)),
        completions=len(samples),
    )


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Consecutive numbers from each start, laid end to end: starts 7, 3 and lengths 2, 3 give 7 8 3 4 5."""
    before = np.cumsum(lengths) - lengths  # how many numbers stand before each range
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def _flat(rows: Sequence[Sequence[float]], dtype: type) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype, sum(map(len, rows)))
