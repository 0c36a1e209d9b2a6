"""Bytes of a run, by phase, and operations of a pass, from the model's configuration and the settings alone.

Learning holds: weights, float32 masters, two moments, float32 gradients, the reference, what the forward pass saves
for the backward pass at the token budget, and one chunk of logits. Sampling holds the weights, the moments, the
engine's own weights and the KV cache. tests/plan/test_memory.py runs the real learner on torch's meta device and counts
every live byte against these sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from grpo import hub
from grpo.engines.vllm_engine import VLLM_BATCHED_TOKENS, kv_bytes
from grpo.errors import UserError
from grpo.settings import Config

if TYPE_CHECKING:
    from grpo.plan import Plan

KNOWN = yaml.safe_load(Path(__file__).with_name("hardware.yaml").read_text(encoding="utf-8"))
"""cards and models, for a plan without a GPU and a network"""
GIB = 2**30
CUDA_CONTEXT = int(0.6 * GIB)
"""context, cuBLAS workspaces and loaded kernels"""
VLLM_GRAPHS = 1 * GIB
"""CUDA graphs and buffers; assumed. They stay while the engine sleeps, and so does its table of penalties."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""4 bits, an 8-bit scale for each block of 64, a float32 scale for each 256 of those"""
LOGIT_BYTES = {2: 8 + 2 + 2, 4: 8}
"""per logit of a chunk, by compute precision: two float32 buffers; in bfloat16 this chunk's gradient and the last"""
HOST_TOKEN_BYTES = 120
"""of the host's memory for a completion's token: its id and log-probability as Python numbers, and its place in a
packed batch"""
COMPRESSED_TOKEN = 1.3
"""bytes of a token in the run folder: about four letters, compressed"""
SAMPLER_BYTES = {"vllm": 16, "torch": 36}
"""per logit of the running sequences: float32 copies; the torch engine's cumulative sums are in float64"""


def attention_width(config: PreTrainedConfig) -> int:
    """Heads x head dimension; not always the hidden size (Qwen3)."""
    c = config.get_text_config()
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return c.num_attention_heads * head


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's configuration says about its weights."""

    config: PreTrainedConfig
    parameters: int
    """a tied head counted once"""
    linear: tuple[tuple[int, int], ...]
    """(in, out) of every linear layer but the head: what LoRA adapts and NF4 packs"""

    @property
    def text(self) -> PreTrainedConfig:
        return self.config.get_text_config()

    @property
    def context(self) -> int | None:
        """Longest sequence the model was made for."""
        return getattr(self.text, "max_position_embeddings", None)

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in all layers, in bfloat16."""
        return kv_bytes(self.text, 2)

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter of `rank` on all linear layers."""
        return sum(rank * (n_in + n_out) for n_in, n_out in self.linear)


