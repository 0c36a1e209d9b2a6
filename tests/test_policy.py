"""The policy: precision, LoRA, 4-bit base, reference, stop ids, what a sampler gets, what is saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from data.tiny_base import make_tokenizer
from grpo import attention, lora
from grpo.errors import UserError
from grpo.optim import Optimizer
from grpo.packing import Batch, pack
from grpo.policy import Policy, compute_dtype, fuse_norms, load_config, load_policy
from grpo.settings import Config, LearnerConfig, build, parse
from grpo.types import Sample

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LORA = {"lora_rank": 4, "lora_alpha": 8}
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random tiny Qwen2 with the built-in model's tokenizer, saved in float16, which nobody may train in."""
    path = tmp_path_factory.mktemp("model")
    model, tokenizer = make_tiny_model(tied=True, dtype=torch.float16, vocabulary=96), make_tokenizer()
    model.generation_config.eos_token_id = 0
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def config(folder: Path, kl_coef: float = 0.0, **policy) -> Config:
    return parse({"model": str(folder), "policy": policy, "learner": {"kl_coef": kl_coef}})


def batch() -> Batch:
    """Three completions of two prompts, all ids below 40."""
    samples = [Sample((3, 5, 7), (9, 11, 2), (0.0,) * 3, 1.0), Sample((3, 5, 7), (8, 2), (0.0,) * 2, -1.0)]
    samples.append(Sample((4, 4, 6, 13), (20, 21, 22, 23), (0.0,) * 4, 0.5))
    (packed,) = pack(samples, [1.0] * 3, 100)
    return packed


