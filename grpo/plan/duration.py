"""Seconds of a step, from operations, bytes and the card's data sheet; and how much of the card learning used.

A product of an [n, a] with an [a, b] matrix takes 2 n a b operations. Counted are the products of the layers, of
attention and of the head. What gradient checkpointing computes a second time is no credit in the utilisation (model
FLOPs, arXiv 2204.02311, appendix B), but it takes its time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil
import torch
from transformers import PreTrainedConfig

from grpo.config import Config, LearnerConfig, nearest
from grpo.errors import UserError
from grpo.plan.memory import GIB, Shape, attention_width, full_length, running_sequences
from grpo.types import Group

if TYPE_CHECKING:
    from grpo.policy import Policy


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    memory: float
    """bytes: what torch reports as total, a little under the name's figure; on this machine, what is free"""
    flops: float
    """dense bf16 products per second with float32 sums, by the data sheet (CPU: fp32, a rough figure)"""
    bandwidth: float
    """bytes per second of the card's own memory"""
    host_bandwidth: float = 20e9
    """bytes per second to the host's memory, pinned"""
    here: bool = False
    """in this machine, not only in the table"""

    @property
    def is_cpu(self) -> bool:
        return self.name.startswith("CPU")


def _gpu(name: str, gib: float, teraflops: float, gigabytes_per_second: float) -> Card:
    return Card(name, gib * GIB, teraflops * 1e12, gigabytes_per_second * 1e9)


CARDS = {
    "l4": _gpu("L4", 22.0, 121, 300),
    "a10": _gpu("A10", 22.0, 125, 600),
    "a10g": _gpu("A10G", 22.0, 70, 600),
    "l40s": _gpu("L40S", 44.4, 362, 864),
    "3090": _gpu("3090", 23.6, 71, 936),
    "4090": _gpu("4090", 23.5, 165, 1008),
    "a1000": _gpu("A1000", 7.8, 27, 192),
    "a100": _gpu("A100", 79.2, 312, 1935),
    "h100": _gpu("H100", 79.1, 989, 3350),
    "h100-pcie": _gpu("H100 PCIe", 79.1, 756, 2000),
    "h200": _gpu("H200", 139.8, 989, 4800),
    "b200": _gpu("B200", 178.0, 2250, 8000),
}
UNKNOWN = "a10"
"""whose speed a card is planned with that is not in the table"""
CPU_FLOPS_PER_CORE = 20e9
CPU_BANDWIDTH = 10e9


def card_named(name: str) -> Card:
    """From the table, or `cpu`: this machine's processor."""
    if name.lower() == "cpu":
        return _cpu(psutil.virtual_memory().total)
    if name.lower() not in CARDS:
        names = [*CARDS, "cpu"]
        raise UserError(f"no data sheet for {name!r}; there are {', '.join(names)}{nearest(name.lower(), names)}")
    return CARDS[name.lower()]


def this_card(device: torch.device) -> Card:
    """The device a run would use, with the memory that is free now."""
    if device.type != "cuda":
        return _cpu(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device).removeprefix("NVIDIA ")
    return replace(known(name) or CARDS[UNKNOWN], name=name, memory=float(free), here=True)


def known(name: str) -> Card | None:
    """The card of the table whose name is in the device's as whole words: an L40S is no L4, an RTX A1000 no A100."""
    fitting = [card for card in CARDS.values() if re.search(rf"\b{card.name}\b", name)]
    return max(fitting, key=lambda card: len(card.name), default=None)


def _cpu(memory: float) -> Card:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Card(f"CPU, {cores} cores", float(memory), cores * CPU_FLOPS_PER_CORE, CPU_BANDWIDTH, here=True)


# ---- operations


def causal_pairs(length: int, prefix: int = 0) -> int:
    """(query, key) pairs of `length` tokens that see themselves causally after `prefix` tokens they all see."""
    return length * prefix + length * (length + 1) // 2