@cache
def shape_of(name: str, trust_remote_code: bool = False) -> Shape:
    """From a model built on the meta device, where tensors have shapes and no memory. UserError without a config."""
    config = model_config(name, trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    linear = (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    parameters = sum(p.numel() for p in model.parameters())
    return Shape(config, parameters, tuple((m.in_features, m.out_features) for m in linear))


def model_config(name: str, trust_remote_code: bool = False, known: bool = True) -> PreTrainedConfig:
    """From a folder, the cache, hardware.yaml (unless not `known`), or the hub, in this order."""
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        if known and name in KNOWN["models"]:
            return AutoConfig.for_model(**KNOWN["models"][name])
    hub.require([name])
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot read the configuration of the model {name}: {line}; give a folder with config.json, or a Hugging "
            "Face id and a network"
        ) from error


# ---- bytes


def policy_parts(config: Config, shape: Shape, element: int) -> dict[str, float]:
    """Bytes that live as long as the run. `element`: bytes of a number in compute precision."""
    p, full = config.policy, shape.parameters
    trained = shape.adapter(p.lora_rank) if p.lora_rank else full
    moments = 2 * (1 + 4 / 256) if config.learner.optimizer == "adamw_8bit" else 8
    packed = sum(n_in * n_out for n_in, n_out in shape.linear) if p.quant == "nf4" else 0
    return {
        "weights": (full - packed) * element + packed * NF4_BYTES,
        "adapter": 4 * trained if p.lora_rank else 0,
        "float32 masters": 4 * trained if element < 4 and not p.lora_rank else 0,
        "optimiser moments": moments * trained,
        "reference": full * element if config.learner.kl_coef and not p.lora_rank else 0,
    }


def learning_parts(config: Config, shape: Shape, element: int) -> dict[str, float]:
    """Bytes that only learning needs, at their joint peak: gradients, activations, logits."""
    c, lora = shape.text, config.policy.lora_rank
    tokens = max(config.learner.microbatch_tokens, config.rollout.longest_sequence)
    layer, transient = _layer_bytes(shape, element, lora)
    # What is saved beside the layers: inputs of the embedding and the final norm, and the rows that the head reads.
    saved = c.hidden_size * (2 * element + 4 + (0 if lora else element))
    if config.policy.gradient_checkpointing:
        saved += c.num_hidden_layers * c.hidden_size * element
        passing = layer + transient
    else:
        saved += c.num_hidden_layers * layer
        passing = transient
    head = 0 if lora else c.vocab_size * c.hidden_size
    logits = (
        LOGIT_BYTES[element] * min(config.learner.logit_chunk, tokens) * c.vocab_size + tokens * c.hidden_size * element
    )
    trained = shape.adapter(lora) if lora else shape.parameters
    # The head's gradient is summed in float32; a tied one then waits in compute precision for the embedding's.
    moments = {"logits of a chunk": logits + 4 * head, "a layer's backward": tokens * passing + 2 * element * head}
    largest = max(moments, key=lambda name: moments[name])
    return {"gradients": 4 * trained, "saved activations": tokens * saved, largest: moments[largest]}


def _layer_bytes(shape: Shape, element: int, lora: int) -> tuple[float, float]:
    """Per token: what one layer saves for its backward pass, and what that pass holds in passing."""
    c = shape.text
    hidden, inner, width = c.hidden_size, c.intermediate_size, attention_width(c)
    keys = width * c.num_key_value_heads // c.num_attention_heads
    attention = element * (2 * width + 2 * 2 * keys)  # q, out, and k, v gathered behind shared prompts
    # A norm with a weight that is not trained does not save what it multiplies that weight by.
    norms = 2 * hidden * (4 + (1 if lora else 2) * element)
    return norms + attention + 4 * inner * element, 1.5 * inner * element


def sampler_parts(plan: Plan) -> tuple[dict[str, float], dict[str, float]]:
    """(bytes that only sampling needs, bytes of the sampler that stay while the learner works), without vLLM's KV
    cache: it takes what remains."""
    shape, rollout, running = plan.shape, plan.config.rollout, plan.config.rollout.running_sequences
    logits = SAMPLER_BYTES[plan.engine] * running * shape.text.vocab_size
    if plan.engine == "torch":  # its cache grows by half when it is full: old and new exist together
        kv = 2 * running * rollout.longest_sequence * shape.kv_bytes * plan.element / 2
        return {"sampler's logits": logits, "KV cache": kv}, {}
    batch = VLLM_BATCHED_TOKENS * 3 * shape.text.intermediate_size * plan.element
    only = {"vLLM activations": logits + batch}
    stay = {
        "vLLM graphs": 0 if plan.card.is_cpu else VLLM_GRAPHS,
        "vLLM penalties": 4 * running * shape.text.vocab_size,
    }
    weights = {"vLLM weights": shape.parameters * plan.element}
    return (only | weights, stay) if plan.sleeps else (only, stay | weights)


def reward_model_bytes(config: Config) -> float:
    """hybrid's reward model in bfloat16; in place of a head it has one output."""
    shape = shape_of(config.reward.hybrid.model, config.policy.trust_remote_code)
    head = 0 if shape.text.tie_word_embeddings else shape.text.vocab_size * shape.text.hidden_size
    return 2 * (shape.parameters - head)


def host_bytes(config: Config) -> float:
    """Of the host's memory for one rollout's completions, all of them at their longest."""
    return (
        config.rollout.prompts_per_step * config.rollout.group_size * config.rollout.longest_sequence * HOST_TOKEN_BYTES
    )


def disk_parts(config: Config, shape: Shape, element: int) -> tuple[float, float, float]:
    """Bytes of one checkpoint, of the weights kept of older evaluated steps, and of all completions, compressed."""
    parts = policy_parts(config, shape, element)
    weights = parts["adapter"] or parts["weights"]
    masters = parts["float32 masters"] or weights  # float32 weights are their own, and are written with the rest again
    both = math.lcm(config.eval.every, config.checkpoint.every)  # 0: one of them never happens
    older = max(0, config.steps // both - config.checkpoint.keep) if both else 0
    completions = config.steps * config.rollout.prompts_per_step * config.rollout.group_size
    text = completions * expected(config.rollout.max_new_tokens) * COMPRESSED_TOKEN
    return weights + masters + parts["optimiser moments"], older * weights, text


def expected(limit: int) -> float:
    """Tokens that prompts or completions are taken to have before any has been seen: a quarter of a long limit, all
    of a short one."""
    return min(limit, max(48, limit / 4))


# ---- operations: a product of an [n, a] with an [a, b] matrix takes 2 n a b


def causal_pairs(length: int, prefix: int = 0) -> int:
    """(query, key) pairs of `length` tokens that see themselves causally after `prefix` tokens they all see."""
    return length * prefix + length * (length + 1) // 2


def forward_flops(config: PreTrainedConfig, tokens: int, pairs: int, predicted: int | None = None) -> int:
    """Operations of one forward pass over `tokens` tokens that attend over `pairs` (query, key) pairs in all: the
    products of the layers, of attention and of the head.

    `predicted`: positions the head is computed on; all of them by default.
    """
    c, width = config.get_text_config(), attention_width(config)
    key_value_width = width * c.num_key_value_heads // c.num_attention_heads
    layer = c.hidden_size * (2 * width + 2 * key_value_width + 3 * c.intermediate_size)  # elements of its matrices
    attention = 4 * width * pairs  # scores, and the weighted sum of values
    head = 2 * c.hidden_size * c.vocab_size * (tokens if predicted is None else predicted)
    return c.num_hidden_layers * (2 * layer * tokens + attention) + head


def training_flops(
    config: PreTrainedConfig, tokens: int, pairs: int, predicted: int | None = None, frozen: bool = False
) -> int:
    """Operations of a forward and a backward pass.

    The backward pass takes two products for each of the forward pass: the gradients of both factors. With `frozen`
    weights (LoRA; the adapter's own small work is not counted) that of the weights falls away.
    """
    forward = forward_flops(config, tokens, pairs, predicted)
    if not frozen:
        return 3 * forward
    return 2 * forward + forward_flops(config, 0, pairs)
