"""Completions -> padding-free micro-batches under a token budget.

Sequences are laid end to end, and `Segments` tells attention where each begins, so no token is spent on padding. The
completions of one problem share a prompt: it is laid down once, and every completion sees it as its prefix.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Self

import numpy as np
import torch

from grpo.types import Group, Sample


@dataclass(frozen=True, slots=True)
class _Tensors:
    def to(self, device: torch.device) -> Self:
        """A copy with every tensor on `device`; on a GPU from pinned memory, so that copies overlap with work."""

        def move(value):
            if isinstance(value, torch.Tensor):
                return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
            return value.to(device) if isinstance(value, _Tensors) else value

        return type(self)(**{field.name: move(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, slots=True)
class Segments(_Tensors):
    """Attention in a packed sequence of T tokens: S runs of queries, each with the keys it may see.

    A run is a prompt or a completion. It sees its own tokens causally and, before them, its whole prefix. A prompt has
    no prefix; the prefix of a completion is its prompt.
    """

    queries: tuple[int, ...]
    """[S] tokens of each run"""
    keys: tuple[int, ...]
    """[S] keys that each run sees: those of its prefix and its own"""
    key_index: torch.Tensor
    """[K] long: the tokens whose keys and values are gathered, run by run, each run's prefix first"""
    cu_queries: torch.Tensor
    """[S + 1] int32: run s holds queries cu_queries[s] .. cu_queries[s + 1], the form that the kernels take"""
    cu_keys: torch.Tensor
    """[S + 1] int32: the same for the gathered keys"""


@dataclass(frozen=True, slots=True)
class Batch(_Tensors):
    """A padding-free micro-batch: sequences laid end to end. T tokens, N of them trained, of C completions."""

    input_ids: torch.Tensor
    """[T] long"""
    position_ids: torch.Tensor
    """[T] long: each token's position in its own sequence"""
    segments: Segments
    logit_positions: torch.Tensor
    """[N] long: the token whose output predicts each trained token (the one before it)"""
    targets: torch.Tensor
    """[N] long: the trained tokens, the stop token included when the model produced it"""
    advantages: torch.Tensor
    """[N] float64: the advantage of the token's completion"""
    weights: torch.Tensor
    """[N] float64: the token's weight in the loss, computed over the whole optimiser step, not over this micro-batch"""
    sampler_logprobs: torch.Tensor
    """[N] float64"""
    flat_index: torch.Tensor
    """[N] long: each token's index among all trained tokens of the optimiser step, in the order of its samples"""
    completion_index: torch.Tensor
    """[N] long: the completion of this micro-batch that the token belongs to"""
    lengths: torch.Tensor
    """[C] long: trained tokens of each completion"""

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """[N] -> [C] float64 sum over the trained tokens of each completion."""
        totals = torch.zeros(len(self.lengths), dtype=torch.float64, device=values.device)
        return totals.index_add(0, self.completion_index, values.double())

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """[N] -> [C] float64 mean over the trained tokens of each completion."""
        return self.total(values) / self.lengths

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """[C] -> [N]: repeats each completion's value for its trained tokens."""
        return values[self.completion_index]


def to_training_samples(groups: Sequence[Group], advantages: torch.Tensor, mask_truncated: bool) -> list[list[Sample]]:
    """A rollout in the form that the learner takes. `advantages` is [groups, completions].

    With `mask_truncated`, no token of a completion that was cut at the length limit is trained.
    """
    rollout: list[list[Sample]] = []
    for group, row in zip(groups, advantages.tolist(), strict=True):
        rollout.append([])
        for completion, advantage in zip(group.completions, row, strict=True):
            masked = mask_truncated and completion.finish_reason == "length"
            mask = (False,) * len(completion.ids) if masked else completion.mask
            ids, logprobs = completion.ids, completion.sampler_logprobs
            rollout[-1].append(Sample(group.problem.prompt_ids, ids, logprobs, advantage, mask))
    return rollout


def sequence_length(sample: Sample) -> int:
    """Tokens of prompt and completion together, trained or not: the cost of a sample in a micro-batch's budget."""
    return len(sample.prompt_ids) + len(sample.completion_ids)


def pack(samples: Sequence[Sample], weights: Sequence[float], microbatch_tokens: int) -> list[Batch]:
    """Micro-batches of at most `microbatch_tokens` tokens that hold every trained token once.

    `weights[i]` is the weight of each trained token of sample i in the loss. A sequence longer than the budget gets
    a micro-batch of its own. A sample without a trained token is skipped.
    """
    starts = [0, *accumulate(len(sample.trained) for sample in samples)]
    return [
        _lay_out([samples[i] for i in rows], [weights[i] for i in rows], [starts[i] for i in rows])
        for rows in assign(samples, microbatch_tokens)
    ]


