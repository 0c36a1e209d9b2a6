"""Seconds of a step, from operations, bytes and the card's data sheet. A plan until the first steps have been timed."""

from __future__ import annotations

from grpo.config import Config
from grpo.plan.flops import causal_pairs, forward_flops, training_flops
from grpo.plan.hardware import Card
from grpo.plan.memory import Shape, full_length, running_sequences

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