def forward_flops(config: PreTrainedConfig, tokens: int, pairs: int, predicted: int | None = None) -> int:
    """Operations of one forward pass over `tokens` tokens that attend over `pairs` (query, key) pairs in all.

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


def utilisation(
    policy: Policy, groups: Sequence[Group], advantages: torch.Tensor, config: LearnerConfig, seconds: float
) -> dict[str, float]:
    """`speed/mfu` on a GPU of the table; nothing where there is no data sheet to be measured against."""
    card = known(torch.cuda.get_device_name(policy.device)) if policy.device.type == "cuda" else None
    if card is None:
        return {}
    return {"speed/mfu": learning_flops(policy, groups, advantages, config) / (seconds * card.flops)}


def learning_flops(policy: Policy, groups: Sequence[Group], advantages: torch.Tensor, config: LearnerConfig) -> int:
    """Operations of one rollout's learning, `advantages` being [groups, completions].

    Each prompt counts once for its group. A forward and a backward pass, one more forward pass for the reference when
    there is a KL term, and one for the old logprobs when there are several updates.
    """
    tokens = pairs = predicted = 0
    for group, row in zip(groups, advantages.tolist(), strict=True):
        lengths = [
            len(completion.ids)
            for completion, advantage in zip(group.completions, row, strict=True)
            if (advantage or not config.skip_zero_variance)
            and (config.truncated == "keep" or completion.finish_reason == "stop")
        ]
        if lengths:
            prompt = len(group.problem.prompt_ids)
            tokens += prompt + sum(lengths)
            predicted += sum(lengths)
            pairs += causal_pairs(prompt) + sum(causal_pairs(length, prompt) for length in lengths)
    shape = policy.network.config
    forward_only = (config.kl_coef > 0) + (config.minibatches_per_rollout > 1)
    return training_flops(shape, tokens, pairs, predicted, frozen=policy.lora) + forward_only * forward_flops(
        shape, tokens, pairs, predicted
    )


# ---- seconds

LEARN_EFFICIENCY = 0.4
DECODE_EFFICIENCY = 0.5
BANDWIDTH_EFFICIENCY = 0.7
"""shares of the data sheet's rates that are taken to be reached"""
GPU_STEP = {"vllm": 4e-3, "torch": 12e-3}
"""seconds that decoding one token of every running sequence takes at least"""
CPU_LAYER = 0.5e-3
"""seconds of a layer's calls on a CPU, however small the model"""
EXPECTED_SHARE = 0.25
"""of the token limits: what prompts and completions are taken to fill before any has been seen"""


def step_seconds(
    config: Config, shape: Shape, card: Card, engine: str, kv_bytes: float, completion_tokens: float
) -> dict[str, float]:
    """Phase -> seconds. Rewards, evaluation and checkpoints are not planned: they are measured."""
    prompt = EXPECTED_SHARE * config.rollout.max_prompt_tokens
    return {
        "rollout": _rollout(config, shape, card, engine, kv_bytes, prompt, completion_tokens),
        "learn": _learn(config, shape, card, prompt, completion_tokens),
        "sync": _sync(config, shape, card, engine),
    }


def _rollout(config, shape, card, engine, kv_bytes, prompt, tokens) -> float:
    """Decoding reads all weights and every running sequence's KV cache for one token of each."""
    completions = config.rollout.problems * config.rollout.group
    running = min(running_sequences(config), max(1, kv_bytes // (shape.kv_bytes * (prompt + tokens))))
    weights = shape.parameters * (4 if card.is_cpu else 2)
    read = (weights + running * (prompt + tokens / 2) * shape.kv_bytes) / (card.bandwidth * BANDWIDTH_EFFICIENCY)
    pairs = running * (prompt + tokens / 2)
    compute = forward_flops(shape.config, running, pairs) / (card.flops * DECODE_EFFICIENCY)
    least = CPU_LAYER * shape.text.num_hidden_layers if card.is_cpu else GPU_STEP[engine]
    return completions * tokens / running * (max(read, compute) + least)


def _learn(config, shape, card, prompt, tokens) -> float:
    """Forward and backward over every completion; checkpointing, reference and old logprobs add forward passes."""
    o, completions = config.learner, config.rollout.problems * config.rollout.group
    predicted = int(completions * tokens)
    pairs = completions * causal_pairs(int(tokens), int(prompt))
    forward = forward_flops(shape.config, predicted, pairs)
    extra = config.policy.gradient_checkpointing + (o.kl_coef > 0) + (o.minibatches_per_rollout > 1)
    work = training_flops(shape.config, predicted, pairs, frozen=config.policy.lora_rank > 0) + extra * forward
    batches = -(-predicted // max(o.token_budget, full_length(config)))
    calls = batches * 3 * CPU_LAYER * shape.text.num_hidden_layers if card.is_cpu else 0
    return work / (card.flops * LEARN_EFFICIENCY) + calls


def _sync(config, shape, card, engine) -> float:
    """The torch engine samples with the policy itself. vLLM gets a copy, and sleep moves it to the host and back."""
    if engine == "torch":
        return 0.0
    weights = shape.parameters * (4 if card.is_cpu else 2)
    moved = 2 * weights / card.host_bandwidth if config.rollout.sleep and not card.is_cpu else 0
    return 4 * weights / card.bandwidth + moved
