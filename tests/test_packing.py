"""Packing: every sample once, never over the budget, equal prompts laid down once."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.packing import assign, pack, to_training_samples
from grpo.types import Completion, Group, Problem, Sample

PROMPTS = st.lists(st.integers(2, 9), min_size=1, max_size=6).map(tuple)
IDS = st.lists(st.integers(2, 9), max_size=12).map(tuple)


@st.composite
def sample_lists(draw):
    prompts = draw(st.lists(PROMPTS, min_size=1, max_size=3))
    rows = draw(st.lists(st.tuples(st.sampled_from(prompts), IDS), min_size=1, max_size=12))
    masks = draw(st.lists(st.integers(0, 2**12), min_size=len(rows), max_size=len(rows)))
    return [
        Sample(p, ids, tuple(-0.1 * i for i in ids), float(n), tuple(bool(mask >> t & 1) for t in range(len(ids))))
        for n, ((p, ids), mask) in enumerate(zip(rows, masks, strict=True))
    ]


@settings(deadline=None, max_examples=150)
@given(sample_lists(), st.integers(1, 60))
def test_every_trained_token_is_there_once_in_its_place(samples, budget):
    flat = [(s.completion_ids[t], s.advantage, w) for w, s in enumerate(samples) for t in s.trained]
    seen = {}
    for batch in pack(samples, list(range(len(samples))), budget):
        rows = zip(
            batch.flat_index.tolist(),
            batch.targets.tolist(),
            batch.advantages.tolist(),
            batch.weights.tolist(),
            strict=True,
        )
        for slot, token, advantage, weight in rows:
            assert slot not in seen
            seen[slot] = (token, advantage, weight)
    assert [seen[slot] for slot in range(len(flat))] == flat


@settings(deadline=None, max_examples=150)
@given(sample_lists(), st.integers(1, 60))
def test_the_budget_holds_unless_one_sequence_alone_is_longer(samples, budget):
    for rows, batch in zip(assign(samples, budget), pack(samples, [1.0] * len(samples), budget), strict=True):
        assert len(batch.input_ids) <= budget or len(rows) == 1


@settings(deadline=None, max_examples=150)
@given(sample_lists(), st.integers(1, 60))
def test_each_token_is_predicted_from_the_one_before_it_in_its_own_sequence(samples, budget):
    for rows, batch in zip(assign(samples, budget), pack(samples, [1.0] * len(samples), budget), strict=True):
        ids, positions = batch.input_ids.tolist(), batch.position_ids.tolist()
        expected = [
            ((*samples[i].prompt_ids, *samples[i].completion_ids)[p - 1], p - 1)
            for i in rows
            for t in samples[i].trained
            for p in [len(samples[i].prompt_ids) + t]
        ]
        assert batch.lengths.tolist() == [len(samples[i].trained) for i in rows]
        assert [(ids[p], positions[p]) for p in batch.logit_positions.tolist()] == expected


def test_a_shared_prompt_is_laid_down_once_and_seen_by_every_completion():
    # Prompt of 3, completions of 2 and 4: 3 + 2 + 4 tokens instead of 5 + 7.
    samples = [Sample((5, 6, 7), (2, 3), (0.0,) * 2, 1.0), Sample((5, 6, 7), (4, 4, 4, 4), (0.0,) * 4, 1.0)]
    (batch,) = pack(samples, [1.0, 1.0], 100)
    assert batch.input_ids.tolist() == [5, 6, 7, 2, 3, 4, 4, 4, 4]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6]
    assert (batch.segments.queries, batch.segments.keys) == ((3, 2, 4), (3, 5, 7))
    assert batch.segments.cu_queries.tolist() == [0, 3, 5, 9]
    assert batch.segments.cu_keys.tolist() == [0, 3, 8, 15]
    assert batch.segments.key_index.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8]
    assert batch.logit_positions.tolist() == [2, 3, 2, 5, 6, 7]


def test_groups_of_one_prompt_stay_two_prompts_of_another_do_not_mix():
    samples = [Sample((5,), (2,), (0.0,), 1.0), Sample((6,), (2,), (0.0,), 2.0), Sample((5,), (3,), (0.0,), 3.0)]
    (batch,) = pack(samples, [1.0] * 3, 100)
    assert batch.input_ids.tolist() == [5, 2, 3, 6, 2]
    assert batch.advantages.tolist() == [1.0, 3.0, 2.0]
    assert batch.flat_index.tolist() == [0, 2, 1]


@pytest.mark.parametrize("seed", range(5))
def test_micro_batches_are_about_equally_full(seed):
    rng = random.Random(seed)
    lengths = [min(3072, max(1, int(rng.lognormvariate(6.2, 0.8)))) for _ in range(256)]
    samples = [Sample((1,) * 150, (2,) * n, (0.0,) * n, 1.0) for n in lengths]
    sizes = [len(batch.input_ids) for batch in pack(samples, [1.0] * 256, 16384)]
    # A batch can only be short by less than the completion that did not fit into it.
    assert max(sizes) <= 16384
    assert max(sizes) - min(sizes) < max(lengths) + 150


def test_masks_come_from_the_completion_and_from_truncation():
    completions = (
        Completion((4, 5, 6), (-1.0, 0.0, -1.0), "stop", mask=(True, False, True)),
        Completion((4, 5), (-1.0, -1.0), "length"),
        Completion((4, 5), (-1.0, -1.0), "stop"),
    )
    group = Group(Problem(0, "q", (3,), "1"), completions)
    advantages = torch.tensor([[1.0, -1.0, 0.0]])
    (kept,) = to_training_samples([group], advantages, mask_truncated=False)
    assert [list(sample.trained) for sample in kept] == [[0, 2], [0, 1], [0, 1]]
    (masked,) = to_training_samples([group], advantages, mask_truncated=True)
    assert [list(sample.trained) for sample in masked] == [[0, 2], [], [0, 1]]
    assert [sample.advantage for sample in masked] == [1.0, -1.0, 0.0]  # still a part of its group's statistics


def test_a_mask_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        pack([Sample((1,), (2, 3), (0.0, 0.0), 1.0, mask=(True,))], [1.0], 10)
