"""Seconds of a step on a GPU, estimated from operations, bytes and the data sheet.

The estimate tells minutes from days and compares settings; `in_words` gives it as a range. It does not include
evaluation, checkpoints and a reward model.
"""

from __future__ import annotations

from grpo.plan.hardware import Hardware
from grpo.plan.shapes import ModelShape, RunShape

LOW, HIGH = 0.8, 1.3
"""The range around an estimate. Learning with all weights was measured at 0.93 of it, on one H100."""
BANDWIDTH_SHARE = 0.85
"""of the data sheet's bandwidth that elementwise operators reach"""
DECODE_FLOPS, DECODE_BANDWIDTH = 0.5, 0.7
"""shares of the data sheet's that decoding reaches"""
HOST_COMPLETION = 1e-3
"""seconds of the processor for a completion, with the GPU idle: packing, decoding, verifying"""
# Bytes that elementwise operators move for a token in a layer, by hidden size, and for a predicted token, by
# vocabulary. Counted on the learner's operators for Qwen2.5-1.5B on 2026-11-26 (docs/performance.md).
TRAINING_BYTES = {"all": 371, "lora": 582}
FORWARD_BYTES = {"all": 104, "lora": 236}
HEAD_BYTES, HEAD_FORWARD_BYTES = 96, 12


def step_seconds(
    run: RunShape, model: ModelShape, hardware: Hardware, tokens: float, running: float
) -> dict[str, float]:
    """Phase -> seconds of a step with `tokens` tokens a completion and `running` sequences decoded at once."""
    pushed = 0 if run.engine.shares_weights else 4 * model.parameters * run.element
    return {
        "rollout": _rollout(run, model, hardware, tokens, running),
        "reward": run.completions * HOST_COMPLETION,
        "learn": _learn(run, model, hardware, tokens),
        "sync": pushed / hardware.bandwidth,
    }


def _rollout(run: RunShape, model: ModelShape, hardware: Hardware, tokens: float, running: float) -> float:
    """The parts of a decoding step follow one another. At the end the longest completions run on alone."""
    bandwidth = DECODE_BANDWIDTH * hardware.bandwidth

    def step(count: float) -> float:
        products = forward_flops(model, count, 0) / (DECODE_FLOPS * hardware.flops)
        weights = max(model.parameters * run.element / bandwidth, products)
        attention = count * (run.prompt_tokens + tokens / 2) * model.kv_elements * run.element / bandwidth
        logits = count * model.text.vocab_size * run.engine.logit_traffic / bandwidth
        return max(weights + attention + logits + run.engine.step_s, count * run.engine.host_token_s)

    tail = max(0.0, run.max_new_tokens - tokens)
    return run.completions * tokens / running * step(running) + tail * step(1)


def _learn(run: RunShape, model: ModelShape, hardware: Hardware, tokens: float) -> float:
    """Matrix products at the rate the GPU keeps up, and the traffic of elementwise operators at its bandwidth."""
    predicted, packed, pairs = _learned(run, tokens)
    again = run.gradient_checkpointing
    scored = _scoring_passes(run)
    kind = "lora" if run.lora_rank else "all"
    work = learning_flops(run, model, tokens) + forward_flops(model, 0, 0, predicted)  # the head is computed twice
    work += again * forward_flops(model, packed, pairs, 0)
    layer = TRAINING_BYTES[kind] + again * FORWARD_BYTES[kind] + scored * FORWARD_BYTES["all"]
    moved = packed * model.text.num_hidden_layers * model.text.hidden_size * layer
    moved += predicted * model.text.vocab_size * (HEAD_BYTES + scored * HEAD_FORWARD_BYTES)
    return work / (hardware.flops * hardware.sustained) + moved / (hardware.bandwidth * BANDWIDTH_SHARE)


def learning_flops(run: RunShape, model: ModelShape, tokens: float) -> float:
    """Operations of one step's learning: a forward and a backward pass, and the scoring passes.

    What gradient checkpointing computes again is no credit in a utilisation (arXiv 2204.02311, appendix B).
    """
    predicted, packed, pairs = _learned(run, tokens)
    work = training_flops(model, packed, pairs, predicted, frozen=run.lora_rank > 0)
    return work + _scoring_passes(run) * forward_flops(model, packed, pairs, predicted)


def _learned(run: RunShape, tokens: float) -> tuple[float, float, int]:
    """Predicted tokens, tokens with their prompts (each once for its group), and (query, key) pairs of a step."""
    predicted = run.completions * tokens
    pairs = run.completions * causal_pairs(int(tokens), int(run.prompt_tokens))
    return predicted, predicted + run.prompts_per_step * run.prompt_tokens, pairs


def _scoring_passes(run: RunShape) -> float:
    """Forward passes without a backward pass, over all of a step's tokens: one for the reference, and one for the old
    log-probabilities of all minibatches but the first."""
    return (run.kl_coef > 0) + 1 - 1 / run.minibatches_per_rollout


def causal_pairs(length: int, prefix: int = 0) -> int:
    """(query, key) pairs of `length` tokens that see themselves causally after `prefix` tokens they all see."""
    return length * prefix + length * (length + 1) // 2


def forward_flops(model: ModelShape, tokens: float, pairs: int, predicted: float | None = None) -> float:
    """Operations of a forward pass over `tokens` tokens that attend over `pairs` (query, key) pairs in all.

    A product of an [n, a] with an [a, b] matrix takes 2 n a b. `predicted`: positions the head is computed on; None is
    all of them.
    """
    attention = 4 * model.attention_width * pairs * model.text.num_hidden_layers  # scores, and the sum of values
    head = 2 * model.text.hidden_size * model.text.vocab_size * (tokens if predicted is None else predicted)
    return 2 * model.linear_elements * tokens + attention + head


def training_flops(
    model: ModelShape, tokens: float, pairs: int, predicted: float | None = None, frozen: bool = False
) -> float:
    """Operations of a forward and a backward pass, which takes the gradients of both factors of each product.

    With `frozen` weights (LoRA; the adapter's own small work is not counted) that of the weights falls away.
    """
    forward = forward_flops(model, tokens, pairs, predicted)
    return 2 * forward + forward_flops(model, 0, pairs, 0) if frozen else 3 * forward


UNITS = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))


def in_words(seconds: float) -> str:
    """The range of an estimate, in the unit that a person would use: 7.0 to 11.3 min."""
    low, high = LOW * seconds, HIGH * seconds
    unit, size = next(((unit, size) for unit, size in UNITS if high >= 1.5 * size), UNITS[-1])
    return f"{low / size:.1f} to {high / size:.1f} {unit}"
