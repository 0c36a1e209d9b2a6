"""Proof at load: packed training and the torch sampler compute what the network's own forward pass computes.

A few completions are scored three ways: by the sampler that draws them (a ragged batch with a KV cache), by the
network's own forward pass (transformers' attention, no packing, no padding, no cache) and by the policy's packed pass.
Log-probabilities and a gradient must agree. For a bfloat16 model the reference is its own pass in float32. The packed
pass must agree with it in float32; in bfloat16, packed pass and sampler may be a few times as far from it as the
model's own bfloat16 pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from grpo import lora
from grpo.attention import NAME
from grpo.engines.base import SamplingParams
from grpo.engines.torch_engine import TorchEngine
from grpo.errors import UserError, first_line, is_out_of_memory
from grpo.packing import pack, sequence_length
from grpo.policy import Policy
from grpo.types import Request, Sample

TEXT = "2 + 3 = 5, 6 * 7 ="
MIN_TEXT_TOKENS, TOKENS = 8, 3
"""Least tokens of the prompt text; tokens of each completion"""
TEMPERATURE = 4.0
"""High, so that even a near-deterministic policy samples tokens with a gradient."""
THRESHOLDS = ("sliding_window", "window_size", "original_max_position_embeddings", "attention_chunk_size")
"""Settings with the length beyond which a model's attention or positions change"""
VALUES, GRADIENT = 3e-5, 1e-3
"""Largest differences in float32: in nats (another order of sums gives 1e-7 to 3e-6), and of the gradient"""
ROUNDING, ROUNDED_GRADIENT = 4.0, 0.25
"""In bfloat16: the largest error in units of the own pass's error, and the largest difference of the gradient. The
largest of about ten rounding errors varies: over 100 variants of data/tiny-base the sampler's was up to 2.1 times the
own pass's."""
ADVICE = "Use a model with plain causal attention, such as Qwen2, Qwen3, Llama or Mistral"


