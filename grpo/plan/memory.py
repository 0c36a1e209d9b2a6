"""Bytes of a run, by phase.

Learning holds weights, float32 masters, two moments, float32 gradients, the reference, what the forward pass saves for
the backward pass of a micro-batch, and one chunk of logits. Sampling holds the weights, the moments, the engine's own
weights and the KV cache. tests/plan/test_memory.py runs the real learner on torch's meta device and compares every live
byte with these sums.
"""

from __future__ import annotations

from grpo.plan.hardware import GIB
from grpo.plan.shapes import ModelShape, RunShape

CUDA_CONTEXT = int(0.6 * GIB)
"""context, cuBLAS workspaces and loaded kernels"""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""4 bits, an 8-bit scale for each block of 64, a float32 scale for each 256 of those"""
LOGIT_BYTES = {2: 8 + 2 + 2, 4: 8}
"""per logit of a chunk, by compute precision: two float32 buffers; in bfloat16 this chunk's gradient and the last"""
HOST_TOKEN_BYTES = 120
"""of main memory for a completion's token: id and log-probability as Python numbers, and its place in a batch"""
COMPRESSED_TOKEN = 1.3
"""bytes of a token in the run folder: about four letters, compressed"""


def policy_parts(run: RunShape, model: ModelShape) -> dict[str, float]:
    """Bytes that live as long as the run."""
    full = model.parameters
    lora = run.lora_rank > 0
    trained = model.adapter(run.lora_rank) if lora else full
    packed = model.linear_elements if run.quant == "nf4" else 0
    return {
        "weights": (full - packed) * run.element + packed * NF4_BYTES,
        "adapter": 4 * trained if lora else 0,
        "float32 masters": 4 * trained if run.element < 4 and not lora else 0,
        "optimiser moments": (2 * (1 + 4 / 256) if run.optimizer == "adamw_8bit" else 8) * trained,
        "reference": full * run.element if run.kl_coef and not lora else 0,
    }


def learning_parts(run: RunShape, model: ModelShape) -> dict[str, float]:
    """Bytes that only learning needs, at their joint peak: gradients, activations, logits."""
    c = model.text
    lora = run.lora_rank
    element = run.element
    tokens = run.microbatch_tokens
    layer, transient = _layer_bytes(model, element, lora)
    # Saved beside the layers: inputs of the embedding and the final norm, and the rows that the head reads.
    saved = c.hidden_size * (2 * element + 4 + (0 if lora else element))
    if run.gradient_checkpointing:
        saved += c.num_hidden_layers * c.hidden_size * element
        transient += layer
    else:
        saved += c.num_hidden_layers * layer
    head = 0 if lora else c.vocab_size * c.hidden_size
    chunk = LOGIT_BYTES[element] * min(run.logit_chunk, tokens) * c.vocab_size + tokens * c.hidden_size * element
    # The head's gradient is summed in float32; a tied one then waits in compute precision for the embedding's.
    peaks = {"logits of a chunk": chunk + 4 * head, "a layer's backward": tokens * transient + 2 * element * head}
    largest = max(peaks, key=lambda name: peaks[name])
    trained = model.adapter(lora) if lora else model.parameters
    sums = model.linear_elements * element if lora and run.keep_sums else 0
    return {"gradients": 4 * trained, "LoRA sums": sums, "saved activations": tokens * saved, largest: peaks[largest]}


def _layer_bytes(model: ModelShape, element: int, lora: int) -> tuple[float, float]:
    """Per token: what one layer saves for its backward pass, and the peak within that pass."""
    hidden, inner = model.text.hidden_size, model.text.intermediate_size
    attention = element * (2 * model.attention_width + 4 * model.key_width)  # q, out; k, v gathered behind prompts
    # A norm whose weight is not trained does not save the input of the product with it.
    norms = 2 * hidden * (4 + (1 if lora else 2) * element)
    return norms + attention + 4 * inner * element, 1.5 * inner * element


def sampler_parts(run: RunShape, model: ModelShape, on_cpu: bool) -> tuple[dict[str, float], dict[str, float]]:
    """(bytes that only sampling needs, bytes of the sampler that stay while the learner works), without a KV cache of
    fixed size: it takes what remains."""
    engine = run.engine
    logits = run.running * model.text.vocab_size
    batch = engine.batched_tokens * 3 * model.text.intermediate_size * run.element
    only = {"sampler logits": engine.logit_bytes * logits, "sampler activations": batch}
    stay = {
        "sampler graphs": 0 if on_cpu else engine.graph_bytes,
        "sampler penalties": engine.kept_logit_bytes * logits,
    }
    if not engine.reserves_cache:  # the cache grows by half when it is full: old and new exist together
        only["sampler KV cache"] = 2 * run.running * run.longest_sequence * model.kv_elements * run.element
    if not engine.shares_weights:
        (only if run.sleep else stay)["sampler weights"] = model.parameters * run.element
    elif run.lora_rank:  # W + s B A of every layer
        only["sampler weights"] = model.linear_elements * run.element
    return only, stay


def reward_model_bytes(model: ModelShape) -> float:
    """A reward model in bfloat16; in place of a head it has one output."""
    head = 0 if model.text.tie_word_embeddings else model.text.vocab_size * model.text.hidden_size
    return 2 * (model.parameters - head)


def host_bytes(run: RunShape) -> float:
    """Main memory of one rollout's completions, all of them at their longest."""
    return run.completions * run.longest_sequence * HOST_TOKEN_BYTES


def disk_parts(run: RunShape, model: ModelShape) -> tuple[float, float, float]:
    """Bytes of one checkpoint, of the weights kept of older evaluated steps, and of all completions, compressed."""
    parts = policy_parts(run, model)
    weights = parts["adapter"] or parts["weights"]
    masters = parts["float32 masters"] or weights  # float32 weights are their own, and are written with the rest again
    text = run.steps * run.completions * run.new_tokens * COMPRESSED_TOKEN
    return weights + masters + parts["optimiser moments"], run.older * weights, text
