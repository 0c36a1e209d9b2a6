"""Completions -> padding-free micro-batches under a token budget.

Sequences are laid end to end and attention is told where each begins (`Segments`), so no token is spent on padding. The
completions of one problem have the same prompt: it is laid down once, and every completion sees it as its prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch

from grpo.types import Group, Sample


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
        for rows in plan(samples, token_budget)
    ]


def plan(samples: Sequence[Sample], token_budget: int) -> list[list[int]]:
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
    ids: list[int] = []
    positions: list[int] = []
    spans: list[tuple[int, int, int, int]] = []
    predictors: list[int] = []
    columns: dict[str, list] = {name: [] for name in ("targets", "advantages", "weights", "sampler_logprobs", "slots")}
    prompt: tuple[int, ...] | None = None
    prompt_start = prompt_end = 0
    for sample, weight, slot in zip(samples, weights, slots, strict=True):
        if sample.prompt_ids != prompt:
            prompt, prompt_start = sample.prompt_ids, len(ids)
            prompt_end = prompt_start + len(prompt)
            spans.append((prompt_start, prompt_end, prompt_start, prompt_start))
            ids += prompt
            positions += range(len(prompt))
        start, length = len(ids), len(sample.completion_ids)
        spans.append((start, start + length, prompt_start, prompt_end))
        ids += sample.completion_ids
        positions += range(len(prompt), len(prompt) + length)
        predictors += [prompt_end - 1, *range(start, start + length - 1)][:length]
        columns["targets"] += sample.completion_ids
        columns["sampler_logprobs"] += sample.sampler_logprobs
        columns["advantages"] += [sample.advantage] * length
        columns["weights"] += [weight] * length
        columns["slots"] += range(slot, slot + length)
    # float64 costs nothing at a few numbers a token, and keeps the sum of the loss exact in any order.
    kinds = {"targets": torch.long, "slots": torch.long}
    return Batch(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        segments=segments(spans),
        predictors=torch.tensor(predictors, dtype=torch.long),
        **{name: torch.tensor(column, dtype=kinds.get(name, torch.float64)) for name, column in columns.items()},
    )


def segments(spans: Sequence[tuple[int, int, int, int]]) -> Segments:
    """The attention layout of runs of (first token, end, first prefix token, prefix end). Empty runs are left out."""
    spans = tuple(span for span in spans if span[1] > span[0])
    queries = [end - start for start, end, _, _ in spans]
    keys = [end - start + prefix_end - prefix for start, end, prefix, prefix_end in spans]
    index = [
        token for start, end, prefix, prefix_end in spans for token in (*range(prefix, prefix_end), *range(start, end))
    ]
    return Segments(
        spans=spans,
        cu_queries=torch.tensor([0, *accumulate(queries)], dtype=torch.int32),
        cu_keys=torch.tensor([0, *accumulate(keys)], dtype=torch.int32),
        key_index=torch.tensor(index) if keys != queries else None,
        max_queries=max(queries),
        max_keys=max(keys),
    )
