"""One rollout in, optimiser steps out: pack, accumulate the gradient, clip, step.

The maths stands in loss.py and advantage.py. What this module adds is bookkeeping that must not change the maths: the
loss of an optimiser step is a weighted sum over its tokens, so cutting it into micro-batches changes memory and nothing
else, and no number leaves the device before the last micro-batch is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

import torch

from grpo.config import LearnerConfig
from grpo.errors import NonFiniteLoss, SamplerMismatch, UserError
from grpo.loss import importance_ratio, kl_k3, policy_loss, token_weights
from grpo.optim import Optimizer
from grpo.packing import Batch, pack, sequence_length
from grpo.policy import Policy
from grpo.types import Sample

LOSSES = ("loss/total", "loss/policy")
"""Weighted sums over the tokens: the weights make them means already."""
MEANS = ("policy/kl", "policy/entropy", "policy/clip_fraction_low", "policy/clip_fraction_high", "mismatch/mean")
"""Summed over the tokens, then divided by their number."""
SUMS = (*LOSSES, *MEANS)
MAXIMA = ("policy/ratio_max", "mismatch/max")
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")

Result = TypeVar("Result")


class Learner:
    def __init__(
        self,
        policy: Policy,
        config: LearnerConfig,
        *,
        temperature: float,
        max_new_tokens: int,
        mismatch_limit: float,
        steps: int,
        say: Callable[[str], None] = print,
        before_step: Callable[[], None] = lambda: None,
        save_bad_batch: Callable[[dict], None] = lambda batch: None,
    ):
        """What the run wants to know: `say` is told what changes the run's course, `before_step` is called right before
        the weights change, and `save_bad_batch` is handed the samples of every optimiser step that is skipped."""
        self.policy, self.config = policy, config
        self.temperature, self.max_new_tokens, self.mismatch_limit = temperature, max_new_tokens, mismatch_limit
        self.optimizer = Optimizer(
            policy.trainable().values(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            grad_clip=config.grad_clip,
            warmup=config.warmup,
            schedule=config.schedule,
            total_steps=steps * config.minibatches_per_rollout,
            eight_bit=config.optimizer == "adamw_8bit",
        )
        self.say, self.before_step, self.save_bad_batch = say, before_step, save_bad_batch
        self.bad_steps, self.token_budget = 0, config.token_budget

    def update(self, groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
        """Learn from one rollout: `minibatches_per_rollout` optimiser steps, each on its own share of the groups.

        Returns the means over all trained tokens of the rollout (sums and maxima over every micro-batch, divided once).
        """
        share = len(groups) // self.config.minibatches_per_rollout
        shares = [[s for group in groups[i : i + share] for s in group] for i in range(0, len(groups), share)]
        # With one optimiser step the policy that scores is the policy that sampled: old = present logprobs, ratio = 1.
        old = [None]
        if len(shares) > 1:
            old = [self._within_memory(samples, lambda s=samples: self._old_logprobs(s)) for samples in shares]
        steps = [self._optimizer_step(samples, logprobs) for samples, logprobs in zip(shares, old, strict=True)]
        tokens = sum(step["tokens"] for step in steps)
        metrics = {name: sum(step[name] * step["tokens"] for step in steps) / max(tokens, 1) for name in SUMS}
        metrics |= {name: max(step[name] for step in steps) for name in (*MAXIMA, "policy/grad_norm")}
        if tokens == 0:  # every group was left out: nothing was measured, which is not the same as zero
            metrics |= dict.fromkeys((*MEANS, *MAXIMA), math.nan)
        return metrics | {"policy/lr": steps[-1]["lr"], "learner/skipped_steps": sum(step["skipped"] for step in steps)}

    def _optimizer_step(self, samples: Sequence[Sample], old_logprobs: torch.Tensor | None) -> dict[str, float]:
        totals = self._within_memory(samples, lambda: self._accumulate(samples, old_logprobs))
        grad_norm = self.optimizer.clip_gradients()
        values = torch.cat([totals, grad_norm[None]]).tolist()  # the step's only wait for the device
        step = dict(zip((*SUMS, *MAXIMA, "tokens", "policy/grad_norm"), values, strict=True))
        step |= {"lr": self.optimizer.lr, "skipped": 0}
        for name in MEANS:
            step[name] /= max(step["tokens"], 1)
        self._check_sampler(step)
        if not (math.isfinite(step["loss/total"]) and math.isfinite(step["policy/grad_norm"])):
            self._count_bad_step(step, samples)
        else:
            self.bad_steps = 0
            self.before_step()
            self.optimizer.step()
        self.optimizer.zero_grad()
        return step

    def _accumulate(self, samples: Sequence[Sample], old_logprobs: torch.Tensor | None) -> torch.Tensor:
        """Gradients of the whole optimiser step; its metrics' sums and maxima and its token count, on the device."""
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.policy.device)
        maxima = torch.zeros(len(MAXIMA), dtype=torch.float64, device=self.policy.device)
        tokens = 0
        for batch in self._micro_batches(samples):
            old = None if old_logprobs is None else old_logprobs[batch.slots]
            loss, batch_sums, batch_maxima = self._loss(batch, old)
            loss.backward()
            sums += batch_sums
            maxima = torch.maximum(maxima, batch_maxima)
            tokens += len(batch.targets)
        return torch.cat([sums, maxima, sums.new_tensor([tokens])])

    def _loss(self, batch: Batch, old_logprobs: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The micro-batch's part of the loss, [SUMS] sums over its tokens and [MAXIMA]."""
        config = self.config
        logprobs, entropy = self.policy.logprobs(batch, self.temperature)
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        surrogate = policy_loss(logprobs, old, batch.advantages, config.clip_low, config.clip_high)
        if config.sampler_correction:
            surrogate = surrogate * importance_ratio(old, batch.sampler_logprobs).clamp(max=config.sampler_correction)
        per_token = surrogate
        kl = torch.zeros_like(logprobs)
        if config.kl_coef:
            kl = kl_k3(logprobs, self.policy.ref_logprobs(batch, self.temperature))
            per_token = per_token + config.kl_coef * kl
        if config.entropy_coef:
            per_token = per_token - config.entropy_coef * entropy
        loss = (batch.weights * per_token).sum()
        with torch.no_grad():
            ratio = importance_ratio(logprobs, old)
            clipped_low = (ratio < 1 - config.clip_low) & (batch.advantages < 0)
            clipped_high = (ratio > 1 + config.clip_high) & (batch.advantages > 0)
            gap = (batch.sampler_logprobs - old).abs()
            rows = (batch.weights * surrogate, kl, entropy, clipped_low, clipped_high, gap)
            sums = torch.stack([loss.detach().double(), *(row.double().sum() for row in rows)])
            maxima = torch.stack([ratio.double().max(), gap.double().max()])
        return loss, sums, maxima

    def _micro_batches(self, samples: Sequence[Sample]) -> list[Batch]:
        """Weights are shares of the whole optimiser step, also when some of its samples need no pass."""
        config = self.config
        lengths = [len(s.completion_ids) if s.trained else 0 for s in samples]
        weights = token_weights(lengths, config.aggregation, self.max_new_tokens)
        kept = [i for i, s in enumerate(samples) if lengths[i] and not (config.skip_zero_variance and s.advantage == 0)]
        batches = pack([samples[i] for i in kept], [weights[i] for i in kept], self.token_budget)
        return [batch.to(self.policy.device) for batch in batches]

    @torch.no_grad()
    def _old_logprobs(self, samples: Sequence[Sample]) -> torch.Tensor:
        """[tokens] the trainer's logprobs at the weights that sampled, in the order of the samples."""
        batches = self._micro_batches(samples)
        old = torch.zeros(sum(len(b.targets) for b in batches), dtype=torch.float32, device=self.policy.device)
        for batch in batches:
            logprobs, _ = self.policy.logprobs(batch, self.temperature)
            old = old.to(logprobs.dtype)
            old[batch.slots] = logprobs
        return old

    def _check_sampler(self, step: dict[str, float]) -> None:
        if step["mismatch/mean"] > self.mismatch_limit:
            raise SamplerMismatch(
                f"mean |sampler logprob - trainer logprob| is {step['mismatch/mean']:.4f}, over rollout.mismatch_limit "
                f"{self.mismatch_limit}: the completions were not drawn from the policy being trained. Likely causes: "
                "weights not synced after the last step, a temperature not applied on one side, different precisions"
            )

    def _within_memory(self, samples: Sequence[Sample], work: Callable[[], Result]) -> Result:
        """`work`, started over with half the token budget when the memory does not suffice for its micro-batches."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not isinstance(error, MemoryError) and not any(text in str(error) for text in OUT_OF_MEMORY):
                    raise
            # Not inside `except`: the error's traceback keeps the tensors of the failed pass alive.
            self.optimizer.zero_grad()
            if self.policy.device.type == "cuda":
                torch.cuda.empty_cache()
            self._halve_token_budget(samples)

    def _halve_token_budget(self, samples: Sequence[Sample]) -> None:
        lengths = [sequence_length(sample) for sample in samples]
        longest, budget = max(lengths), min(self.token_budget, sum(lengths))
        if budget <= longest:
            raise UserError(
                f"out of memory in a micro-batch of {budget} tokens, which is one sequence of the longest kind. Lower "
                "learner.logit_chunk or rollout.max_new_tokens, or set policy.gradient_checkpointing, policy.lora_rank "
                "or policy.quant"
            )
        self.token_budget = max(longest, budget // 2)
        self.say(
            f"out of memory: the step starts over with micro-batches of {self.token_budget} tokens instead of {budget} "
            "(same result, more passes); set learner.token_budget to that next time"
        )

    def _count_bad_step(self, step: dict[str, float], samples: Sequence[Sample]) -> None:
        step["skipped"] = 1
        self.bad_steps += 1
        figures = {name: str(step[name]) for name in ("loss/total", "policy/grad_norm")}  # JSON has no NaN
        self.save_bad_batch(figures | {"samples": [asdict(sample) for sample in samples]})
        if self.bad_steps >= self.config.max_bad_steps:
            raise NonFiniteLoss(
                f"{self.bad_steps} optimiser steps in a row had a non-finite loss ({step['loss/total']}) or gradient "
                f"({step['policy/grad_norm']}); no weight was changed by them. Lower learner.lr or go back to an "
                "earlier checkpoint"
            )
