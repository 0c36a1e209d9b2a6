"""vLLM in the trainer's process, on vLLM's CPU build: never stale, exact, repeatable, and without side effects.

One engine for tied and one for untied embeddings serve the whole file; every test syncs the weights it wants.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from data.tiny_base import FOLDER, make_model, make_tokenizer
from grpo.engines.base import SamplingParams, make_engine
from grpo.engines.sync_check import check_sync, sampler_gap
from grpo.engines.torch_engine import TorchEngine
from grpo.engines.vllm_engine import _kv_bytes, _on_gpu, checkpoint_names
from grpo.errors import SamplerMismatch, UserError
from grpo.policy import Policy, load_policy
from grpo.settings import Config, parse
from grpo.types import Completion, Request

CPU = torch.device("cpu")
TEMPERATURE, EXACT = 0.6, 1e-4  # float32 against float32 is within 2e-5 here
LORA = {"lora_rank": 4, "lora_alpha": 8}
SHORT, LONG = tuple(range(10, 20)), tuple(range(20, 90)) * 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Random weights, large enough that the distribution is not nearly uniform.

    Widths are multiples of 64: for others bitsandbytes' CPU build dequantises with the wrong blocks.
    """
    made, tokenizer = {}, make_tokenizer()
    model = make_model(tokenizer, seed=1)
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
    for head in ("tied", "untied"):
        model.config.update(sizes | {"tie_word_embeddings": head == "tied"})
        torch.manual_seed(1)
        model = type(model)(model.config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 4 if parameter.ndim > 1 else 1
        made[head] = tmp_path_factory.mktemp(head)
        model.save_pretrained(made[head])
        tokenizer.save_pretrained(made[head])
    return made


def config(folder: Path, **policy) -> Config:
    rollout = {"max_prompt_tokens": 192, "max_new_tokens": 64, "temperature": TEMPERATURE}
    rollout |= {"kv_gib": 0.125, "logprob_diff_limit": 0.01}
    return parse({"model": str(folder), "rollout": rollout, "policy": policy})


def make_policy(folder: Path, seed: int | None = None, **policy) -> Policy:
    made = load_policy(config(folder, **policy), CPU)
    if seed is not None:
        move(made, seed)
    return made


def move(policy: Policy, seed: int) -> None:
    """Some weights that training could have led to; the head moves as well, tied or not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def engines(folders):
    pytest.importorskip("vllm.version", reason="make test-vllm makes an environment with vLLM's CPU build")
    torch.set_float32_matmul_precision("high")  # not torch's own default, which is what vLLM sets
    before = process_state()
    made = {name: make_engine(parse_engine(folder), CPU) for name, folder in folders.items()}
    with pytest.raises(RuntimeError, match="sync"):
        made["tied"].generate([Request(SHORT, 1, 1)], SamplingParams(4))  # an engine starts without weights
    yield made | {"state": (before, process_state())}
    for engine in made.values():
        engine.close()
    torch.set_float32_matmul_precision("highest")


def parse_engine(folder: Path) -> Config:
    plain = config(folder)
    return plain.model_copy(update={"rollout": plain.rollout.model_copy(update={"engine": "vllm"})})


@pytest.fixture
def engine(engines):
    return engines["tied"]


@pytest.fixture(scope="module")
def policy(folders) -> Policy:
    return make_policy(folders["tied"])


def gap(engine, policy: Policy, temperature: float = TEMPERATURE) -> torch.Tensor:
    """[tokens] of 8 completions of a short and of a long prompt; the long one has blocks to share."""
    requests = [Request(SHORT, 8, 1), Request(LONG, 8, 1000)]
    groups = engine.generate(requests, SamplingParams(24, temperature, ignore_eos=True))
    gaps = [sampler_gap(policy, r.prompt_ids, g, temperature or 1.0) for r, g in zip(requests, groups, strict=True)]
    return torch.cat(gaps)


# Never stale


@pytest.mark.vllm
@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_logprobs_are_the_policys_before_and_after_three_syncs(engines, folders, head: str, lora: dict):
    engine, policy = engines[head], make_policy(folders[head], **lora)
    for seed in range(4):
        version = engine.version
        engine.sync(policy)
        assert engine.version == version + 1
        assert gap(engine, policy).max() < EXACT
        move(policy, seed)
        assert gap(engine, policy).mean() > 0.05, "without a sync the engine's weights are old, and this test sees it"


def only_named_parameters(policy: Policy):
    """The weights that many trainers push: a tied head has no name of its own in it."""
    return lambda: policy.network.named_parameters()


@pytest.mark.vllm
def test_a_weight_that_did_not_arrive_is_named(engine, folders, monkeypatch):
    policy = make_policy(folders["tied"], seed=3)
    monkeypatch.setattr(policy, "sampler_weights", only_named_parameters(policy))
    version = engine.version
    with pytest.raises(SamplerMismatch, match=r"1 of 39 weights were not handed to vLLM.*lm_head\.weight"):
        engine.sync(policy)
    assert engine.version == version
    every = dict(load_policy(config(folders["tied"]), CPU).sampler_weights())
    bias = "model.layers.1.self_attn.k_proj.bias"
    monkeypatch.setattr(policy, "sampler_weights", lambda: ((n, w) for n, w in every.items() if n != bias))
    with pytest.raises(SamplerMismatch, match=re.escape(bias)):
        engine.sync(policy)
    with pytest.raises(RuntimeError, match="sync"):
        engine.generate([Request(SHORT, 1, 1)], SamplingParams(4))  # from new weights with an old one among them


@pytest.mark.vllm
def test_a_weight_that_vllm_does_not_know_is_named(engine, folders, monkeypatch):
    policy = make_policy(folders["tied"])
    monkeypatch.setattr(policy, "sampler_weights", lambda: iter([("model.layers.0.strange", torch.zeros(3))]))
    with pytest.raises(SamplerMismatch, match=r"model\.layers\.0\.strange"):
        engine.sync(policy)


@pytest.mark.vllm
def test_the_stale_tied_head_is_real_and_the_proof_catches_it(engine, folders, monkeypatch):
    """vLLM's CPU build keeps a packed copy of a tied head and renews it only when lm_head.weight is pushed.

    Here the accounting is told not to expect that name: what is left is what other trainers have, and the proof.
    """
    engine.sync(make_policy(folders["tied"]))
    policy = make_policy(folders["tied"], seed=3)
    with monkeypatch.context() as patch:
        patch.setattr(policy, "sampler_weights", only_named_parameters(policy))
        patch.setattr(engine, "_expected", engine._expected - {"lm_head.weight"})
        with pytest.raises(SamplerMismatch, match="a tied lm_head"):
            engine.sync(policy)
    assert gap(engine, policy).max() > 0.1, "the stale head that this test is about is gone: vLLM has changed"
    engine.sync(policy)
    assert gap(engine, policy).max() < EXACT


@pytest.mark.vllm
def test_the_proof_tells_other_weights(engine, folders):
    engine.sync(make_policy(folders["tied"]))
    with pytest.raises(SamplerMismatch, match="does not have the policy's weights"):
        check_sync(engine, make_policy(folders["tied"], seed=3), TEMPERATURE, limit=0.1)


@pytest.mark.vllm
def test_an_engine_asleep_has_no_weights_until_the_next_sync(engine, folders, policy):
    engine.sync(policy)
    engine.sleep()
    engine.sleep()  # twice is once
    with pytest.raises(RuntimeError, match="sync"):
        engine.generate([Request(SHORT, 1, 1)], SamplingParams(4))
    moved = make_policy(folders["tied"], seed=4)
    engine.sync(moved)
    assert gap(engine, moved).max() < EXACT


# The distribution


@pytest.mark.vllm
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, 2.0])
def test_logprobs_are_of_the_distribution_that_was_sampled(engine, policy, temperature: float):
    engine.sync(policy)
    assert gap(engine, policy, temperature).max() < EXACT


@pytest.mark.vllm
def test_greedy_is_the_torch_engines_and_every_copy_the_same(engine, policy):
    engine.sync(policy)
    torch_engine = TorchEngine()
    torch_engine.sync(policy)
    requests = [Request(SHORT, 3, 1), Request(LONG, 2, 9)]
    found, expected = (e.generate(requests, SamplingParams(24, 0.0)) for e in (engine, torch_engine))
    assert [[c.ids for c in group] for group in found] == [[c.ids for c in group] for group in expected]
    assert [len(group) for group in found] == [3, 2]


@pytest.mark.vllm
def test_only_the_policys_ids_stop_and_the_stop_token_is_kept(engines, folders):
    engine, policy = engines["untied"], make_policy(folders["untied"])
    policy.stop_ids = (30, 31, 32, 33, 34, 35)
    engine.sync(policy)
    completions = engine.generate([Request(SHORT, 64, 1)], SamplingParams(32, 1.0))[0]
    stopped = [c for c in completions if c.finish_reason == "stop"]
    cut = [c for c in completions if c.finish_reason == "length"]
    assert len(stopped) > 10
    assert all(c.ids[-1] in policy.stop_ids and not set(c.ids[:-1]) & set(policy.stop_ids) for c in stopped)
    assert all(len(c.ids) == 32 and not set(c.ids) & set(policy.stop_ids) for c in cut)
    assert all(len(c.ids) == len(c.sampler_logprobs) for c in completions)
    # The tokenizer's and the configuration's end tokens, 2 and 0, are ordinary tokens when the policy says so.
    assert any(set(c.ids[:-1]) & {0, 2} for c in completions)
    endless = engine.generate([Request(SHORT, 64, 1)], SamplingParams(32, 1.0, ignore_eos=True))[0]
    assert all(len(c.ids) == 32 and c.finish_reason == "length" for c in endless)


# Repeatable


@pytest.mark.vllm
def test_the_same_seeds_give_the_same_completions_in_any_company(engine, policy):
    engine.sync(policy)
    sampling = SamplingParams(24, 1.0)
    first, second = Request(SHORT, 8, 2**61), Request(LONG, 4, 5)
    together = engine.generate([first, second], sampling)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    engine.sync(policy)
    assert engine.generate([second], sampling)[0] == together[1], "alone, after another sync, other global seeds"
    single = [Request(SHORT, 1, 2**61 + i) for i in range(8)]
    assert [group[0] for group in engine.generate(single, sampling)] == together[0], "sample i has seed + i"
    assert len({c.ids for c in together[0]}) > 1
    assert engine.generate([Request(SHORT, 8, 77)], sampling)[0] != together[0]


# No side effects


@pytest.mark.vllm
def test_the_trainer_does_not_notice(engines, policy):
    before, after = engines["state"]  # around the start of both engines
    assert after == before
    engine = engines["tied"]
    before = process_state()
    engine.sync(policy)
    engine.generate([Request(SHORT, 8, 1)], SamplingParams(16, 1.0))
    engine.sleep()
    engine.sync(policy)
    assert process_state() == before
    assert policy.model.training


def process_state() -> tuple:
    generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    torch_s = torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.is_grad_enabled()
    return generators, torch_s, torch.get_num_threads(), torch.set_num_threads, os.environ.get("LD_PRELOAD")


@pytest.mark.vllm
def test_what_a_gpu_engine_is_asked_for_is_what_vllm_knows(engines, monkeypatch):
    from vllm.config import KernelConfig
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * 2**30, 24 * 2**30))
    asked = _on_gpu(parse({}))
    assert set(asked) <= {field.name for field in dataclasses.fields(EngineArgs)}
    assert set(asked["kernel_config"]) <= {field.name for field in dataclasses.fields(KernelConfig)}
    assert asked["gpu_memory_utilization"] == 0.792  # 0.95 of the 20 of 24 GiB that are free
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


@pytest.mark.vllm
def test_logits_are_float32(engine):
    assert engine._llm.llm_engine.vllm_config.model_config.head_dtype is torch.float32


@pytest.mark.vllm
def test_what_vllm_refuses_is_one_line(engines):
    long = parse({"model": str(FOLDER), "rollout": {"engine": "vllm", "max_new_tokens": 4000}})
    with pytest.raises(UserError, match=r"vLLM cannot run .*5024.*4096") as raised:
        make_engine(long, CPU)
    assert "\n" not in str(raised.value)


# 4-bit base


@pytest.mark.vllm
def test_nf4_needs_its_dequantised_weights_in_the_sampler(engine, folders):
    """Pushed with the original base, the same adapter makes most of the rollout worthless.

    Effective sample size of importance weights w = trainer / sampler, per completion: (sum w)^2 / (n sum w^2).
    """
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    policy, original = make_policy(folders["tied"], quant="nf4", **LORA), make_policy(folders["tied"], **LORA)
    for one in (policy, original):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in one.trainable().values():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)

    def mismatch(pushed: Policy) -> tuple[float, float]:
        engine.sync(pushed)
        completions = engine.generate([Request(SHORT, 256, 1)], SamplingParams(24, 1.0))[0]
        ratio = log_ratio(policy, SHORT, completions)
        weight = torch.stack([r.sum() for r in ratio]).exp()
        ess = (weight.sum() ** 2 / (weight**2).sum() / len(weight)).item()
        return torch.cat(ratio).abs().mean().item(), ess

    (gap_original, ess_original), (gap_own, ess_own) = mismatch(original), mismatch(policy)
    print(
        f"\nNF4: original base gap {gap_original:.4f} ESS {ess_original:.3f}; dequantised {gap_own:.1e} {ess_own:.4f}"
    )
    assert gap_own < EXACT
    assert ess_own > 0.999
    assert gap_original > 100 * gap_own
    assert ess_original < 0.9


@torch.no_grad()
def log_ratio(policy: Policy, prompt: tuple[int, ...], completions: list[Completion]) -> list[torch.Tensor]:
    from grpo.packing import pack
    from grpo.types import Sample

    ratios = []
    for c in completions:
        (batch,) = pack([Sample(prompt, c.ids, c.sampler_logprobs, 0.0)], [1.0], 10**6)
        ratios.append(policy.logprobs(batch, 1.0)[0] - batch.sampler_logprobs)
    return ratios


# Without vLLM


def test_the_names_that_are_expected_are_hugging_faces():
    """Fused projections taken apart, their biases too, and the shared parameter under both of its names."""
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(3, 2), "head": torch.nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embed"].weight
    model["layer"] = torch.nn.ModuleDict(
        {"qkv_proj": torch.nn.Linear(2, 6), "o_proj": torch.nn.Linear(2, 2, bias=False)}
    )
    model.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    fused = {f"layer.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")}
    assert checkpoint_names(model) == fused | {"embed.weight", "head.weight", "layer.o_proj.weight"}


def test_the_kv_cache_is_what_was_asked_for_else_what_is_needed():
    asked = parse({"rollout": {"kv_gib": 1.5}})
    assert _kv_bytes(asked, 1000, CPU) == 1.5 * 2**30
    small = parse({"rollout": {"prompts_per_step": 2, "group_size": 4, "max_prompt_tokens": 8, "max_new_tokens": 24}})
    assert _kv_bytes(small, 1000, CPU) == 8 * 1000 * (8 + 24 + 32)  # 8 sequences, a block of 32 to round up to
    large = parse({"rollout": {"prompts_per_step": 128, "group_size": 8}})
    assert _kv_bytes(large, 10**5, CPU) == 2**30  # a CPU has no plan: at most 1 GiB ..
    assert _kv_bytes(large, 10**6, CPU) == 10**6 * (1024 + 3072 + 32)  # .. but always one sequence
