"""How much of the card the learner uses: what learning needs, over the time it took and the data sheet."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grpo.config import LearnerConfig
from grpo.plan.flops import causal_pairs, forward_flops, peak_flops, training_flops
from grpo.policy import Policy
from grpo.types import Group


def utilisation(
    policy: Policy, groups: Sequence[Group], advantages: torch.Tensor, config: LearnerConfig, seconds: float
) -> dict[str, float]:
    """`speed/mfu` on a GPU; nothing on a CPU, which has no data sheet to be measured against."""
    if policy.device.type != "cuda":
        return {}
    needed = learning_flops(policy, groups, advantages, config)
    return {"speed/mfu": needed / (seconds * peak_flops(policy.device, policy.dtype))}


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
