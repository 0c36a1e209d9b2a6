"""The proof at load: exact families pass in value, gradient and greedy text; all others are refused with a cause."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_model import make_tiny_model
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from benchmarks.families import greedy, reference, tiny_model
from data.tiny_base import make_tokenizer
from grpo import attention, model_check
from grpo.errors import UserError
from grpo.model_check import prove
from grpo.packing import pack, sequence_length
from grpo.policy import Policy, load_policy
from grpo.settings import Config, parse
from grpo.types import Sample

CPU = torch.device("cpu")
EXACT = (
    *("llama", "qwen2", "qwen3", "mistral", "ministral", "phi", "phi3", "gemma", "gemma3_text", "arcee", "helium"),
    *("granite", "cohere", "cohere2", "olmo2", "olmo3", "gpt2", "gpt_neox", "opt", "starcoder2", "glm4", "smollm3"),
    *("exaone4", "seed_oss", "ernie4_5", "hunyuan_v1_dense"),
)
MIXTURES = ("qwen3_moe", "mixtral", "olmoe")
"""torch's grouped product has no float64."""
WINDOW = 8
SAMPLES = [
    Sample((3, 5, 7), (9, 11, 2), (0.0,) * 3, 1.0),
    Sample((3, 5, 7), (8, 2), (0.0,) * 2, -1.0),
    Sample(tuple(range(4, 24)), (20, 21, 22, 23), (0.0,) * 4, 0.5),  # longer than the window of 8
]


def policy_of(model: torch.nn.Module, **settings) -> Policy:
    return Policy(model, make_tokenizer(), Config(**settings))


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, torch.float64) for family in EXACT), *((family, torch.float32) for family in EXACT + MIXTURES)],
)
def test_packed_values_gradients_and_greedy_text_are_the_models_own(family: str, dtype: torch.dtype):
    """transformers' own attention, one sequence at a time, with autograd through its own logits."""
    model = tiny_model(family, dtype)
    own = copy.deepcopy(model)
    policy = policy_of(model)
    assert prove(policy, 64).startswith("model proved")
    expected = []
    for sample in SAMPLES:
        ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
        logp = torch.log_softmax(own(input_ids=ids, use_cache=False).logits[0, :-1] / 0.7, -1)
        expected.append(logp.gather(-1, ids[0, 1:, None])[-len(sample.completion_ids) :, 0])
    (batch,) = pack(SAMPLES, [1.0] * 3, sum(map(sequence_length, SAMPLES)))
    packed = policy.logprobs(batch, 0.7)[0]
    # Some of transformers' norms compute in float32 whatever the model's precision is.
    limit = 1e-5 if dtype is torch.float32 else 2e-6
    torch.testing.assert_close(packed, torch.cat(expected)[batch.flat_index], rtol=0, atol=limit)
    torch.cat(expected).square().sum().backward()
    packed.square().sum().backward()
    trained = policy.trainable()
    for name, parameter in own.named_parameters():
        if parameter.grad is not None:
            # A key bias has no gradient: softmax does not see it.
            gap = (trained[name].grad - parameter.grad).norm() / max(parameter.grad.norm(), 0.5)
            assert gap < 10 * limit, name
    assert greedy(policy) == reference(own)


@pytest.mark.parametrize(
    ("family", "cause"),
    [
        ("gemma2", "takes softcap"),
        ("gpt_oss", "takes s_aux"),
        ("gptj", "attention interface"),
        ("stablelm", "see each other|leaves out"),
        ("nanochat", "soft-capping"),
        ("bert", "leaves out"),
        ("qwen3_next", "fails here"),
        ("bloom", "fails here"),
    ],
)
def test_a_model_that_is_not_computed_exactly_is_refused_with_the_cause(family: str, cause: str):
    with pytest.raises(UserError, match=f"^{family} is not supported: .*{cause}"):
        prove(policy_of(tiny_model(family)), 64)


def llama(**settings) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.4, max_position_embeddings=256, **settings)
    return LlamaForCausalLM(config)


def test_a_rope_that_depends_on_the_length_is_refused_where_the_run_passes_its_threshold():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 32, "rope_theta": 10000.0, "factor": 8.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    assert "19 tokens" in prove(policy_of(llama(rope_parameters=rope)), 32)
    with pytest.raises(UserError, match="longrope"):
        prove(policy_of(llama(rope_parameters=rope)), 33)


