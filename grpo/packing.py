"""Completions -> padding-free micro-batches under a token budget.

Sequences are laid end to end and attention is told where each begins (`Segments`), so no token is spent on padding. The
completions of one problem have the same prompt: it is laid down once, and every completion sees it as its prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from grpo.types import Batch, Sample, Segments


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
        cost = len(sample.completion_ids) if shared else sample.length
        if batches and used + cost <= capacity:
            batches[-1].append(i)
            used += cost
        else:
            batches.append([i])
            used = sample.length
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
