"""One rollout in, optimiser steps out: pack, accumulate the gradient, clip, step.

The maths is in loss.py and advantage.py. This module adds the bookkeeping, which must not change it. The loss of an
optimiser step is a weighted sum over its tokens, so cutting the step into micro-batches changes the memory and nothing
else. No number leaves the device before the last micro-batch is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import torch

from grpo.engines.sync_check import check_mismatch
from grpo.errors import NonFiniteLoss, UserError, is_out_of_memory
from grpo.loss import LOSSES, kl_k3, sampler_weights, token_weights
from grpo.metrics import StepMetrics, add_batch, over_steps, read_step
from grpo.optim import Optimizer
from grpo.packing import Batch, pack, sequence_length
from grpo.policy import Policy
from grpo.settings import Config
from grpo.types import Sample


class Learner:
    def __init__(
        self,
        policy: Policy,
        config: Config,
        report: Callable[[str], None] = print,
        before_step: Callable[[], None] = lambda: None,
        save_bad_batch: Callable[[dict], None] = lambda batch: None,
    ):
        """Callbacks: `report` receives notable events, `before_step` runs right before the weights change,
        `save_bad_batch` receives the samples of every optimiser step that is skipped."""
        self.policy = policy
        self.config = config.learner
        self.rollout_settings = config.rollout
        self.report = report
        self.before_step = before_step
        self.save_bad_batch = save_bad_batch
        self.bad_steps = 0
        assert isinstance(self.config.microbatch_tokens, int)  # the plan has replaced "auto"
        self.microbatch_tokens = self.config.microbatch_tokens
        total_steps = config.steps * self.config.minibatches_per_rollout
        self.optimizer = Optimizer(policy.trainable().values(), self.config, total_steps)

    def update(self, groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
        """Learns from one rollout: `minibatches_per_rollout` optimiser steps, each on its own share of the groups.

        Returns the metrics over all trained tokens of the rollout. Raises ValueError for groups that do not divide into
        equal mini-batches, SamplerMismatch and NonFiniteLoss as described in errors.py.
        """
        groups_per_minibatch, rest = divmod(len(groups), self.config.minibatches_per_rollout)
        if rest or not groups_per_minibatch:
            raise ValueError(
                f"{len(groups)} groups do not divide into learner.minibatches_per_rollout "
                f"{self.config.minibatches_per_rollout} equal parts"
            )
        starts = range(0, len(groups), groups_per_minibatch)
        minibatches = [list(chain(*groups[i : i + groups_per_minibatch])) for i in starts]
        # The first step runs at the weights that sampled: its own logprobs are the old ones, and the ratio is exactly
        # 1. The weights move before the later steps, so the old logprobs of those are computed now.
        later = [self._within_memory(self._old_logprobs, samples) for samples in minibatches[1:]]
        skipped = 0
        steps = []
        for samples, old_logprobs in zip(minibatches, [None, *later], strict=True):
            lr = self.optimizer.lr
            step = self._within_memory(self._accumulate, samples, old_logprobs)
            skipped += not self._step(step, samples)
            steps.append(step)
        return over_steps(steps) | {
            "policy/lr": lr,
            "learner/skipped_steps": skipped,
            "lora/update_retention": self.policy.update_retention(),
        }

    def counters(self) -> dict[str, Any]:
        """The numbers that a checkpoint keeps beside weights and moments. A skipped step changes only them."""
        return {
            "bad_steps": self.bad_steps,
            "optimizer_steps": self.optimizer.steps,
            "microbatch_tokens": self.microbatch_tokens,
            "microbatch_tokens_set": self.config.microbatch_tokens,
        }

    def restore(self, counters: dict[str, Any]) -> None:
        """Restores the `counters`. A token budget that was halved to fit the memory stays until the setting changes."""
        self.bad_steps = counters["bad_steps"]
        self.optimizer.steps = counters["optimizer_steps"]
        if counters["microbatch_tokens_set"] == self.config.microbatch_tokens:
            self.microbatch_tokens = counters["microbatch_tokens"]

    def _accumulate(self, samples: Sequence[Sample], old_logprobs: torch.Tensor | None) -> StepMetrics[float]:
        """Accumulates the gradient of the whole optimiser step and clips it."""
        metrics = StepMetrics.zeros(self.policy.device)
        for batch in self.micro_batches(samples):
            old = None if old_logprobs is None else old_logprobs[batch.flat_index]
            self._loss(batch, old, metrics).backward()
        metrics.grad_norm.copy_(self.optimizer.clip_gradients())
        return read_step(metrics)

    def _loss(
        self, batch: Batch, old_logprobs: torch.Tensor | None, metrics: StepMetrics[torch.Tensor]
    ) -> torch.Tensor:
        """The micro-batch's part of the loss of the optimiser step: a sum over its tokens. Also adds its metrics."""
        config = self.config
        logprobs, entropy = self.policy.logprobs(batch, self.rollout_settings.temperature)
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        surrogate = LOSSES[config.loss](logprobs, old, batch, config.clip_low, config.clip_high)
        if config.sampler_correction != "none":
            weights = sampler_weights(old, batch, config.sampler_correction, config.sampler_correction_cap)
            surrogate = surrogate._replace(loss=surrogate.loss * weights)
        per_token = surrogate.loss
        kl = torch.zeros_like(logprobs)
        if config.kl_coef:
            kl = kl_k3(logprobs, self.policy.ref_logprobs(batch, self.rollout_settings.temperature))
            per_token = per_token + config.kl_coef * kl
        assert entropy is not None
        if config.entropy_coef:
            per_token = per_token - config.entropy_coef * entropy
        loss = (batch.weights * per_token).sum()
        add_batch(metrics, batch, old, surrogate, loss, kl, entropy)
        return loss

    def _step(self, step: StepMetrics[float], samples: Sequence[Sample]) -> bool:
        """Moves the weights and returns True, or skips a step whose loss or gradient is not finite."""
        if step.finite:
            mismatch = step.logprob_diff / max(step.tokens, 1)
            check_mismatch(mismatch, self.rollout_settings.logprob_diff_limit, "the rollout")
            self.bad_steps = 0
            self.before_step()
            self.optimizer.step()
        else:
            self.optimizer.skip()
            self._count_bad_step(step, samples)
        self.optimizer.zero_grad()
        return step.finite

    def micro_batches(self, samples: Sequence[Sample]) -> list[Batch]:
        """Packs one optimiser step. Skipped samples still count in the normaliser."""
        config = self.config
        lengths = [len(sample.trained) for sample in samples]
        weights = token_weights(lengths, config.loss_aggregation, self.rollout_settings.max_new_tokens)
        kept = [i for i, sample in enumerate(samples) if not (config.skip_zero_variance and sample.advantage == 0)]
        batches = pack([samples[i] for i in kept], [weights[i] for i in kept], self.microbatch_tokens)
        return [batch.to(self.policy.device) for batch in batches]

    @torch.no_grad()
    def _old_logprobs(self, samples: Sequence[Sample]) -> torch.Tensor:
        """[trained tokens] the trainer's logprobs at the weights that sampled, in the order of the samples."""
        dtype = torch.promote_types(self.policy.dtype, torch.float32)
        logprobs = torch.zeros(sum(len(s.trained) for s in samples), dtype=dtype, device=self.policy.device)
        for batch in self.micro_batches(samples):
            logprobs[batch.flat_index] = self.policy.logprobs(
                batch, self.rollout_settings.temperature, with_entropy=False
            )[0]
        return logprobs

    def _within_memory(self, work: Callable[..., Any], samples: Sequence[Sample], *more: object) -> Any:
        """Calls `work(samples, *more)`; on out of memory, halves `microbatch_tokens` and calls it again."""
        lengths = [sequence_length(sample) for sample in samples]
        while True:
            try:
                return work(samples, *more)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside `except`, because the traceback of the error keeps the tensors of the failed pass alive.
            self.optimizer.zero_grad()
            torch.cuda.empty_cache()  # does nothing without a GPU
            longest = max(lengths)
            budget = min(self.microbatch_tokens, sum(lengths))
            if budget <= longest:
                raise UserError(
                    f"out of memory in a micro-batch of {budget} tokens, which is one sequence of the longest kind. "
                    "Lower learner.logit_chunk or rollout.max_new_tokens, or set policy.gradient_checkpointing, "
                    "policy.lora_rank or policy.quant"
                )
            self.microbatch_tokens = max(longest, budget // 2)
            self.report(
                f"out of memory: the step starts over with micro-batches of {self.microbatch_tokens} tokens instead of "
                f"{budget} (same result, more passes); set learner.microbatch_tokens to that next time"
            )

    def _count_bad_step(self, step: StepMetrics[float], samples: Sequence[Sample]) -> None:
        self.bad_steps += 1
        figures = {"loss/total": str(step.loss), "policy/grad_norm": str(step.grad_norm)}  # JSON has no NaN
        self.save_bad_batch(figures | {"samples": [asdict(sample) for sample in samples]})
        if self.bad_steps >= self.config.max_nonfinite_steps:
            values = {"loss": step.loss, "gradient norm": step.grad_norm}
            bad = " and ".join(f"{name} ({value})" for name, value in values.items() if not math.isfinite(value))
            steps = "1 optimiser step" if self.bad_steps == 1 else f"{self.bad_steps} optimiser steps in a row"
            raise NonFiniteLoss(
                f"{steps} had a non-finite {bad}; no weight was changed. Start a new run with a lower learner.lr, from "
                "the base or from an earlier checkpoint (--model CHECKPOINT)"
            )