def move(policy: Policy) -> None:
    """Some weights that training could have led to."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def logprobs(policy: Policy) -> torch.Tensor:
    return policy.logprobs(batch(), 0.7)[0].detach()


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    policy.logprobs(batch(), 0.7)[0].sum().backward()
    return {name: parameter.grad for name, parameter in policy.trainable().items()}


# Precision


def test_bfloat16_on_a_gpu_float32_on_a_cpu_and_never_float16():
    assert compute_dtype(parse({}), GPU) is torch.bfloat16
    assert compute_dtype(parse({}), CPU) is torch.float32
    assert compute_dtype(parse({"policy": {"dtype": "float32"}}), GPU) is torch.float32
    with pytest.raises(UserError, match="dtype"):
        parse({"policy": {"dtype": "float16"}})


def test_the_models_own_float16_is_not_taken_over(folder: Path):
    policy = load_policy(config(folder), CPU)
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}


def test_weights_that_are_missing_or_cut_off_are_one_line(tmp_path: Path):
    source = Path("data/tiny-base")
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    whole = (source / "model.safetensors").read_bytes()
    index = tmp_path / "model.safetensors.index.json"
    damages = [(tmp_path / "model.safetensors", content) for content in (whole[:-1], whole[:100], whole[:4], b"")]
    damages += [
        (index, content) for content in (b'{"weight_map": {"a"', b"[]", b'{"weight_map": {"a": "b.safetensors"}}')
    ]
    for file, content in damages:
        file.write_bytes(content)
        if file == index:
            (tmp_path / "model.safetensors").unlink(missing_ok=True)
        with pytest.raises(UserError, match="cannot load the model") as raised:
            load_policy(config(tmp_path), CPU)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "cure"),
    [
        (None, "give a folder with config.json"),
        ("{", "give a folder with config.json"),
        ('{"model_type": "mystery"}', "use another model, or a newer transformers"),
        ('{"model_type": "a", "auto_map": {"AutoConfig": "a.A"}}', "--policy.trust_remote_code true"),
    ],
)
def test_the_cure_fits_what_is_wrong_with_a_configuration(content: str | None, cure: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=cure) as raised:
        load_config(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_the_fused_norm_is_closer_to_the_exact_one_than_the_models_own():
    norm = Qwen2RMSNorm(256, eps=1e-6).bfloat16()
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(100, 256, generator=generator)).bfloat16()
    norm.weight.data = torch.randn(256, generator=generator).bfloat16()
    exact = x.double() * (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight.double()
    own = (norm(x) - exact).pow(2).mean()
    fuse_norms(norm)
    assert norm(x).dtype is torch.bfloat16
    assert (norm(x) - exact).pow(2).mean() < own


# LoRA


def test_lora_sits_on_every_linear_layer_but_the_head_in_float32(folder: Path):
    policy = load_policy(config(folder, dtype="bfloat16", **LORA), CPU)
    adapted = {name.split(".")[-4] for name in policy.trainable()}
    assert adapted == LINEAR
    # Two layers, seven linear layers each, A and B.
    assert len(policy.trainable()) == 2 * 7 * 2
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    assert policy.dtype is torch.bfloat16
    assert all(p.shape[0] == 4 for name, p in policy.trainable().items() if "lora_A" in name)


def test_the_l4_preset_trains_rank_64_with_alpha_128():
    policy = build("l4", {}).policy
    assert (policy.lora_rank, policy.lora_alpha) == (64, 128)


def test_a_fresh_adapter_changes_nothing_and_a_moved_one_does(folder: Path):
    base, policy = load_policy(config(folder), CPU), load_policy(config(folder, **LORA), CPU)
    assert torch.equal(logprobs(base), logprobs(policy))
    move(policy)
    assert (logprobs(base) - logprobs(policy)).abs().max() > 0.01


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_gradient_checkpointing_gives_the_same_gradients_and_moves_both_matrices(folder: Path, lora: dict):
    plain = load_policy(config(folder, **lora), CPU)
    saving = load_policy(config(folder, gradient_checkpointing=True, **lora), CPU)
    for policy in (plain, saving):
        move(policy)  # B starts at 0, where A has no gradient yet
    expected, found = gradients(plain), gradients(saving)
    assert saving.network.is_gradient_checkpointing
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


# The reference


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_the_reference_stays_where_training_started(folder: Path, lora: dict):
    policy = load_policy(config(folder, kl_coef=0.001, **lora), CPU)
    start = logprobs(policy)
    move(policy)
    assert (logprobs(policy) - start).abs().max() > 0.01
    assert torch.equal(policy.ref_logprobs(batch(), 0.7), start)
    assert (logprobs(policy) - start).abs().max() > 0.01, (
        "asking the reference must not switch the adapter off for good"
    )


def test_no_reference_is_kept_that_nobody_asked_for(folder: Path):
    policy = load_policy(config(folder), CPU)
    with pytest.raises(RuntimeError, match="no reference was kept"):
        policy.ref_logprobs(batch(), 1.0)


# Stop ids


def test_stop_ids_are_those_of_tokenizer_and_generation_config_and_qwens(folder: Path):
    # The tokenizer says <|im_end|> (2), the generation config <|endoftext|> (0).
    assert load_policy(config(folder), CPU).stop_ids == (0, 2)
    model = make_tiny_model(vocabulary=96)
    model.generation_config.eos_token_id = [5, 7]
    assert Policy(model, make_tokenizer()).stop_ids == (0, 2, 5, 7)
    model.generation_config.eos_token_id = None
    assert Policy(model, make_tokenizer()).stop_ids == (0, 2)


# What a sampler gets


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("lora", [0, 4], ids=["full", "lora"])
def test_a_plain_model_with_the_sampler_weights_is_the_policy(tied: bool, lora: int):
    tokenizer = make_tokenizer()
    policy = Policy(
        make_tiny_model(tied, torch.float32, 96), tokenizer, Config(policy={"lora_rank": lora, "lora_alpha": 8})
    )
    move(policy)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    weights = dict(policy.sampler_weights())
    plain = make_tiny_model(tied, torch.float32, 96)
    assert weights.keys() == plain.state_dict().keys(), "the head has its own name also when it is tied"
    plain.load_state_dict(weights)
    torch.testing.assert_close(logprobs(Policy(plain, tokenizer)), logprobs(policy), rtol=0, atol=1e-4)
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters()), "merging moved the base"


@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_in_bfloat16_the_sampler_gets_the_policy_to_the_bit(folder: Path, quant: str):
    """However small the adapter's step is: both compute with the same rounded weights."""
    if quant == "nf4":
        pytest.importorskip("bitsandbytes", exc_type=ImportError)
    policy = load_policy(config(folder, dtype="bfloat16", quant=quant, **LORA), CPU)
    plain = make_tiny_model(True, torch.bfloat16, 96)
    for _ in range(2):
        plain.load_state_dict(dict(policy.sampler_weights()))
        assert torch.equal(logprobs(Policy(plain, policy.tokenizer)), logprobs(policy))
        with policy.sampling():
            assert torch.equal(logprobs(Policy(plain, policy.tokenizer)), logprobs(policy))
        move(policy)


