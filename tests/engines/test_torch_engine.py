"""The sampler: it draws from the distribution it reports, stops where it should, and ignores the other sequences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tiny_model import make_tiny_model

from grpo.engines.base import SamplingParams
from grpo.engines.torch_engine import TorchEngine, uniforms
from grpo.policy import Policy
from grpo.rollout import request_seed, rollout
from grpo.types import Problem, Request

EOS = 1
RAGGED = [
    Request((5, 6, 7), 3, 100),
    Request((5, 6, 7), 2, 200),
    Request((9, 8, 7, 6, 5, 2, 3), 3, 300),
    Request((4,), 2, 7),
]


class Tokenizer:
    eos_token_id, chat_template = EOS, None

    def get_vocab(self):
        return {}


@pytest.fixture(scope="module")
def policy():
    return Policy(make_tiny_model(), Tokenizer())


@pytest.fixture
def engine(policy):
    engine = TorchEngine()
    engine.sync(policy)
    return engine


def logprobs_of(policy, prompt, ids, temperature):
    with torch.no_grad():
        logits = policy.network(torch.tensor([[*prompt, *ids]]), use_cache=False, segments=None).logits[0]
    logp = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, -1)
    return logp.gather(-1, torch.tensor(ids)[:, None])[:, 0]


COMMON = [
    Request((5, 6, 7, 8, 9, 3), 2, 100),  # all begin with 5, 6, 7, of which the last prompt needs one to be read
    Request((5, 6, 7, 2), 3, 200),
    Request((5, 6, 7), 2, 300),
]


@pytest.mark.parametrize("requests", [RAGGED, COMMON], ids=["ragged", "common"])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_logprobs_are_those_of_the_sampled_distribution(policy, engine, temperature, requests):
    for request, group in zip(requests, engine.generate(requests, SamplingParams(12, temperature)), strict=True):
        for completion in group:
            expected = logprobs_of(policy, request.prompt_ids, completion.ids, temperature)
            torch.testing.assert_close(torch.tensor(completion.sampler_logprobs).double(), expected, rtol=0, atol=1e-6)


def test_a_completion_does_not_depend_on_its_company(engine):
    sampling = SamplingParams(90, 0.6)  # longer than the room that a KV cache has at first
    together = engine.generate(RAGGED, sampling)
    reordered = engine.generate(RAGGED[::-1], sampling)[::-1]
    small = TorchEngine(max_num_seqs=3)
    small.sync(engine._policy)
    in_threes = small.generate(RAGGED, sampling)
    for request, *groups in zip(RAGGED, together, reordered, in_threes, strict=True):
        for i, completions in enumerate(zip(*groups, strict=True)):
            alone = engine.generate([Request(request.prompt_ids, 1, request.seed + i)], sampling)[0][0]
            assert {c.ids for c in completions} == {alone.ids}


def test_the_end_token_is_kept_and_a_cut_completion_has_none(engine):
    completions = list(itertools.chain(*engine.generate([Request((5, 6), 64, 1)], SamplingParams(8, 1.0))))
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for c in completions:
        assert len(c.ids) == len(c.sampler_logprobs)
        assert EOS not in c.ids[:-1]
        assert (c.ids[-1] == EOS) == (c.finish_reason == "stop")
        assert c.finish_reason == "stop" or len(c.ids) == 8


def test_ignore_eos_runs_to_the_end(engine):
    for completion in engine.generate([Request((5, 6), 16, 1)], SamplingParams(8, 1.0, ignore_eos=True))[0]:
        assert len(completion.ids) == 8
        assert completion.finish_reason == "length"


def test_the_frequencies_are_the_softmax_at_the_temperature(policy, engine):
    # 5,000 draws of one token against softmax(z / 0.6): chi-square with about 39 degrees of freedom; its mean is 39
    # and its standard deviation 8.8. Against softmax(z) the same draws give far more.
    n, temperature = 5_000, 0.6
    drawn = engine.generate([Request((5, 6, 7), n, 1)], SamplingParams(1, temperature))[0]
    counts = np.bincount([c.ids[0] for c in drawn], minlength=40)

    def chi_square(t):
        logp = logprobs_of_all(policy, (5, 6, 7), t)
        expected = n * logp.exp().numpy()
        likely = expected > 5
        return ((counts - expected)[likely] ** 2 / expected[likely]).sum()

    assert chi_square(temperature) < 80
    assert chi_square(1.0) > 200


def logprobs_of_all(policy, prompt, temperature):
    with torch.no_grad():
        logits = policy.network(torch.tensor([prompt]), use_cache=False, segments=None).logits[0, -1]
    return torch.log_softmax(logits / temperature, -1)


def test_greedy_takes_the_likeliest_token(policy, engine):
    (completion,) = engine.generate([Request((5, 6, 7), 1, 1)], SamplingParams(6, 0.0))[0]
    prompt = [5, 6, 7]
    for token in completion.ids:
        assert token == logprobs_of_all(policy, prompt, 1.0).argmax().item()
        prompt.append(token)


def test_uniforms_are_uniform_and_independent_of_each_other():
    u = uniforms(np.arange(100_000, dtype=np.uint64), position=3)
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    # Mean 1/2 with standard error 1/sqrt(12 n) = 0.0009; neighbouring seeds and positions are uncorrelated.
    assert abs(u.mean() - 0.5) < 0.004
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.015
    assert abs(np.corrcoef(u, uniforms(np.arange(100_000, dtype=np.uint64), position=4))[0, 1]) < 0.015


def test_seeds_follow_from_run_step_and_problem():
    keys = list(itertools.product(range(3), range(20), range(20)))
    assert len({request_seed(*key) for key in keys}) == len(keys)
    assert request_seed(0, 1, 2) == request_seed(0, 1, 2)
    assert all(0 <= request_seed(*key) < 2**62 for key in keys)


def test_rollout_groups_copies_of_one_prompt_apart(engine):
    problems = [Problem(i, "", (5, 6, 7), "1") for i in range(4)]
    groups = rollout(engine, problems, 4, SamplingParams(6), 0, 1)
    assert [g.problem.index for g in groups] == [0, 1, 2, 3]
    assert len({tuple(c.ids for c in g.completions) for g in groups}) == 4  # each its own noise
    again = rollout(engine, problems[::-1], 4, SamplingParams(6), 0, 1)[::-1]
    assert groups == again
    assert groups != rollout(engine, problems, 4, SamplingParams(6), 0, 2)
    assert groups != rollout(engine, problems, 4, SamplingParams(6), 1, 1)


def test_generation_needs_weights_and_leaves_the_policy_as_it_was(policy):
    engine = TorchEngine()
    with pytest.raises(RuntimeError, match="call sync"):
        engine.generate(RAGGED, SamplingParams(2))
    engine.sync(policy)
    state = torch.get_rng_state()
    policy.model.train()
    engine.generate(RAGGED, SamplingParams(4))
    assert engine.version == 1
    assert policy.model.training
    assert torch.equal(torch.get_rng_state(), state)  # the trainer's generator is not touched
