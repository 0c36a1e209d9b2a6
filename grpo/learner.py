"""One rollout in, optimiser steps out: pack, accumulate the gradient, clip, step.

The maths stands in loss.py and advantage.py. What this module adds is bookkeeping that must not change the maths: the
loss of an optimiser step is a weighted sum over its tokens, so cutting it into micro-batches changes memory and nothing
else, and no number leaves the device before the last micro-batch is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np
import torch

from grpo.engines.sync_check import check_mismatch
from grpo.errors import NonFiniteLoss, UserError
from grpo.loss import completion_weights, importance_ratio, kl_k3, policy_loss, token_weights
from grpo.optim import Optimizer
from grpo.packing import Batch, pack, sequence_length
from grpo.policy import Policy
from grpo.settings import Config
from grpo.types import Sample

LOSSES = ("loss/total", "loss/policy")
"""Sums over the tokens of a step with weights that make them means."""
MEANS = ("policy/kl", "policy/entropy", "policy/clip_fraction_low", "policy/clip_fraction_high", "logprob_diff/mean")
"""Sums over the tokens, to be divided by their number."""
COUNTS = ("tokens", "logprob_diff/weights", "logprob_diff/squares", "logprob_diff/completions")
"""Sums that others are divided by, and those over the completions that the effective sample size is made of."""
MAXIMA = ("policy/ratio_max", "logprob_diff/max")
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


class Learner:
    def __init__(
        self,
        policy: Policy,
        config: Config,
        say: Callable[[str], None] = print,
        before_step: Callable[[], None] = lambda: None,
        save_bad_batch: Callable[[dict], None] = lambda batch: None,
    ):
        """What the run wants to know: `say` is told what changes the run's course, `before_step` is called right before
        the weights change, and `save_bad_batch` is handed the samples of every optimiser step that is skipped."""
        self.policy, self.config, self.rollout = policy, config.learner, config.rollout
        self.say, self.before_step, self.save_bad_batch = say, before_step, save_bad_batch
        self.bad_steps, self.microbatch_tokens = 0, self.config.microbatch_tokens
        total_steps = config.steps * self.config.minibatches_per_rollout
        self.optimizer = Optimizer(policy.trainable().values(), self.config, total_steps)

    def update(self, groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
        """Learn from one rollout: `minibatches_per_rollout` optimiser steps, each on its own share of the groups.

        Returns the metrics over all trained tokens of the rollout.
        """
        share = len(groups) // self.config.minibatches_per_rollout
        minibatches = [list(chain(*groups[i : i + share])) for i in range(0, len(groups), share)]
        # The weights of the first step are those that sampled: its present logprobs are the old ones, and the ratio
        # is exactly 1. By the later steps the weights have moved, so their old logprobs are taken now.
        later = [self._within_memory(self._old_logprobs, samples) for samples in minibatches[1:]]
        steps = [self._optimizer_step(samples, old) for samples, old in zip(minibatches, [None, *later], strict=True)]
        skipped = sum(step["skipped"] for step in steps)
        metrics = _metrics(steps) | {"policy/lr": steps[-1]["lr"], "learner/skipped_steps": skipped}
        return metrics | {"lora/update_retention": self.policy.arrived()}

    def _optimizer_step(self, samples: Sequence[Sample], old_logprobs: torch.Tensor | None) -> dict[str, float]:
        """What the step measured, not yet averaged. The weights stay as they are where that is not finite."""
        measured = self._within_memory(self._accumulate, samples, old_logprobs)
        measured["policy/grad_norm"] = self.optimizer.clip_gradients()
        values = torch.stack([value.double() for value in measured.values()]).tolist()  # the only wait for the device
        step = dict(zip(measured, values, strict=True)) | {"lr": self.optimizer.lr, "skipped": 0}
        learnt = {name: value for name, value in step.items() if not name.startswith("logprob_diff/")}
        if all(map(math.isfinite, learnt.values())):
            mismatch = step["logprob_diff/mean"] / max(step["tokens"], 1)
            check_mismatch(mismatch, self.rollout.logprob_diff_limit, "the rollout")
            self.bad_steps = 0
            self.before_step()
            self.optimizer.step()
        else:
            self._count_bad_step(step, samples)
        self.optimizer.zero_grad()
        return step

    def _accumulate(self, samples: Sequence[Sample], old_logprobs: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """The gradient of the whole optimiser step, and what its metrics are made of: numbers on the device."""
        names = (*LOSSES, *MEANS, *COUNTS, *MAXIMA)
        measured = {name: torch.zeros((), dtype=torch.float64, device=self.policy.device) for name in names}
        for batch in self._micro_batches(samples):
            old = None if old_logprobs is None else old_logprobs[batch.slots]
            loss, found = self._loss(batch, old)
            loss.backward()
            for name, values in found.items():
                if name in MAXIMA:
                    measured[name] = torch.maximum(measured[name], values.double().max())  # keeps a NaN
                else:
                    measured[name] += values.sum(dtype=torch.float64)
        return measured

    def _loss(self, batch: Batch, old_logprobs: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The micro-batch's part of the loss, and what its metrics are made of, by token or by completion."""
        config = self.config
        logprobs, entropy = self.policy.logprobs(batch, self.rollout.temperature)
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        surrogate = policy_loss(logprobs, old, batch.advantages, config.clip_low, config.clip_high)
        if config.sampler_correction:
            surrogate = surrogate * importance_ratio(old, batch.sampler_logprobs).clamp(max=config.sampler_correction)
        per_token = surrogate
        kl = torch.zeros_like(logprobs)
        if config.kl_coef:
            kl = kl_k3(logprobs, self.policy.ref_logprobs(batch, self.rollout.temperature))
            per_token = per_token + config.kl_coef * kl
        if config.entropy_coef:
            per_token = per_token - config.entropy_coef * entropy
        loss = (batch.weights * per_token).sum()
        with torch.no_grad():
            ratio, difference = importance_ratio(logprobs, old), old - batch.sampler_logprobs
            importance = completion_weights(difference, batch.owners, batch.completions)
            found = {
                "tokens": torch.ones_like(difference),
                "loss/total": loss,
                "loss/policy": batch.weights * surrogate,
                "policy/kl": kl,
                "policy/entropy": entropy,
                "policy/clip_fraction_low": (ratio < 1 - config.clip_low) & (batch.advantages < 0),
                "policy/clip_fraction_high": (ratio > 1 + config.clip_high) & (batch.advantages > 0),
                "logprob_diff/mean": difference.abs(),
                "logprob_diff/weights": importance,
                "logprob_diff/squares": importance**2,
                "logprob_diff/completions": torch.ones_like(importance),
                "policy/ratio_max": ratio,
                "logprob_diff/max": difference.abs(),
            }
        return loss, found

    def _micro_batches(self, samples: Sequence[Sample]) -> list[Batch]:
        """Weights are shares of the whole optimiser step, also when some of its samples need no pass."""
        config = self.config
        lengths = [len(s.completion_ids) if s.trained else 0 for s in samples]
        weights = token_weights(lengths, config.aggregation, self.rollout.max_new_tokens)
        kept = [i for i, s in enumerate(samples) if lengths[i] and not (config.skip_zero_variance and s.advantage == 0)]
        batches = pack([samples[i] for i in kept], [weights[i] for i in kept], self.microbatch_tokens)
        return [batch.to(self.policy.device) for batch in batches]

    @torch.no_grad()
    def _old_logprobs(self, samples: Sequence[Sample]) -> torch.Tensor:
        """[tokens] the trainer's logprobs at the weights that sampled, in the order of the samples."""
        dtype = torch.promote_types(self.policy.dtype, torch.float32)
        found = torch.zeros(sum(len(s.completion_ids) for s in samples), dtype=dtype, device=self.policy.device)
        for batch in self._micro_batches(samples):
            found[batch.slots] = self.policy.logprobs(batch, self.rollout.temperature, with_entropy=False)[0]
        return found

    def _within_memory(self, work: Callable[..., Any], samples: Sequence[Sample], *more: object) -> Any:
        """`work(samples, *more)`, started over with half the token budget when the memory does not suffice."""
        lengths = [sequence_length(sample) for sample in samples]
        while True:
            try:
                return work(samples, *more)
            except (RuntimeError, MemoryError) as error:
                if not isinstance(error, MemoryError) and not any(text in str(error) for text in OUT_OF_MEMORY):
                    raise
            # Not inside `except`: the error's traceback keeps the tensors of the failed pass alive.
            self.optimizer.zero_grad()
            torch.cuda.empty_cache()  # does nothing where no GPU is used
            longest, budget = max(lengths), min(self.microbatch_tokens, sum(lengths))
            if budget <= longest:
                raise UserError(
                    f"out of memory in a micro-batch of {budget} tokens, which is one sequence of the longest kind. "
                    "Lower learner.logit_chunk or rollout.max_new_tokens, or set policy.gradient_checkpointing, "
                    "policy.lora_rank or policy.quant"
                )
            self.microbatch_tokens = max(longest, budget // 2)
            self.say(
                f"out of memory: the step starts over with micro-batches of {self.microbatch_tokens} tokens instead of "
                f"{budget} (same result, more passes); set learner.microbatch_tokens to that next time"
            )

    def _count_bad_step(self, step: dict[str, float], samples: Sequence[Sample]) -> None:
        step["skipped"] = 1
        self.bad_steps += 1
        figures = {name: str(step[name]) for name in ("loss/total", "policy/grad_norm")}  # JSON has no NaN
        self.save_bad_batch(figures | {"samples": [asdict(sample) for sample in samples]})
        if self.bad_steps >= self.config.max_nonfinite_steps:
            raise NonFiniteLoss(
                f"{self.bad_steps} optimiser steps in a row had a non-finite loss ({step['loss/total']}) or gradient "
                f"({step['policy/grad_norm']}); no weight was changed by them. Lower learner.lr or go back to an "
                "earlier checkpoint"
            )


def _metrics(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Over all tokens of the steps. With no token at all nothing was measured: NaN, which is not the same as zero."""
    total = {name: sum(step[name] for step in steps) for name in (*MEANS, *COUNTS)}
    tokens = total["tokens"]
    metrics = {name: sum(step[name] * step["tokens"] for step in steps) / max(tokens, 1) for name in LOSSES}
    # numpy's maximum is NaN where one of the values is; Python's may lose it.
    maxima = {name: float(np.max([step[name] for step in steps])) for name in ("policy/grad_norm", *MAXIMA)}
    if not tokens:
        unknown = dict.fromkeys((*MEANS, *MAXIMA, "logprob_diff/ess"), math.nan)
        return metrics | maxima | unknown
    metrics |= {name: total[name] / tokens for name in MEANS} | maxima
    metrics["logprob_diff/ess"] = total["logprob_diff/weights"] ** 2 / (
        total["logprob_diff/squares"] * total["logprob_diff/completions"]
    )
    return metrics