def test_a_small_step_arrives_in_bfloat16(folder: Path):
    """Rounded to nearest, a step of a hundredth of half a unit in the last place would move nothing at all."""
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    unit = 2.0 ** (weight.float().abs().log2().floor() - 7)  # bfloat16 has 7 bits behind the first
    for share in (0.005, 0.3, 0.9):
        step = share * unit * torch.where(torch.rand(512, 512) < 0.5, 1, -1)
        moved = lora.rounded(weight.float() + step, torch.bfloat16).float() - weight.float()
        # The moves are 0 or one unit, with probability `share`: over 2^18 weights the mean of moved / unit would have a
        # standard error of sqrt(share (1 - share)) / 2^9 with independent thresholds, in a row of 512 of 23 times that.
        along, error = moved / unit * step.sign(), (share * (1 - share)) ** 0.5
        assert abs(along.mean().item() - share) < 2 * error / 2**9
        assert along.mean(0).std().item() < 1.2 * error / 512**0.5
        assert along.mean(1).std().item() < 1.2 * error / 512**0.5
    assert torch.equal(lora.rounded(weight.float(), torch.bfloat16), weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_sums_change_no_bit_and_follow_every_step(folder: Path, dtype: str):
    """Of the optimiser, of a checkpoint that is read, and of whoever changes A or B in place."""
    results = []
    for keep in (False, True):
        policy = load_policy(config(folder, dtype=dtype, **LORA), CPU)
        if keep:
            policy.keep_sums()
        optimizer = Optimizer(policy.trainable().values(), LearnerConfig(lr=0.01), total_steps=1)
        seen = [logprobs(policy)]
        for change in (optimizer.step, optimizer.step, lambda p=policy: move(p), None):
            if change is None:
                state = Optimizer(policy.trainable().values(), LearnerConfig(), total_steps=1).state_dict()
                state["masters"] = [torch.full_like(master, 0.02) for master in state["masters"]]
                optimizer.load_state_dict(state)
            else:
                gradients(policy)
                change()
                optimizer.zero_grad()
            seen.append(logprobs(policy))
            with policy.model.disable_adapter():
                seen.append(logprobs(policy))
        results.append(seen)
    for without, kept in zip(*results, strict=True):
        assert torch.equal(without, kept)
    assert all(not torch.equal(a, b) for a, b in zip(results[1][1::2], results[1][3::2], strict=False))


def test_the_share_that_arrived_is_measured(folder: Path):
    policy = load_policy(config(folder, dtype="bfloat16", **LORA), CPU)
    assert policy.update_retention() == 1.0, "nothing had to"
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            parameter += 3e-3 * torch.randn_like(parameter) * ("lora_B" in name)
    assert policy.update_retention() == pytest.approx(1.0, abs=0.2)  # 5,120 weights, of which few moved
    assert load_policy(config(folder, **LORA), CPU).update_retention() == 1.0


def test_loras_gradient_is_that_of_the_sum(folder: Path):
    """Autograd through a plain model with the weights W + s B A; the layers' own backward pass is written by hand."""
    policy = Policy(make_tiny_model(vocabulary=96), make_tokenizer(), Config(policy=LORA))
    move(policy)
    found = gradients(policy)
    plain = Policy(make_tiny_model(vocabulary=96), make_tokenizer())
    trained = {name: p.detach().double().requires_grad_() for name, p in policy.trainable().items()}
    weights = dict(plain.network.named_parameters())
    for name in trained:
        if "lora_A" in name:
            weight = name.removeprefix("base_model.model.").replace("lora_A.default.", "")
            product = trained[name.replace("lora_A", "lora_B")] @ trained[name]
            weights[weight] = weights[weight].detach() + LORA["lora_alpha"] / LORA["lora_rank"] * product
    network = plain.network
    packed = batch()
    hidden = torch.func.functional_call(
        network.model,
        {name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.")},
        kwargs={"input_ids": packed.input_ids[None], "position_ids": packed.position_ids[None], "use_cache": False}
        | {"segments": packed.segments},
    ).last_hidden_state[0]
    logits = hidden[packed.logit_positions] @ network.lm_head.weight.T / 0.7
    torch.log_softmax(logits, -1).gather(-1, packed.targets[:, None]).sum().backward()
    for name, parameter in trained.items():
        torch.testing.assert_close(found[name].double(), parameter.grad, rtol=1e-6, atol=1e-8)


# 4-bit base


def test_nf4_under_lora_and_what_the_sampler_gets_of_it(folder: Path):
    linear = pytest.importorskip("bitsandbytes", exc_type=ImportError).nn.Linear4bit
    policy = load_policy(config(folder, quant="nf4", **LORA), CPU)
    original = load_policy(config(folder), CPU)
    assert sum(type(module) is linear for module in policy.network.modules()) == 2 * 7
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    move(policy)
    with torch.no_grad():  # the torch sampler's eval-mode forward must not repack what is dequantised afterwards
        policy.network.eval()
        logprobs(policy)
        policy.network.train()
    weights = dict(policy.sampler_weights())
    plain = make_tiny_model(True, torch.float32, 96)
    assert weights.keys() == plain.state_dict().keys()
    plain.load_state_dict(weights)
    gap = (logprobs(Policy(plain, policy.tokenizer)) - logprobs(policy)).abs().max()
    assert gap < 1e-4
    # The reference, the adapter switched off, is the 4-bit base and not the original one.
    assert (policy.ref_logprobs(batch(), 0.7) - logprobs(original)).abs().max() > 100 * gap


def test_nf4_gradients_reach_the_adapter_through_checkpointing(folder: Path):
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    policy = load_policy(config(folder, quant="nf4", gradient_checkpointing=True, **LORA), CPU)
    move(policy)
    assert all(gradient.abs().max() > 0 for gradient in gradients(policy).values())


# Attention kernels


def test_what_a_gpu_loses_without_flash_attn_is_said_in_one_line(folder: Path):
    assert load_policy(config(folder), CPU).attention_note is None
    if attention.kernel("cuda", torch.bfloat16) == "varlen":
        assert "flash-attn is not installed" in attention.KERNEL_NOTES["varlen"]
        with pytest.raises(UserError, match="flash-attn is not installed"):
            load_policy(config(folder, attention="flash_attention_2"), CPU)


def test_a_kernel_that_cannot_compute_here_is_the_exact_loop(folder: Path):
    """torch's varlen kernels exist for 16 bits on a GPU alone; elsewhere they would crash."""
    chosen = load_policy(config(folder, attention="varlen"), CPU)
    assert torch.equal(logprobs(chosen), logprobs(load_policy(config(folder), CPU)))
    assert "varlen computes in bfloat16 on a GPU only; sdpa is used" in chosen.attention_note
    assert load_policy(config(folder, attention="sdpa"), CPU).attention_note is None
    assert attention.kernel("cuda", torch.bfloat16, "sdpa") == "sdpa"
    assert attention.kernel("cuda", torch.float32, "varlen") == "sdpa"
    assert "flash_attention_2 computes in bfloat16" in attention.note("sdpa", "flash_attention_2", "cuda")


def test_what_the_flash_kernels_are_handed_is_the_same_attention(folder: Path, monkeypatch):
    """Runs, gathered keys and their limits, worked off one by one; the kernel's name goes through checkpointing too."""

    def one_by_one(q, k, v, limits, scaling, window):
        queries, keys = (torch.diff(limit).tolist() for limit in limits[:2])
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        runs = zip(q.split(queries, 2), k.split(keys, 2), v.split(keys, 2), strict=True)
        return torch.cat([attention._attend(*run, scaling, None) for run in runs], 2)[0].transpose(0, 1)

    policy = load_policy(config(folder, gradient_checkpointing=True), CPU)
    expected = gradients(policy)
    for parameter in policy.trainable().values():
        parameter.grad = None
    monkeypatch.setattr(attention, "_varlen", one_by_one)
    monkeypatch.setattr(attention, "_run_by_run", None)
    policy.kernel = "varlen"
    for name, gradient in gradients(policy).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


# Saving


def test_a_saved_model_loads_anywhere(folder: Path, tmp_path: Path):
    policy = load_policy(config(folder, attention="sdpa"), CPU)
    move(policy)
    policy.save(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert attention.NAME not in text, "our attention function means nothing to whoever loads the model"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[3, 5, 7, 9]])
    assert torch.equal(loaded(ids).logits, AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits)
    torch.testing.assert_close(logprobs(load_policy(config(tmp_path), CPU)), logprobs(policy), rtol=0, atol=1e-5)
    logprobs(policy)  # and training continues with its own attention


def test_a_saved_adapter_is_peft_s(folder: Path, tmp_path: Path):
    policy = load_policy(config(folder, **LORA), CPU)
    move(policy)
    policy.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
    torch.testing.assert_close(logprobs(Policy(merged, policy.tokenizer)), logprobs(policy), rtol=0, atol=1e-5)


def test_memory_that_does_not_suffice_for_a_packed_copy_is_the_error_that_is_reported(monkeypatch: pytest.MonkeyPatch):
    def product(*_):
        raise MemoryError("no room for a copy")

    policy = Policy(make_tiny_model(dtype=torch.float32, vocabulary=96), make_tokenizer())
    monkeypatch.setattr("grpo.policy.product", product)
    with pytest.raises(MemoryError, match="no room"), policy.sampling():
        pass
    assert policy.network.training
