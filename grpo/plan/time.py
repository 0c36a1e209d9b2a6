"""Seconds of a step on a GPU, estimated from operations, bytes and the data sheet.

The estimate tells minutes from days and compares settings; `in_words` gives it as a range. It does not include
evaluation, checkpoints and a reward model.
"""

from __future__ import annotations

from grpo.plan.shapes import ModelShape, RunShape

LOW, HIGH = 0.8, 1.3
"""The range around an estimate. Learning with all weights was measured at 0.93 of it, on one H100."""
BANDWIDTH_SHARE = 0.85
"""Share of the data sheet's bandwidth that elementwise operators reach"""
DECODE_FLOPS, DECODE_BANDWIDTH = 0.5, 0.7
"""Shares of the data sheet's figures that decoding reaches"""
# Bytes that elementwise operators move for a token in a layer, by hidden size, and for a predicted token, by
# vocabulary. Counted on the learner's operators for Qwen2.5-1.5B on 2026-11-26 (docs/performance.md).
TRAINING_BYTES = {"all": 371, "lora": 582}
FORWARD_BYTES = {"all": 104, "lora": 236}
HEAD_BYTES, HEAD_FORWARD_BYTES = 96, 12
UNITS = {"days": 86400, "h": 3600, "min": 60, "s": 1}


def step_seconds(run: RunShape, tokens: float, running: float) -> dict[str, float]:
    """Phase -> seconds of a step with `tokens` tokens a completion and `running` sequences decoded at once.

    Rewards and the transfer of the weights are smaller than the estimate's error and omitted.
    """
    return {"rollout": _rollout(run, tokens, running), "learn": _learn(run, tokens)}


def _rollout(run: RunShape, tokens: float, running: float) -> float:
    """The parts of a decoding step run one after the other. At the end the longest completions run alone."""
    model, costs = run.model, run.engine.costs
    bandwidth = DECODE_BANDWIDTH * run.hardware.bandwidth

    def step(count: float) -> float:
        products = forward_flops(model, count, 0, count) / (DECODE_FLOPS * run.hardware.flops)
        weights = max(model.parameters * run.element / bandwidth, products)
        attention = count * (run.prompt_tokens + tokens / 2) * model.kv_elements * run.element / bandwidth
        logits = count * model.vocabulary * costs.logit_traffic / bandwidth
        return max(weights + attention + logits + costs.step_s, count * costs.host_token_s)

    tail = max(0.0, run.config.rollout.max_new_tokens - tokens)
    return run.completions * tokens / running * step(running) + tail * step(1)


def _learn(run: RunShape, tokens: float) -> float:
    """Matrix products at the GPU's sustained rate, and the traffic of elementwise operators at its bandwidth."""
    model, hardware = run.model, run.hardware
    predicted, packed, pairs = _learned(run, tokens)
    again = bool(run.config.policy.gradient_checkpointing)
    kind = "lora" if run.lora else "all"
    # The head is computed twice.
    work = learning_flops(run, tokens) + forward_flops(model, again * packed, again * pairs, predicted)
    layer = TRAINING_BYTES[kind] + again * FORWARD_BYTES[kind] + _scoring_passes(run) * FORWARD_BYTES["all"]
    head = HEAD_BYTES + _scoring_passes(run) * HEAD_FORWARD_BYTES
    moved = packed * model.layers * model.hidden * layer + predicted * model.vocabulary * head
    return work / (hardware.flops * hardware.sustained) + moved / (hardware.bandwidth * BANDWIDTH_SHARE)


def learning_flops(run: RunShape, tokens: float) -> float:
    """Operations of one step's learning: a forward pass, a backward pass of twice its work, and the scoring passes.

    The backward pass takes the gradients of both factors of each product; frozen weights (LoRA; the adapter's own small
    work is not counted) need none. What gradient checkpointing recomputes does not count in a utilisation
    (arXiv 2204.02311, appendix B).
    """
    predicted, packed, pairs = _learned(run, tokens)
    frozen = forward_flops(run.model, packed, 0, predicted) if run.lora else 0
    return (3 + _scoring_passes(run)) * forward_flops(run.model, packed, pairs, predicted) - frozen


def _learned(run: RunShape, tokens: float) -> tuple[float, float, float]:
    """Predicted tokens, tokens with their prompts (each once for its group), and (query, key) pairs of a step."""
    predicted = run.completions * tokens
    packed = predicted + run.config.rollout.prompts_per_step * run.prompt_tokens
    return predicted, packed, predicted * (run.prompt_tokens + tokens / 2)


def _scoring_passes(run: RunShape) -> float:
    """Forward passes without a backward pass, over all of a step's tokens: one for the reference, and one for the old
    log-probabilities of all mini-batches but the first."""
    return (run.config.learner.kl_coef > 0) + 1 - 1 / run.config.learner.minibatches_per_rollout


def forward_flops(model: ModelShape, tokens: float, pairs: float, predicted: float) -> float:
    """Operations of a forward pass over `tokens` tokens that attend over `pairs` (query, key) pairs in all.

    A product of an [n, a] with an [a, b] matrix takes 2 n a b. `predicted`: positions the head is computed on.
    """
    attention = 4 * model.queries * pairs * model.layers  # scores, and the sum of values
    return 2 * model.linear_elements * tokens + attention + 2 * model.hidden * model.vocabulary * predicted


def in_words(seconds: float) -> str:
    """The range of an estimate in a readable unit: 7.0 to 11.3 min."""
    unit = next((unit for unit, size in UNITS.items() if HIGH * seconds >= 1.5 * size), "s")
    return f"{LOW * seconds / UNITS[unit]:.1f} to {HIGH * seconds / UNITS[unit]:.1f} {unit}"
