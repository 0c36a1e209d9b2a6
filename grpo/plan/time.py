"""Seconds of a step, from operations, bytes and the card's data sheet.

What gradient checkpointing computes a second time is no credit in the utilisation (model FLOPs, arXiv 2204.02311,
appendix B), but it takes its time.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from data.sources import SOURCES
from grpo.errors import UserError
from grpo.evaluation.benchmarks import names, read
from grpo.plan.memory import GIB, KNOWN, Shape, causal_pairs, expected, forward_flops, shape_of, training_flops
from grpo.settings import Config, nearest

if TYPE_CHECKING:
    from grpo.plan import Plan


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    memory: float
    """bytes in all; on this machine, bytes that are free"""
    flops: float
    """dense bf16 operations per second with float32 sums, by the data sheet (CPU: fp32, a rough figure)"""
    bandwidth: float
    """bytes per second of the card's own memory"""
    sustained: float
    """share of `flops` that matrix products keep up"""
    here: bool = False
    """in this machine, not only in the table"""
    bf16: bool = True
    """computes in bfloat16"""

    @property
    def is_cpu(self) -> bool:
        return self.name.startswith("CPU")


CARDS = {
    name: Card(card["name"], card["gib"] * GIB, card["teraflops"] * 1e12, card["gigabytes"] * 1e9, card["sustained"])
    for name, card in KNOWN["cards"].items()
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
    bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    return replace(known(name) or CARDS[UNKNOWN], name=name, memory=float(free), here=True, bf16=bf16)


def known(name: str) -> Card | None:
    """The card of the table whose name is in the device's as whole words: an L40S is no L4, an RTX A1000 no A100."""
    fitting = [card for card in CARDS.values() if re.search(rf"\b{card.name}\b", name)]
    return max(fitting, key=lambda card: len(card.name), default=None)


def _cpu(memory: float) -> Card:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Card(f"CPU, {cores} cores", float(memory), cores * CPU_FLOPS_PER_CORE, CPU_BANDWIDTH, 1.0, here=True)


# ---- seconds

BANDWIDTH_SHARE = 0.85
"""of the data sheet's bandwidth that elementwise operators reach"""
DECODE_FLOPS, DECODE_BANDWIDTH = 0.5, 0.7
"""shares of the data sheet's that decoding reaches"""
SAMPLER_PASSES = 2
"""how often vLLM goes over a running sequence's float32 logits, each time reading and writing"""
DECODE_STEP = {"vllm": 4e-3, "torch": 12e-3}
"""seconds that decoding one token of every running sequence takes at least"""
HOST_TOKEN = {"vllm": 22e-6, "torch": 0.0}
"""seconds of vLLM's one thread for a token (scheduling, updating, collecting), beside the card's work; measured on
vLLM's CPU build"""
HOST_COMPLETION = 1e-3
"""seconds of the processor for a completion, with the GPU idle: packing, decoding, verifying"""
START = {"vllm": 150.0, "torch": 20.0}
"""seconds before the first step on a GPU: loading, and vLLM's compilation and graphs; assumed"""
ROWS_UNKNOWN = 500
CPU_LAYER = 0.5e-3
"""seconds of a layer's calls on a CPU, however small the model"""

# Bytes that elementwise operators move for a token in a layer, (by hidden size, by intermediate size), and for a
# predicted token by vocabulary. From benchmarks/roofline.py, which counts every operator of the learner;
# tests/plan/test_speed.py holds this plan to that count.
FORWARD_BYTES = {"all": (51, 9), "lora": (73, 28)}
TRAINING_BYTES = {"all": (348, 4), "lora": (244, 58)}
HEAD_BYTES, ENTROPY_BYTES, HEAD_FORWARD_BYTES = 80, 16, 12


def step_seconds(plan: Plan, tokens: float) -> dict[str, float]:
    """Phase -> seconds, with `tokens` tokens a completion. Evaluation is spread over all steps; checkpoints are not
    planned."""
    config, evaluated = plan.config, _evaluated(plan.config)
    completions = config.rollout.prompts_per_step * config.rollout.group_size
    evaluations = (config.steps // config.eval.every + 1) / config.steps if evaluated else 0
    return {
        "rollout": _rollout(plan, completions, tokens),
        "reward": completions * HOST_COMPLETION + _reward_model(plan, tokens),
        "learn": _learn(plan, tokens),
        "sync": 0.0 if plan.engine == "torch" else 4 * plan.shape.parameters * plan.element / plan.card.bandwidth,
        "eval": _rollout(plan, evaluated, tokens) * evaluations if evaluated else 0.0,
    }


def _reward_model(plan: Plan, tokens: float) -> float:
    """The hybrid reward's forward pass over every completion with its prompt."""
    if plan.config.reward.name != "hybrid":
        return 0.0
    rollout, shape = plan.config.rollout, shape_of(plan.config.reward.hybrid.model)
    count, length = rollout.prompts_per_step * rollout.group_size, expected(rollout.max_prompt_tokens) + tokens
    work = forward_flops(shape.config, count * length, count * causal_pairs(int(length)), 0)
    return work / (plan.card.flops * plan.card.sustained)


def _evaluated(config: Config) -> int:
    """Completions of one evaluation of the curve."""
    if not config.eval.every:
        return 0
    ways = 1 if config.eval.sampling == "greedy" else 2
    return ways * sum(min(config.eval.limit or rows, rows) for rows in map(_rows, names(config.eval.data)))


@cache
def _rows(name: str) -> int:
    """Of a data file, without fetching it: as it lies here, else as published. It is read once in a process."""
    if Path(name).is_file():
        return sum(1 for _ in read(name))
    source = SOURCES.get(Path(name).stem)
    return source.rows if source else ROWS_UNKNOWN


def _rollout(plan: Plan, completions: float, tokens: float) -> float:
    """Decoding reads all weights, the running sequences' KV cache and their logits for one token of each. At the end
    the longest completions run on alone."""
    card, shape, rollout = plan.card, plan.shape, plan.config.rollout
    prompt = expected(rollout.max_prompt_tokens)
    most = max(1, plan.kv_bytes // (shape.kv_bytes * (prompt + tokens)))
    running = min(rollout.running_sequences, most, completions)

    def step(count: float) -> float:
        seen = count * (prompt + tokens / 2)
        logits = 2 * 4 * SAMPLER_PASSES * count * shape.text.vocab_size
        read = shape.parameters * plan.element + seen * shape.kv_bytes + logits
        reading = read / (DECODE_BANDWIDTH * card.bandwidth)
        computing = forward_flops(shape.config, count, seen) / (DECODE_FLOPS * card.flops)
        least = CPU_LAYER * shape.text.num_hidden_layers if card.is_cpu else DECODE_STEP[plan.engine]
        return max(reading, computing, count * HOST_TOKEN[plan.engine]) + least

    tail = max(0.0, rollout.max_new_tokens - tokens)
    return completions * tokens / running * step(running) + tail * step(1)


def _learn(plan: Plan, tokens: float) -> float:
    """Matrix products at the rate the card keeps up, and what elementwise operators move at its bandwidth."""
    config, card, shape = plan.config, plan.card, plan.shape
    predicted, packed, pairs = _learned(config, tokens)
    again, scored = bool(config.policy.gradient_checkpointing), _scoring_passes(config)
    head = forward_flops(shape.config, 0, 0, predicted)  # computed again in the backward pass
    work = learning_flops(config, shape, tokens) + head + again * forward_flops(shape.config, packed, pairs, 0)
    kind, c = "lora" if config.policy.lora_rank else "all", shape.text

    def in_layers(hidden: float, inner: float) -> float:
        return packed * c.num_hidden_layers * (hidden * c.hidden_size + inner * c.intermediate_size)

    moved = in_layers(*TRAINING_BYTES[kind]) + scored * in_layers(*FORWARD_BYTES["all"])
    moved += again * in_layers(*FORWARD_BYTES[kind])
    at_head = HEAD_BYTES + (config.learner.entropy_coef > 0) * ENTROPY_BYTES + scored * HEAD_FORWARD_BYTES
    moved += predicted * c.vocab_size * at_head
    batches = -(-packed // max(config.learner.microbatch_tokens, config.rollout.longest_sequence))
    calls = batches * 3 * CPU_LAYER * c.num_hidden_layers if card.is_cpu else 0
    return work / (card.flops * card.sustained) + moved / (card.bandwidth * BANDWIDTH_SHARE) + calls


def learning_flops(config: Config, shape: Shape, tokens: float) -> float:
    """Operations of one step's learning with `tokens` tokens a completion: a forward and a backward pass, and the
    scoring passes."""
    predicted, packed, pairs = _learned(config, tokens)
    work = training_flops(shape.config, packed, pairs, predicted, frozen=config.policy.lora_rank > 0)
    return work + _scoring_passes(config) * forward_flops(shape.config, packed, pairs, predicted)


def _learned(config: Config, tokens: float) -> tuple[int, int, int]:
    """Predicted tokens, tokens with their prompts (each once for its group), and (query, key) pairs of a step."""
    prompt, problems = expected(config.rollout.max_prompt_tokens), config.rollout.prompts_per_step
    completions = problems * config.rollout.group_size
    pairs = completions * causal_pairs(int(tokens), int(prompt))
    return int(completions * tokens), int(completions * tokens + problems * prompt), pairs


def _scoring_passes(config: Config) -> float:
    """Forward passes without a backward pass, in passes over all of a step's tokens: one for the reference when there
    is a KL term, and one for the old logprobs of all minibatches but the first."""
    minibatches = config.learner.minibatches_per_rollout
    return (config.learner.kl_coef > 0) + (minibatches - 1) / minibatches
