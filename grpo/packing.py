"""Completions -> padding-free micro-batches under a token budget.

Sequences are laid end to end and attention is told where each begins (`Segments`), so no token is spent on padding. The
completions of one problem have the same prompt: it is laid down once, and every completion sees it as its prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Literal

import numpy as np
import torch

from grpo.types import Group, Sample

Span = tuple[int, int, int, int]
"""A run of tokens: first token, end, first token of its prefix, end of its prefix."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Who attends to whom in a packed sequence of T tokens: S runs of queries, each with the keys it may see.

    A run sees its own tokens causally and, before them, all of its prefix. Whole sequences have no prefix; completions
    packed behind one copy of their prompt have that prompt as prefix.
    """

    spans: tuple[Span, ...]
    """[S]"""
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
    owners: torch.Tensor
    """[N] long: which completion of this micro-batch the token belongs to"""
    completions: int

    def to(self, device: torch.device) -> Batch:
        return _to(self, device)


def _to(record, device: torch.device):
    """A copy with every tensor on `device`; on a GPU from pinned memory, so that the copies overlap with computing."""

    def move(value):
        if isinstance(value, torch.Tensor):
            return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
        return value.to(device) if isinstance(value, Segments) else value

    return type(record)(**{name: move(getattr(record, name)) for name in record.__dataclass_fields__})


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
    """Micro-batches of at most `token_budget` tokens that hold every sample once.

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
    more of them is found by bisection.
    """
    order = sorted(range(len(samples)), key=lambda i: (samples[i].prompt_ids, len(samples[i].completion_ids)))
    fewest = len(_fill(samples, order, token_budget))
    low, high = 1, token_budget
    while low < high:
        middle = (low + high) // 2
        if len(_fill(samples, order, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return _fill(samples, order, high)


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

    # 2. A run's positions go on where its prefix ends.
    starts, ends, prefix_starts, prefix_ends = np.array(spans).T
    positions = _ranges(prefix_ends - prefix_starts, ends - starts)

    # 3. A token is predicted at the token before it; the first of a completion at the last of its prompt.
    completion = prefix_ends > prefix_starts  # [S] bool: the runs that are completions
    lengths = (ends - starts)[completion]
    predictors = _ranges(starts[completion] - 1, lengths)
    firsts = (np.cumsum(lengths) - lengths)[lengths > 0]
    predictors[firsts] = (prefix_ends[completion] - 1)[lengths > 0]

    # 4. What belongs to a completion is repeated for each of its tokens. float64 costs nothing at a few numbers a
    # token, and keeps the sum of the loss exact in any order.
    return Batch(
        input_ids=torch.tensor(_flat(ids, np.int64)),
        position_ids=torch.tensor(positions),
        segments=segments(spans),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(_flat([sample.completion_ids for sample in samples], np.int64)),
        advantages=torch.tensor(np.repeat([sample.advantage for sample in samples], lengths)).double(),
        weights=torch.tensor(np.repeat(weights, lengths)).double(),
        sampler_logprobs=torch.tensor(_flat([sample.sampler_logprobs for sample in samples], np.float64)),
        slots=torch.tensor(_ranges(np.array(slots), lengths)),
        owners=torch.tensor(np.repeat(np.arange(len(samples)), lengths)),
        completions=len(samples),
    )


def segments(spans: Sequence[Span]) -> Segments:
    """The attention layout of these runs. Empty runs are left out."""
    spans = tuple(span for span in spans if span[1] > span[0])
    starts, ends, prefix_starts, prefix_ends = np.array(spans).T
    queries, prefixes = ends - starts, prefix_ends - prefix_starts
    keys = prefixes + queries
    # A run's keys: its prefix, then its own tokens.
    index = _ranges(np.stack([prefix_starts, starts], 1).ravel(), np.stack([prefixes, queries], 1).ravel())
    return Segments(
        spans=spans,
        cu_queries=torch.tensor(np.append(0, np.cumsum(queries)), dtype=torch.int32),
        cu_keys=torch.tensor(np.append(0, np.cumsum(keys)), dtype=torch.int32),
        key_index=torch.tensor(index) if prefixes.any() else None,
        max_queries=int(queries.max()),
        max_keys=int(keys.max()),
    )


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Consecutive numbers from each start, laid end to end: starts 7, 3 and lengths 2, 3 give 7 8 3 4 5."""
    before = np.cumsum(lengths) - lengths  # how many numbers stand before each range
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def _flat(rows: Sequence[Sequence[float]], dtype: type) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype, sum(map(len, rows)))
