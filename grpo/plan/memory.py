"""Bytes of a run, by phase.

Learning holds weights, float32 masters, two moments, float32 gradients, the reference, what the forward pass saves for
the backward pass of a micro-batch, and one chunk of logits. Sampling holds the weights, the moments, the engine's own
weights and the KV cache. tests/plan/test_memory.py runs the real learner on torch's meta device and compares every live
byte with these sums.
"""

from __future__ import annotations

import math

from grpo.machine import GIB
from grpo.plan.shapes import RunShape

USABLE = 0.93
"""Share of the memory that the plan uses; the rest is for fragmentation and for errors of the plan."""
CPU_KV = GIB
"""On a CPU a KV cache of fixed size is touched in full at the start."""
CUDA_CONTEXT = 0.6 * GIB
"""context, cuBLAS workspaces and loaded kernels"""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""4 bits, an 8-bit scale for each block of 64, a float32 scale for each 256 of those"""
MOMENT_BYTES = {"adamw": 8, "adamw_8bit": 2 * (1 + 4 / 256)}
"""both moments of a parameter; of 8 bits with a float32 scale for each block of 256"""
LOGIT_BYTES = {2: 8 + 2 + 2, 4: 8}
"""per logit of a chunk, by compute precision: two float32 buffers; in bfloat16 this chunk's gradient and the last"""
HOST_TOKEN_BYTES = 120
"""of main memory for a completion's token: id and log-probability as Python numbers, and its row in a batch"""
COMPRESSED_TOKEN = 1.3
"""bytes of a token in the run folder: about four letters, compressed"""


def memory(run: RunShape) -> dict[str, dict[str, float]]:
    """Phase (learn, rollout) -> part -> bytes."""
    costs, model, hardware, rollout = run.engine.costs, run.model, run.hardware, run.config.rollout
    logits = rollout.running_sequences * model.vocabulary
    both = policy_parts(run) | {
        "sampler graphs": 0 if hardware.is_cpu else costs.graph_bytes,
        "sampler penalties": costs.kept_logit_bytes * logits,
        "completions": host_bytes(run) if hardware.is_cpu else 0,
        # the free memory of a GPU of this machine already excludes the context
        "CUDA context": 0 if hardware.here else CUDA_CONTEXT,
    }
    sampling = {
        "sampler logits": costs.logit_bytes * logits,
        "sampler activations": 3 * costs.batched_tokens * model.inner * run.element,
    }
    if run.reward_model:  # in bfloat16
        (sampling if run.config.reward.hybrid.offload else both)["reward model"] = 2 * run.reward_model.body
    if not costs.shares_weights:
        (sampling if run.sleep else both)["sampler weights"] = model.parameters * run.element
    elif run.lora:  # W + s B A of every layer
        sampling["sampler weights"] = model.linear_elements * run.element
    phases = {"learn": both | learning_parts(run), "rollout": both | sampling}
    filled = ["rollout"] if run.sleep or not costs.reserves_cache else ["rollout", "learn"]
    rest = USABLE * hardware.memory - max(sum(phases[phase].values()) for phase in filled)
    for phase in filled:
        phases[phase]["sampler KV cache"] = _cache_bytes(run, rest)
    return phases


def _cache_bytes(run: RunShape, rest: float) -> float:
    """The KV cache. One of fixed size is as set, or else takes the `rest` of the memory, at most for all sequences."""
    all_sequences = run.config.rollout.running_sequences * sequence_bytes(run)
    if not run.engine.costs.reserves_cache:
        return 2 * all_sequences  # old and new exist together while it grows
    if run.config.rollout.kv_gib:
        return GIB * run.config.rollout.kv_gib
    return max(0.0, min(rest, all_sequences, CPU_KV if run.hardware.is_cpu else math.inf))


def policy_parts(run: RunShape) -> dict[str, float]:
    """Bytes that are held for the whole run."""
    whole = run.element * run.model.parameters
    saved = run.element - NF4_BYTES if run.config.policy.quant == "nf4" else 0
    return {
        "weights": whole - saved * run.model.linear_elements,
        "adapter": 4 * run.trained if run.lora else 0,
        "float32 masters": 0 if run.lora or run.element == 4 else 4 * run.trained,
        "optimiser moments": MOMENT_BYTES[run.config.learner.optimizer] * run.trained,
        "reference": whole if run.config.learner.kl_coef and not run.lora else 0,  # LoRA's is the policy, adapter off
    }


def learning_parts(run: RunShape) -> dict[str, float]:
    """Bytes that only learning needs, at their joint peak: gradients, activations, logits."""
    model, element, tokens = run.model, run.element, run.microbatch_tokens
    # A layer saves for its backward pass, per token: the inputs of attention (q, out; k, v gathered behind prompts), of
    # two norms and of the feed-forward products. A norm whose weight is not trained does not save the product's input.
    norms = 2 * model.hidden * (4 + (1 if run.lora else 2) * element)
    layer = norms + element * (2 * (model.queries + model.kv_elements / model.layers) + 4 * model.inner)
    transient = 1.5 * model.inner * element
    # Saved beside the layers: inputs of the embedding and the final norm, and the rows that the head reads.
    saved: float = model.hidden * (2 * element + 4 + (0 if run.lora else element))
    if run.config.policy.gradient_checkpointing:
        saved += model.layers * model.hidden * element
        transient += layer
    else:
        saved += model.layers * layer
    head = 0 if run.lora else model.vocabulary * model.hidden
    chunk = min(run.config.learner.logit_chunk, tokens) * model.vocabulary
    # The head's gradient is summed in float32; a tied one then waits in compute precision for the embedding's.
    logits = LOGIT_BYTES[element] * chunk + tokens * model.hidden * element + 4 * head
    backward = tokens * transient + 2 * element * head
    return {
        "gradients": 4 * run.trained,
        "LoRA sums": model.linear_elements * element if run.keep_sums else 0,
        "saved activations": tokens * saved,
        "logits of a chunk" if logits > backward else "a layer's backward": max(logits, backward),
    }


def sequence_bytes(run: RunShape) -> float:
    """Keys and values of the longest sequence."""
    return run.config.rollout.longest_sequence * run.model.kv_elements * run.element


def host_bytes(run: RunShape) -> float:
    """Main memory of one rollout's completions, all of them at their longest."""
    return run.completions * run.config.rollout.longest_sequence * HOST_TOKEN_BYTES


def disk_parts(run: RunShape) -> tuple[float, float, float]:
    """Bytes of one checkpoint, of the weights kept of older evaluated steps, and of all completions, compressed."""
    config, parts = run.config, policy_parts(run)
    weights = parts["adapter"] or parts["weights"]
    masters = parts["float32 masters"] or weights  # float32 weights are their own, and are written with the rest again
    both = math.lcm(config.eval.every, config.checkpoint.every)  # 0: one of them never happens
    older = max(0, config.steps // both - config.checkpoint.keep) if both else 0
    text = config.steps * run.completions * run.new_tokens * COMPRESSED_TOKEN
    return weights + masters + parts["optimiser moments"], older * weights, text
