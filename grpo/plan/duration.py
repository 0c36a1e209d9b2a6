"""Seconds of a step, from operations, bytes and the card's data sheet; and how much of the card learning used.

A product of an [n, a] with an [a, b] matrix takes 2 n a b operations. Counted are the products of the layers, of
attention and of the head. What gradient checkpointing computes a second time is no credit in the utilisation (model
FLOPs, arXiv 2204.02311, appendix B), but it takes its time.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
from transformers import PreTrainedConfig

from data.sources import SOURCES
from grpo.config import Config
from grpo.evaluation.benchmarks import names
from grpo.plan.cards import Card
from grpo.plan.memory import Shape, attention_width, full_length, running_sequences


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


def learning_flops(config: Config, shape: Shape, prompt: float, tokens: float) -> float:
    """Operations of one step's learning with `tokens` tokens a completion.

    Each prompt counts once for its group. A forward and a backward pass, one more forward pass for the reference when
    there is a KL term, and one for the old logprobs of all minibatches but the first.
    """
    predicted, packed, pairs = _learned(config, prompt, tokens)
    work = training_flops(shape.config, packed, pairs, predicted, frozen=config.policy.lora_rank > 0)
    return work + _scoring_passes(config) * forward_flops(shape.config, packed, pairs, predicted)


def _learned(config: Config, prompt: float, tokens: float) -> tuple[int, int, int]:
    """Predicted tokens, tokens with their prompts, and (query, key) pairs of a step."""
    completions = config.rollout.problems * config.rollout.group
    predicted = int(completions * tokens)
    packed = int(completions * tokens + config.rollout.problems * prompt)
    return predicted, packed, completions * causal_pairs(int(tokens), int(prompt))


def _scoring_passes(config: Config) -> float:
    """Forward passes without a backward pass, in passes over all of a step's tokens."""
    minibatches = config.learner.minibatches_per_rollout
    return (config.learner.kl_coef > 0) + (minibatches - 1) / minibatches


# ---- seconds

BANDWIDTH_SHARE = 0.85
"""of the data sheet's bandwidth that elementwise operators reach"""
DECODE_SHARES = 0.5, 0.7
"""of operations and of bandwidth that decoding reaches"""
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
FORWARD_BYTES = 51, 9
TRAINING_BYTES = {"all": (348, 4), "lora": (244, 58)}
LORA_FORWARD_BYTES = 73, 28
HEAD_BYTES, ENTROPY_BYTES, HEAD_FORWARD_BYTES = 80, 16, 12


def expected(limit: int) -> float:
    """Tokens that prompts or completions are taken to have before any has been seen: a quarter of a long limit, all
    of a short one."""
    return min(limit, max(48, limit / 4))


def step_seconds(
    config: Config, shape: Shape, card: Card, engine: str, kv_bytes: float, completion_tokens: float
) -> dict[str, float]:
    """Phase -> seconds. Evaluation is spread over all steps; checkpoints are not planned."""
    completions, prompt = config.rollout.problems * config.rollout.group, expected(config.rollout.max_prompt_tokens)

    def sampling(count: float) -> float:
        return _rollout(config, shape, card, engine, kv_bytes, count, prompt, completion_tokens)

    evaluated = _evaluated(config)
    return {
        "rollout": sampling(completions),
        "reward": completions * HOST_COMPLETION,
        "learn": _learn(config, shape, card, prompt, completion_tokens),
        "sync": 0.0 if engine == "torch" else 4 * _weights(shape, card) / card.bandwidth,
        "eval": sampling(evaluated) * (config.steps // config.eval.every + 1) / config.steps if evaluated else 0.0,
    }


def _weights(shape: Shape, card: Card) -> float:
    """Bytes in compute precision."""
    return shape.parameters * (4 if card.is_cpu else 2)


def _evaluated(config: Config) -> int:
    """Completions of one evaluation of the curve."""
    if not config.eval.every:
        return 0
    ways = 1 if config.eval.sampling == "greedy" else 2
    return ways * sum(min(config.eval.limit or rows, rows) for rows in map(_rows, names(config.eval.data)))


def _rows(name: str) -> int:
    """Of a data file, without fetching it: as published, else as it lies here."""
    if not Path(name).is_file():
        source = SOURCES.get(Path(name).stem)
        return source.rows if source else ROWS_UNKNOWN
    if Path(name).suffix == ".parquet":
        return pyarrow.parquet.read_metadata(name).num_rows
    return Path(name).read_bytes().count(b"\n")


def _rollout(config, shape, card, engine, kv_bytes, completions, prompt, tokens) -> float:
    """Decoding reads all weights, the running sequences' KV cache and their logits for one token of each. At the end
    the longest completions run on alone."""
    operations, bandwidth = (
        share * rate for share, rate in zip(DECODE_SHARES, (card.flops, card.bandwidth), strict=True)
    )
    most = max(1, kv_bytes // (shape.kv_bytes * (prompt + tokens)))
    running = min(running_sequences(config), most, completions)

    def step(count: float) -> float:
        seen = count * (prompt + tokens / 2)
        logits = 2 * 4 * SAMPLER_PASSES * count * shape.text.vocab_size
        read = (_weights(shape, card) + seen * shape.kv_bytes + logits) / bandwidth
        compute = forward_flops(shape.config, count, seen) / operations
        least = CPU_LAYER * shape.text.num_hidden_layers if card.is_cpu else DECODE_STEP[engine]
        return max(read, compute, count * HOST_TOKEN[engine]) + least

    tail = config.rollout.max_new_tokens - tokens
    return completions * tokens / running * step(running) + max(0.0, tail) * step(1)


def _learn(config, shape, card, prompt, tokens) -> float:
    """Matrix products at the rate the card keeps up, and what elementwise operators move at its bandwidth."""
    o, lora = config.learner, config.policy.lora_rank > 0
    predicted, packed, pairs = _learned(config, prompt, tokens)
    again, scored = bool(config.policy.gradient_checkpointing), _scoring_passes(config)
    head = forward_flops(shape.config, 0, 0, predicted)  # computed again in the backward pass
    work = learning_flops(config, shape, prompt, tokens) + head
    work += again * forward_flops(shape.config, packed, pairs, 0)
    c = shape.text
    layer = _by_size(c, *TRAINING_BYTES["lora" if lora else "all"]) + scored * _by_size(c, *FORWARD_BYTES)
    layer += again * _by_size(c, *(LORA_FORWARD_BYTES if lora else FORWARD_BYTES))
    moved = packed * c.num_hidden_layers * layer
    moved += (
        predicted * c.vocab_size * (HEAD_BYTES + (o.entropy_coef > 0) * ENTROPY_BYTES + scored * HEAD_FORWARD_BYTES)
    )
    batches = -(-packed // max(o.token_budget, full_length(config)))
    calls = batches * 3 * CPU_LAYER * c.num_hidden_layers if card.is_cpu else 0
    return work / (card.flops * card.sustained) + moved / (card.bandwidth * BANDWIDTH_SHARE) + calls


def _by_size(text, hidden: float, inner: float) -> float:
    return hidden * text.hidden_size + inner * text.intermediate_size
