"""The planner's bytes against the learner's own: the real policy, loss head and optimiser run on the meta device, where
a tensor has a size and no content, while every live storage is counted."""

from __future__ import annotations

import weakref

import pytest
import torch
from meta_kernels import meta_kernels
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from grpo.engines.vllm_engine import VLLMEngine
from grpo.errors import UserError
from grpo.machine import GIB
from grpo.optim import Optimizer
from grpo.packing import pack
from grpo.plan.hardware import GPUS
from grpo.plan.memory import NF4_BYTES, learning_parts, policy_parts
from grpo.plan.shapes import ModelShape, RunShape, model_config, model_shape, shape_of
from grpo.policy import Policy
from grpo.settings import build, changed
from grpo.types import Sample

# (hidden, layers, heads, key/value heads, intermediate, tied): parameters as the published checkpoints have them, whose
# safetensors hold twice as many bytes.
PUBLISHED = {
    "Qwen2.5-0.5B": ((896, 24, 14, 2, 4864, True), 494_032_768),
    "Qwen2.5-1.5B": ((1536, 28, 12, 2, 8960, True), 1_543_714_304),
    "Qwen2.5-3B": ((2048, 36, 16, 2, 11008, True), 3_085_938_688),
}


def qwen2(hidden, layers, heads, kv_heads, intermediate, tied, vocabulary=151936):
    return AutoConfig.for_model(
        "qwen2",
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


def by_hand(hidden, layers, heads, kv_heads, intermediate, tied, vocabulary=151936) -> int:
    """Every matrix, bias and norm of a Qwen2, written out."""
    kv = hidden // heads * kv_heads
    attention_ = 2 * hidden * hidden + 2 * hidden * kv + hidden + 2 * kv  # q, o; k, v; biases of q, k, v
    layer = attention_ + 3 * hidden * intermediate + 2 * hidden
    return layers * layer + hidden + vocabulary * hidden * (1 if tied else 2)


def shape_from(config) -> ModelShape:
    with torch.device("meta"):
        return shape_of(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models_to_the_byte(name):
    dimensions, parameters = PUBLISHED[name]
    assert by_hand(*dimensions) == parameters
    assert shape_from(qwen2(*dimensions)).parameters == parameters


def test_an_untied_head_counts_twice():
    dimensions, parameters = PUBLISHED["Qwen2.5-1.5B"]
    untied = (*dimensions[:-1], False)
    assert by_hand(*untied) == parameters + 151936 * 1536
    assert shape_from(qwen2(*untied)).parameters == by_hand(*untied)
    assert shape_from(qwen2(*untied)).body == parameters


def test_the_model_of_the_presets_is_known_without_a_network():
    shape = model_shape("Qwen/Qwen2.5-Math-1.5B")
    assert shape.parameters == 1_543_714_304
    assert shape.context == 4096
    assert shape.kv_elements == 14 * 1024  # 2 (k, v) x 28 layers x 2 heads x 128
    # rank 64 on q, k, v, o, gate, up, down of 28 layers
    outs = (1536, 256, 256, 1536, 8960, 8960)
    assert shape.adapter(64) == 28 * 64 * (sum(1536 + out for out in outs) + 8960 + 1536)


def test_an_unknown_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match="there is no folder") as error:
        model_config(str(tmp_path / "nothing"))
    assert "\n" not in str(error.value)


def run_shape(config, shape: ModelShape) -> RunShape:
    return RunShape(config, shape, GPUS["h100"], VLLMEngine)


def test_nf4_packs_the_linear_layers_and_nothing_else():
    shape = model_shape("Qwen/Qwen2.5-Math-1.5B")
    l4 = build("l4", {"policy.quant": "none"})
    plain = policy_parts(run_shape(l4, shape))
    packed = policy_parts(run_shape(changed(l4, {"policy.quant": "nf4"}), shape))
    linear = shape.linear_elements
    assert plain["weights"] == 2 * shape.parameters
    assert plain["weights"] - packed["weights"] == pytest.approx(linear * (2 - NF4_BYTES))
    assert {k: v for k, v in plain.items() if k != "weights"} == {k: v for k, v in packed.items() if k != "weights"}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that exist, and remembers the most there ever were."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _add(self, storage):
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key):
        self.now -= self.alive.pop(key)