def test_a_window_is_tried_only_where_the_run_can_be_longer():
    # A prompt of the window's 8 tokens and 3 completion tokens pass it.
    model = tiny_model("mistral")
    assert len(model_check._draw(policy_of(copy.deepcopy(model)), WINDOW)) == 3
    assert len(model_check._draw(policy_of(model), WINDOW + 1)) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_each_broken_part_fails_the_proof(dtype: torch.dtype, rank: int, monkeypatch: pytest.MonkeyPatch):
    policy = policy_of(make_tiny_model(dtype=dtype, vocabulary=96), policy={"lora_rank": rank})
    prove(policy, 64)
    weights = {name: p.clone() for name, p in policy.model.named_parameters()}

    policy.logit_scale = 1.01  # trainer and sampler share the mistake
    with pytest.raises(UserError, match="soft-capping, a scale"):
        prove(policy, 64)
    policy.logit_scale = 1.0

    attend = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda q, k, v, scaling, *more: attend(q, k, v, 1.05 * scaling, *more))
    with pytest.raises(UserError, match=r"packed .*sampler"):
        prove(policy, 64)
    monkeypatch.setattr(attention, "_attend", attend)

    def steeper(*arguments):
        out = attend(*arguments)
        return out + 2 * (out - out.detach())  # the same value, three times the gradient

    monkeypatch.setattr(attention, "_attend", steeper)
    with pytest.raises(UserError, match="another gradient"):
        prove(policy, 64)

    write = model_check.TorchEngine.generate

    def shifted(self, *arguments):
        groups = write(self, *arguments)
        for completion in (completion for group in groups for completion in group):
            object.__setattr__(completion, "sampler_logprobs", tuple(x - 0.3 for x in completion.sampler_logprobs))
        return groups

    monkeypatch.setattr(model_check.TorchEngine, "generate", shifted)
    with pytest.raises(UserError, match="decoding with a KV cache"):  # with both of them wrong, and with the sampler
        prove(policy, 64)
    monkeypatch.setattr(attention, "_attend", attend)
    with pytest.raises(UserError, match="decoding with a KV cache"):
        prove(policy, 64)
    monkeypatch.undo()
    assert prove(policy, 64), "a proof leaves the policy as it was"
    assert all(torch.equal(p, weights[name]) for name, p in policy.model.named_parameters())
    assert all(p.grad is None for p in policy.model.parameters())


@pytest.fixture
def rounded_products():
    """Float32 products of bfloat16 factors, where the processor has them."""
    factor = torch.linspace(1, 2, 64 * 64).view(64, 64)
    exact = factor @ factor
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        if torch.equal(factor @ factor, exact):
            pytest.skip("this processor has no products of bfloat16")
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_rounded_float32_products_are_named_and_not_the_model(rounded_products):
    with pytest.raises(UserError, match=r"cannot be proved: torch\.backends\.mkldnn\.matmul\.fp32_precision is 'bf16'"):
        prove(policy_of(make_tiny_model(dtype=torch.float32, vocabulary=96)), 64)


def test_of_a_long_sequence_only_the_compared_logits_are_computed():
    # 4,096 tokens x 150,000 words in float32 would be 2.5 GB, several times over.
    policy = policy_of(tiny_model("mistral"))
    computed = []
    policy.network.lm_head.register_forward_hook(lambda _head, _arguments, logits: computed.append(logits.shape[-2]))
    prove(policy, 64)
    assert max(computed) == model_check.TOKENS + 1


def test_bfloat16_weights_do_not_fail_by_chance():
    # Of ten rounding errors the sampler's largest is 2.13 times the own pass's largest.
    policy = load_policy(parse({"model": "data/tiny-base", "policy": {"dtype": "bfloat16"}}), CPU)
    noise = torch.Generator().manual_seed(47)
    with torch.no_grad():
        for weight in policy.network.parameters():
            if weight.ndim > 1:
                weight.copy_(weight + 0.05 * weight.float().std() * torch.randn(weight.shape, generator=noise))
    prove(policy, 512)


def test_memory_that_does_not_suffice_is_not_blamed_on_the_model(monkeypatch: pytest.MonkeyPatch):
    def generate(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(model_check.TorchEngine, "generate", generate)
    with pytest.raises(UserError, match="cannot be proved: out of memory"):
        prove(policy_of(make_tiny_model(vocabulary=96)), 64)


def test_dropout_that_the_configuration_names_is_off_and_any_other_refused(tmp_path):
    torch.manual_seed(0)
    config = OPTConfig(vocab_size=96, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2)
    assert config.dropout == 0.1, "OPT calls F.dropout with it"
    OPTForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    prove(load_policy(parse({"model": str(tmp_path)}), CPU), 64)

    model = make_tiny_model(dtype=torch.float32, vocabulary=96)
    model.model.layers[0].mlp.act_fn = torch.nn.Sequential(model.model.layers[0].mlp.act_fn, torch.nn.Dropout(0.5))
    with pytest.raises(UserError, match="dropout that its configuration does not name"):
        prove(policy_of(model), 64)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused():
    with pytest.raises(UserError, match=r"token ids up to 95, but the model has embeddings for 40 tokens"):
        policy_of(make_tiny_model(vocabulary=40))
