"""Checks that the sampler samples from the policy: after every sync both score a few tokens.

Nothing else shows it: a sampler with old weights writes fluent text, and a weight that did not arrive raises no error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grpo.engines.base import Engine, SamplingParams
from grpo.errors import SamplerMismatch
from grpo.packing import pack, sequence_length
from grpo.policy import Policy
from grpo.types import Completion, Request, Sample

PROMPT = "2 + 3 ="
SAMPLES = 4
TOKENS = 16


def check_sync(engine: Engine, policy: Policy, temperature: float, limit: float) -> None:
    """Raises SamplerMismatch when mean |sampler logprob - trainer logprob| of 64 sampled tokens is over `limit`."""
    prompt = tuple(policy.tokenizer(PROMPT)["input_ids"])
    # ignore_eos: always 64 tokens, even when the policy has learnt to stop at once.
    sampling = SamplingParams(TOKENS, temperature, ignore_eos=True)
    completions = engine.generate([Request(prompt, SAMPLES, engine.version)], sampling)[0]
    gap = sampler_gap(policy, prompt, completions, temperature).mean().item()
    check_mismatch(gap, limit, f"{SAMPLES * TOKENS} tokens after sync {engine.version}")


def check_mismatch(mismatch: float, limit: float, tokens: str) -> None:
    """Raises SamplerMismatch if mean |sampler logprob - trainer logprob| of these `tokens` is over the limit."""
    if not mismatch <= limit:  # a NaN is over every limit
        raise SamplerMismatch(
            f"mean |sampler logprob - trainer logprob| of {tokens} is {mismatch:.4f}, "
            f"over rollout.logprob_diff_limit {limit}: the sampler does not have the policy's weights. Likely causes: "
            "weights not synced after the last step, a weight that did not arrive (a tied lm_head, an adapter), a "
            "temperature not applied on one side, another model or precision"
        )


@torch.no_grad()
def sampler_gap(
    policy: Policy, prompt: tuple[int, ...], completions: Sequence[Completion], temperature: float
) -> torch.Tensor:
    """[tokens] |sampler logprob - trainer logprob| of completions of one prompt."""
    samples = [Sample(prompt, c.ids, c.sampler_logprobs, advantage=0.0) for c in completions]
    (batch,) = pack(samples, [1.0] * len(samples), sum(sequence_length(sample) for sample in samples))
    batch = batch.to(policy.device)
    return (policy.logprobs(batch, temperature)[0] - batch.sampler_logprobs).abs()