def assign(samples: Sequence[Sample], microbatch_tokens: int) -> list[list[int]]:
    """Indices of the samples in each micro-batch: equal prompts together, and the micro-batches about equally full.

    Filling to the budget gives the fewest micro-batches but a short last one. Bisection finds the smallest capacity
    with the same number. Samples without a trained token are skipped.
    """
    trained = [i for i, sample in enumerate(samples) if sample.trained]
    order = sorted(trained, key=lambda i: (samples[i].prompt_ids, len(samples[i].completion_ids)))
    fewest = len(_fill(samples, order, microbatch_tokens))
    smaller = range(1, microbatch_tokens)
    capacity = 1 + bisect_left(smaller, True, key=lambda tokens: len(_fill(samples, order, tokens)) <= fewest)
    return _fill(samples, order, capacity)


def _fill(samples: Sequence[Sample], order: Sequence[int], capacity: int) -> list[list[int]]:
    batches: list[list[int]] = []
    used = 0
    for i in order:
        sample = samples[i]
        shared = batches and samples[batches[-1][-1]].prompt_ids == sample.prompt_ids
        cost = len(sample.completion_ids) if shared else sequence_length(sample)
        if not batches or used + cost > capacity:
            batches.append([])
            used = 0
            cost = sequence_length(sample)
        batches[-1].append(i)
        used += cost
    return batches


def _lay_out(samples: Sequence[Sample], weights: Sequence[float], starts: Sequence[int]) -> Batch:
    """One micro-batch. `starts[i]` is the index of sample i's first trained token among those of the optimiser step."""
    # 1. Lay every prompt down once and its completions behind it. A run is (ids, the positions of its prefix in the
    # batch, its own positions); a prompt's prefix is empty.
    runs = []
    logit_positions = []
    end = 0
    for i, sample in enumerate(samples):
        if i == 0 or sample.prompt_ids != samples[i - 1].prompt_ids:
            prompt = np.arange(end, end + len(sample.prompt_ids))
            runs.append((sample.prompt_ids, prompt[:0], prompt))
            end += len(prompt)
        completion = np.arange(end, end + len(sample.completion_ids))
        runs.append((sample.completion_ids, prompt, completion))
        # Each token is predicted by the token before it, the first of a completion by the last of its prompt.
        logit_positions.append(np.append(prompt[-1], completion[:-1])[sample.trained])
        end += len(completion)

    # 2. A run sees its prefix, then its own tokens, whose positions continue where the prefix ends.
    queries = [len(own) for _, _, own in runs]
    keys = [len(prefix) + len(own) for _, prefix, own in runs]
    segments = Segments(
        queries=tuple(queries),
        keys=tuple(keys),
        key_index=_joined(part for _, prefix, own in runs for part in (prefix, own)),
        cu_queries=torch.tensor([0, *accumulate(queries)], dtype=torch.int32),
        cu_keys=torch.tensor([0, *accumulate(keys)], dtype=torch.int32),
    )

    # 3. Repeat the values of a completion for each of its trained tokens. float64 costs nothing at a few numbers per
    # token, and makes the sum of the loss independent of its order, to the rounding of float64.
    lengths = [len(sample.trained) for sample in samples]
    return Batch(
        input_ids=_joined(np.array(ids) for ids, _, _ in runs),
        position_ids=_joined(np.arange(len(prefix), len(prefix) + len(own)) for _, prefix, own in runs),
        segments=segments,
        logit_positions=_joined(logit_positions),
        targets=_joined(np.array(sample.completion_ids)[sample.trained] for sample in samples),
        advantages=torch.tensor(np.repeat([sample.advantage for sample in samples], lengths)),
        weights=torch.tensor(np.repeat(weights, lengths)),
        sampler_logprobs=_joined(np.array(sample.sampler_logprobs)[sample.trained] for sample in samples),
        flat_index=_joined(np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)),
        completion_index=torch.tensor(np.repeat(np.arange(len(samples)), lengths)),
        lengths=torch.tensor(lengths),
    )


def _joined(parts: Iterable[np.ndarray]) -> torch.Tensor:
    """The parts laid end to end."""
    return torch.tensor(np.concatenate(list(parts)))
