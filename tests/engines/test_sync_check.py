"""The proof after a sync, with the torch engine: it passes for the policy's own weights and for no others."""

from __future__ import annotations

import pytest
import torch
from tiny_model import make_tiny_model

from data.tiny_base import make_tokenizer
from grpo.engines.sync_check import check_sync
from grpo.engines.torch_engine import TorchEngine
from grpo.errors import SamplerMismatch
from grpo.policy import Policy


@pytest.fixture
def policy() -> Policy:
    return Policy(make_tiny_model(vocabulary=96), make_tokenizer())


@pytest.fixture
def engine(policy: Policy) -> TorchEngine:
    engine = TorchEngine()
    engine.sync(policy)
    return engine


def test_the_policys_own_weights_pass(engine: TorchEngine, policy: Policy):
    check_sync(engine, policy, temperature=0.6, limit=1e-9)


def test_other_weights_do_not(engine: TorchEngine):
    other = Policy(make_tiny_model(tied=False, vocabulary=96), make_tokenizer())
    with pytest.raises(
        SamplerMismatch, match=r"64 tokens after sync 1 is .*over rollout.logprob_diff_limit 0.1.*tied lm_head"
    ):
        check_sync(engine, other, temperature=0.6, limit=0.1)


def test_weights_that_are_no_numbers_do_not(engine: TorchEngine, policy: Policy):
    other = Policy(make_tiny_model(vocabulary=96), make_tokenizer())
    with torch.no_grad():
        other.network.model.norm.weight.fill_(float("nan"))
    with pytest.raises(SamplerMismatch, match="nan"):
        check_sync(engine, other, temperature=0.6, limit=0.1)
