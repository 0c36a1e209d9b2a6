"""Are the numbers right with this device's kernels? Two parts of benchmarks/gpu.py.

exact   a small model's packed, one-by-one and chunked log-probabilities and gradients, against float64 on a CPU
oom     an update that does not fit a cap on the memory, beside the same update without the cap
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from benchmarks import common
from grpo.logprob import token_logprobs
from grpo.packing import pack
from grpo.policy import Policy
from grpo.settings import Config
from grpo.types import Sample

T = 0.6
"""temperature"""


def exact(config: Config, device: torch.device) -> dict[str, float]:
    """Errors relative to float64, where each sequence is alone. Packed and one by one must be equally far from it."""
    shape = common.make_config("1m", hidden_size=256, num_hidden_layers=3, vocab_size=4096)
    policy = common.make_policy(shape, config, device)
    with torch.no_grad():  # as initialised, the weights hardly see their context
        for parameter in policy.network.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1)
    truth = Policy(copy.deepcopy(policy.network).cpu().double(), policy.tokenizer)
    samples = [sample for group in common.make_samples([40, 7, 90, 3, 25, 60], 3, 30, 4096) for sample in group]
    expected = logprobs_and_gradient(truth, samples, 1)
    packed, alone = (logprobs_and_gradient(policy, samples, budget) for budget in (10**6, 1))
    return errors("packed", packed, expected) | errors("alone", alone, expected) | chunked(device, policy.dtype)


def logprobs_and_gradient(policy: Policy, samples: list[Sample], budget: int) -> dict[str, torch.Tensor]:
    """[tokens] log-probabilities and the embedding's gradient of their advantage-weighted sum."""
    found = torch.zeros(sum(len(s.completion_ids) for s in samples), dtype=torch.float64, device=policy.device)
    total = 0.0
    for batch in pack(samples, [1.0] * len(samples), budget):
        batch = batch.to(policy.device)
        logprobs = policy.logprobs(batch, T)[0]
        found[batch.flat_index] = logprobs.detach().double()
        total = total + (logprobs * batch.advantages).sum()
    (gradient,) = torch.autograd.grad(total, policy.network.get_input_embeddings().weight)
    return {"logprobs": found, "gradient": gradient}


def chunked(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The chunked head against the plain one in float64, from the same inputs."""
    inputs = [torch.randn(n, 128).to(dtype) for n in (96, 5000)]
    targets = torch.randint(5000, (96,))

    def plain(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(hidden @ head.T / T, -1).gather(-1, targets[:, None])[:, 0]

    def found(logprobs: Callable, place: torch.device | str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        hidden, head = (x.to(place, dtype).requires_grad_() for x in inputs)
        values = logprobs(hidden, head, targets.to(place))
        gradients = torch.autograd.grad(values.sum(), (hidden, head))
        return {"logprobs": values, "gradient_hidden": gradients[0], "gradient_head": gradients[1]}

    ours = found(lambda *given: token_logprobs(*given, T, 40)[0], device, dtype)
    return errors("chunked", ours, found(plain, "cpu", torch.float64))


def errors(name: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """|found - expected| / |expected|, Euclidean, by what it is of."""
    pairs = {what: (x.detach().cpu().double(), expected[what].detach()) for what, x in found.items()}
    return {f"{name}_{what}_error": ((a - b).norm() / b.norm()).item() for what, (a, b) in pairs.items()}


def oom(config: Config, policy: Policy, groups: list[list[Sample]]) -> dict[str, float]:
    """The gradient of an update with all sequences at once, and again under a cap that holds little more than one.

    The rate must be next to nothing, so that both start from the same weights. A CPU has no cap.
    """
    work = common.make_learner(policy, config)
    everything = common.packed_work(work, groups)[0]
    work.update(groups[:1])  # makes the moments
    stays = common.memory()["now_gib"]

    def update(budget: int) -> tuple[float, float]:
        common.free()
        work.microbatch_tokens = budget
        return work.update(groups)["policy/grad_norm"], common.memory()["peak_gib"]

    (_, one), (plain, all_at_once) = update(1), update(everything)
    cap = stays + 1.5 * (one - stays)
    with common.held_to(cap):
        rescued, _ = update(everything)
    return {
        "one_sequence_gib": one,
        "all_at_once_gib": all_at_once,
        "cap_gib": cap,
        "microbatch_tokens": everything,
        "microbatch_tokens_under_the_cap": work.microbatch_tokens,
        "grad_norm_ratio": rescued / plain,
    }