class NoTokenizer:
    eos_token_id, chat_template = 1, None

    def get_vocab(self):
        return {}


def live_peak(config, architecture) -> tuple[float, float]:
    """(bytes of what stays, peak) of two accumulated micro-batches at the token budget and an optimiser step."""
    rollout, live = config.rollout, LiveBytes()
    completions = config.learner.microbatch_tokens // rollout.longest_sequence
    length = config.learner.microbatch_tokens // completions - rollout.max_prompt_tokens
    samples = [
        Sample((2,) * (rollout.max_prompt_tokens - 1) + (i,), (3,) * length, (0.0,) * length, 1.0)
        for i in range(completions)
    ]
    with meta_kernels(), live:
        model = AutoModelForCausalLM.from_config(architecture, dtype=getattr(torch, config.policy.dtype))
        policy = Policy(model, NoTokenizer(), config)
        optimizer = Optimizer(policy.trainable().values(), config.learner, total_steps=1)
        batch = pack(samples, [1.0] * len(samples), 10**9)[0]
        for _ in range(2):
            logprobs, entropy = policy.logprobs(batch, 0.6)
            if config.learner.kl_coef:
                policy.ref_logprobs(batch, 0.6)
            (logprobs.sum() + entropy.sum()).backward()
            del logprobs, entropy
        optimizer.clip_gradients()
        optimizer.step()
        optimizer.zero_grad()
        return live.now, live.peak


BASE = {
    "policy.dtype": "bfloat16",
    "rollout.max_prompt_tokens": 512,
    "rollout.max_new_tokens": 1536,
    "policy.quant": "none",
    "policy.gradient_checkpointing": "true",
}
FEW_WORDS = {"vocabulary": 4096}  # then a layer's backward pass holds more than a chunk of logits
CASES = {
    "LoRA as in l4": ("l4", {}, {}),
    "LoRA, long batch, few words": ("l4", {"learner.microbatch_tokens": 32768}, FEW_WORDS),
    "LoRA, 6 layers, few words": ("l4", {}, FEW_WORDS | {"layers": 6}),
    "LoRA without checkpointing": ("l4", {"policy.gradient_checkpointing": "false"}, {}),
    "all weights as in h100": ("h100", {}, {}),
    "all weights, few words": ("h100", {}, FEW_WORDS),
    "all weights, small chunk": ("h100", {"learner.logit_chunk": 128, "learner.microbatch_tokens": 4096}, {}),
    "all weights without checkpointing": ("h100", {"policy.gradient_checkpointing": "false"}, {}),
    "all weights in float32": ("h100", {"policy.dtype": "float32", "learner.kl_coef": "0"}, {}),
    "all weights, one sequence": ("h100", {"learner.microbatch_tokens": 2048}, FEW_WORDS),
}


@pytest.mark.parametrize("case", CASES)
def test_learning_memory_is_what_the_learner_uses(case):
    """The 1.5B architecture with 3 of its 28 layers, and once with 6: short by at most 3 %, over by at most 10."""
    preset, options, dimensions = CASES[case]
    config = build(preset, BASE | {"learner.microbatch_tokens": 24576 if preset == "h100" else 8192} | options)
    model = qwen2(1536, heads=12, kv_heads=2, intermediate=8960, tied=True, **{"layers": 3} | dimensions)
    run = run_shape(config, shape_from(model))
    stay, peak = live_peak(config, model)
    planned_stay = sum(policy_parts(run).values())
    planned = planned_stay + sum(learning_parts(run).values())
    assert planned_stay == pytest.approx(stay, rel=0.01), f"{planned_stay / GIB:.3f} planned, {stay / GIB:.3f} used"
    assert 0.97 * peak < planned < 1.1 * peak, f"{planned / GIB:.3f} planned, {peak / GIB:.3f} used"