def prove(policy: Policy, longest: int) -> str:
    """Returns the line that reports the proof. `longest`: tokens of the longest sequence of the run.

    Raises UserError with the model's name, the largest differences and the likely cause if the passes disagree or one
    of them fails.
    """
    start = time.perf_counter()
    config = policy.network.config
    name = config.name_or_path or config.model_type
    try:
        with _constant_weights(policy):
            samples = _draw(policy, longest)
            differences = _differences(policy, samples)
            listed = ", ".join(f"{kind} {value:.1e}" for kind, (value, _) in differences.items())
            failed = [kind for kind, (value, limit) in differences.items() if not value <= limit]
            cause = _cause(policy, failed) if failed else ""
    except UserError as error:
        raise UserError(f"{name} is not supported: {error}. {ADVICE}") from None
    except (ValueError, TypeError, AttributeError, LookupError, AssertionError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise UserError(
                f"{name} cannot be proved: out of memory ({first_line(error)}); end other programs that use this "
                "device, or use a smaller model"
            ) from error
        raise UserError(
            f"{name} is not supported: its forward pass fails here ({first_line(error)}). {ADVICE}"
        ) from error
    if cause:
        details = f"(differences to its own forward pass: {listed})"
        if setting := _reduced_precision(policy.device):
            raise UserError(f"{name} cannot be proved: {setting} {details}; set it to 'ieee'")
        raise UserError(f"{name} is not supported: {cause} {details}. {ADVICE}")
    torch.cuda.empty_cache()  # for an engine with a memory pool of its own; does nothing without a GPU
    tokens = max(map(sequence_length, samples))
    seconds = time.perf_counter() - start
    return f"model proved against its own forward pass, up to {tokens} tokens: {listed} ({seconds:.1f} s)"


@contextmanager
def _constant_weights(policy: Policy) -> Iterator[None]:
    """Computes no gradient of a weight, and LoRA's sums once."""
    trained = policy.trainable().values()
    kept = any(layer.keep for layer in lora.layers(policy.network))
    for parameter in trained:
        parameter.requires_grad_(False)
    lora.keep_sums(policy.network, True)
    try:
        yield
    finally:
        lora.keep_sums(policy.network, kept)
        for parameter in trained:
            parameter.requires_grad_(True)


def _draw(policy: Policy, longest: int) -> list[Sample]:
    """Two completions of one prompt, one of another and, if the run can pass a threshold, one that passes it."""
    text = policy.tokenizer(TEXT)["input_ids"]
    text *= 1 + MIN_TEXT_TOKENS // len(text)
    prompts = [tuple(text[:4]), tuple(text[:2] + text[4:])]  # of two lengths and with a common beginning
    if passed := [length for length in _thresholds(policy.network.config.to_dict()) if 0 < length < longest]:
        prompts.append(tuple(text * (max(passed) // len(text) + 1))[: max(passed)])
    engine = TorchEngine()
    engine.sync(policy)
    requests = [Request(prompt, 1 + (i == 0), seed=i) for i, prompt in enumerate(prompts)]
    groups = engine.generate(requests, SamplingParams(TOKENS, TEMPERATURE, ignore_eos=True))
    return [
        Sample(prompt, completion.ids, completion.sampler_logprobs, advantage=0.0)
        for prompt, group in zip(prompts, groups, strict=True)
        for completion in group
    ]


def _thresholds(settings: dict) -> Iterator[int]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _thresholds(value)
        elif type(value) is int and name in THRESHOLDS:
            yield value


def _differences(policy: Policy, samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Kind -> (largest difference, limit)."""
    own, own_gradient = _with_gradient(_own, policy, samples)
    packed, packed_gradient = _with_gradient(_packed, policy, samples)
    sampler = torch.cat([torch.tensor(sample.sampler_logprobs) for sample in samples]).to(own)
    gap = ((packed_gradient - own_gradient).norm() / own_gradient.norm()).item()
    if policy.dtype is not torch.bfloat16:
        return {
            "packed": (_largest(packed, own), VALUES),
            "sampler": (_largest(sampler, own), VALUES),
            "gradient": (gap, GRADIENT),
        }
    with _widened(policy), torch.no_grad():
        exact, packed_exact = (score(policy, samples) for score in (_own, _packed))
    limit = ROUNDING * _largest(own, exact)
    return {
        "packed in float32": (_largest(packed_exact, exact), VALUES),
        "packed": (_largest(packed, exact), limit),
        "sampler": (_largest(sampler, exact), limit),
        "own": (limit / ROUNDING, limit),
        "gradient": (gap, ROUNDED_GRADIENT),
    }


def _with_gradient(
    score: Callable[[Policy, Sequence[Sample]], torch.Tensor], policy: Policy, samples: Sequence[Sample]
) -> tuple[torch.Tensor, torch.Tensor]:
    """[N] log-probabilities, and the gradient of a weighted sum of them.

    The gradient is with respect to a factor on each dimension of the input embeddings, so all layers contribute.
    """
    embeddings = policy.network.get_input_embeddings()
    factor = torch.ones_like(embeddings.weight[0], requires_grad=True)
    handle = embeddings.register_forward_hook(lambda _module, _arguments, output: output * factor)
    try:
        logprobs = score(policy, samples)
    finally:
        handle.remove()
    weights = torch.linspace(0.5, 1.5, len(logprobs), device=logprobs.device)
    (gradient,) = torch.autograd.grad((weights * logprobs).sum(), factor)
    return logprobs.detach(), gradient.double()


def _own(policy: Policy, samples: Sequence[Sample]) -> torch.Tensor:
    """[N] by the network's own forward pass, one sequence at a time."""
    logprobs = []
    with policy.own_forward() as network:
        for sample in samples:
            ids = torch.tensor([sample.prompt_ids + sample.completion_ids], device=policy.device)
            # Only the logits that are compared: all logits of a long sequence take gigabytes.
            logits = network(input_ids=ids, use_cache=False, logits_to_keep=TOKENS + 1).logits[0, -TOKENS - 1 : -1]
            wide = torch.promote_types(logits.dtype, torch.float32)
            logp = torch.log_softmax(logits.to(wide) / TEMPERATURE, -1)
            logprobs.append(logp.gather(-1, ids[0, -TOKENS:, None])[:, 0])
    return torch.cat(logprobs)


def _packed(policy: Policy, samples: Sequence[Sample]) -> torch.Tensor:
    """[N] by the policy, in one packed batch."""
    (batch,) = pack(samples, [1.0] * len(samples), sum(map(sequence_length, samples)))
    batch = batch.to(policy.device)
    return policy.logprobs(batch, TEMPERATURE, with_entropy=False)[0][batch.flat_index.argsort()]


@contextmanager
def _widened(policy: Policy) -> Iterator[None]:
    """The same weights in float32. LoRA's layers keep their rounded sums, and cast them."""
    kernel, policy.kernel = policy.kernel, "sdpa"
    weights = [p for name, p in policy.network.named_parameters() if ".base_layer." not in name]
    narrow = [p for p in weights if p.dtype is torch.bfloat16]
    for parameter in narrow:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        policy.kernel = kernel
        for parameter in narrow:
            parameter.data = parameter.data.bfloat16()  # the same bits as before


def _largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def _reduced_precision(device: torch.device) -> str:
    """The setting by which torch rounds the factors of float32 matrix products, and its value; else ""."""
    name = "cuda" if device.type == "cuda" else "mkldnn"
    precision = getattr(torch.backends, name).matmul.fp32_precision
    return f"torch.backends.{name}.matmul.fp32_precision is {precision!r}" if precision in ("tf32", "bf16") else ""


def _cause(policy: Policy, failed: Sequence[str]) -> str:
    """The likely cause, from the comparisons that failed."""
    if policy.network.config._attn_implementation != NAME:
        return "its attention does not go through transformers' attention interface, so packed sequences see each other"
    if "sampler" in failed and not any(kind.startswith("packed") for kind in failed):
        return "decoding with a KV cache gives other log-probabilities"
    if failed == ["gradient"]:
        return "packed training gives another gradient"
    return (
        "it has a part that packed training leaves out: ALiBi, soft-capping, a scale, dropout that its configuration "
        "does not name, or positions that depend on the longest sequence (dynamic, longrope RoPE)"
    )
