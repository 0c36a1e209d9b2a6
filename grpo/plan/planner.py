"""Decides the settings that are auto, sums memory and time, and describes the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from statistics import mean

from grpo.engines.base import choose_engine, engine_type
from grpo.machine import GIB
from grpo.plan.hardware import Hardware
from grpo.plan.memory import USABLE, disk_parts, memory, sequence_bytes
from grpo.plan.shapes import RunShape, model_shape
from grpo.plan.time import in_words, learning_flops, step_seconds
from grpo.settings import ENGINES, Config, changed, flat, typed

LEAST_SEQUENCES = 4
"""A KV cache that holds fewer full-length sequences is too small to sample with."""
AUTO_TOKENS = 16384
"""The largest micro-batch that auto chooses."""


@dataclass(frozen=True)
class Plan(RunShape):
    """A run with its memory and time."""

    note: str = ""
    """the settings that were auto, with the chosen values"""

    def with_settings(self, options: dict[str, object]) -> Plan:
        """The plan with other settings (dotted name -> value)."""
        return replace(self, config=changed(self.config, options))

    @cached_property
    def memory(self) -> dict[str, dict[str, float]]:
        """Phase (learn, rollout) -> part -> bytes."""
        return memory(self)

    @property
    def totals(self) -> dict[str, float]:
        return {phase: sum(parts.values()) for phase, parts in self.memory.items()}

    @property
    def usable(self) -> float:
        return self.hardware.memory * USABLE

    @property
    def kv_bytes(self) -> float:
        return self.memory["rollout"]["sampler KV cache"]

    @property
    def kv_sequences(self) -> int:
        """Full-length sequences that the KV cache holds."""
        return int(self.kv_bytes // sequence_bytes(self))

    @property
    def fits(self) -> bool:
        least = min(LEAST_SEQUENCES, self.config.rollout.running_sequences)
        return self.kv_sequences >= least and max(self.totals.values()) <= self.usable

    @property
    def engine_config(self) -> Config:
        """The settings with the size of the KV cache. On a CPU the engine decides for itself."""
        if not self.engine.costs.reserves_cache or self.hardware.is_cpu or self.config.rollout.kv_gib is not None:
            return self.config
        return changed(self.config, {"rollout.kv_gib": max(1, math.floor(100 * self.kv_bytes / GIB)) / 100})

    def seconds(self, tokens: float | None = None) -> dict[str, float]:
        """Phase -> seconds of a step, with `tokens` tokens a completion, else the expected number."""
        tokens = tokens or self.new_tokens
        sequences = self.kv_bytes // (self.model.kv_elements * self.element * (self.prompt_tokens + tokens))
        return step_seconds(self, tokens, max(1.0, min(self.config.rollout.running_sequences, sequences)))

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds().values())


def decide(config: Config, hardware: Hardware) -> Plan:
    """Decides all auto settings together, and keeps LoRA's sums if they fit.

    Prefers whole weights to 4 bits, then the fastest choice that fits, then the largest micro-batch. If none fits,
    takes the one that needs the least memory. Raises UserError for a model without a configuration.
    """
    if config.rollout.engine == "auto" and not hardware.here:
        engine = engine_type(ENGINES[-1])  # a GPU machine's default
    else:
        engine = choose_engine(config.rollout.engine, hardware.device)
    model = model_shape(config.model, config.policy.trust_remote_code)
    reward_model = model_shape(config.reward.hybrid.model) if config.reward.name == "hybrid" else None
    longest = config.rollout.longest_sequence
    choices = {
        "policy.quant": ("none", "nf4"),
        "policy.gradient_checkpointing": (True, False),
        "learner.microbatch_tokens": (longest, *range(-(-longest // 1024) * 1024, AUTO_TOKENS + 1, 1024)),
    }
    auto = {name: values for name, values in choices.items() if flat(config)[name] == "auto"}
    options = [dict(zip(auto, values, strict=True)) for values in product(*auto.values())]
    plans = [Plan(changed(config, option), model, hardware, engine, reward_model) for option in options]
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        best = min(fitting, key=lambda p: (p.config.policy.quant == "nf4", p.step_seconds, -p.microbatch_tokens))
    else:
        best = min(plans, key=lambda plan: max(plan.totals.values()))
    decided = ", ".join(f"{name} {typed(flat(best.config)[name])}" for name in auto)
    if auto:
        best = replace(best, note=f"auto: {decided}, of {len(plans)} choices, of which {len(fitting)} fit")
    keeping = replace(best, keep_sums=best.lora)
    return keeping if keeping.fits else best


# ---- in words


def describe(plan: Plan) -> list[str]:
    """A table of memory by phase; on a GPU the time of a step and of the run; and the final size of the run folder."""
    config, model, hardware, rank = plan.config, plan.model, plan.hardware, plan.config.policy.lora_rank
    trained = f"LoRA rank {rank}, {plan.trained:,} trained" if rank else "all weights trained"
    base = ", NF4 base" if config.policy.quant == "nf4" else ""
    first = (
        f"plan: {config.model} ({model.parameters:,} parameters, {trained}{base}) on {hardware.name}, "
        f"{_gib(hardware.memory)} GiB{' free' if hardware.here else ''}"
    )
    if not hardware.is_cpu:
        first += f"; {in_words(plan.step_seconds)} a step"
    lines = [first, f"{'memory, GiB':24}{'learn':>9}{'rollout':>9}"]
    learn, rollout = plan.memory["learn"], plan.memory["rollout"]
    for name in learn | rollout:
        row = (learn.get(name, 0.0), rollout.get(name, 0.0))
        if max(row) >= 0.005 * GIB:
            lines.append(f"  {name:22}{_gib(row[0], 2):>9}{_gib(row[1], 2):>9}")
    sums = "".join(f"{_gib(total, 2):>9}" for total in plan.totals.values())
    lines.append(f"  {'total':22}{sums}   of {_gib(plan.usable)} that may be used")
    if plan.engine.costs.reserves_cache:
        lines.append(
            f"KV cache of {_gib(plan.kv_bytes)} GiB: {plan.kv_sequences} sequences of "
            f"{config.rollout.longest_sequence} tokens at once, of {config.rollout.running_sequences} that may run"
        )
    if plan.fits and not hardware.is_cpu:
        lines += _time_lines(plan)
    checkpoint, weights, completions = disk_parts(plan)
    lines.append(
        f"disk: {config.checkpoint.keep} x {_gib(checkpoint, 2)} GiB of checkpoints, {_gib(weights)} GiB of older "
        f"evaluated weights as far as there is room, {_gib(completions, 2)} GiB of completions"
    )
    return [*lines, plan.note] if plan.note else lines


def _time_lines(plan: Plan) -> list[str]:
    step, steps, limit = plan.step_seconds, plan.config.steps, plan.config.rollout.max_new_tokens
    shares = ", ".join(f"{phase} {seconds / step:.0%}" for phase, seconds in plan.seconds().items())
    return [
        f"time, planned and not measured: {in_words(step)} a step ({shares}) with {plan.new_tokens:.0f} tokens a "
        f"completion, {in_words(sum(plan.seconds(limit).values()))} if all run to {limit}",
        f"{in_words(step * steps)} for {steps} steps, after about {plan.engine.costs.start_s:.0f} s of start-up; "
        "evaluations come on top",
    ]


def planned_and_measured(plan: Plan, rows: Sequence[dict[str, float]]) -> str:
    """Planned values beside the run's means (for memory, the peak), without the first step, which warms up.

    The last line is the share of the data sheet's operations that learning reached, counted with the mean length.
    """
    planned = {f"time/{phase}": seconds for phase, seconds in plan.seconds().items()} | {
        "time/step": plan.step_seconds,
        "completion/length_mean": plan.new_tokens,
        "memory/peak_gib": max(plan.totals.values()) / GIB,
    }
    steps = [row for row in rows if row["step"] > 1] or rows[-1:]
    measured = {name: mean(row[name] for row in steps) for name in planned}
    measured["memory/peak_gib"] = max(row["memory/peak_gib"] for row in steps)
    for numbers in (planned, measured):
        work = learning_flops(plan, numbers["completion/length_mean"])
        numbers["utilisation"] = work / (numbers["time/learn"] * plan.hardware.flops)
    lines = [f"{name:24}{planned[name]:>10.4g}{measured[name]:>10.4g}" for name in planned]
    return "\n".join([f"{'':24}{'planned':>10}{'measured':>10}", *lines])


def _gib(value: float, digits: int = 1) -> str:
    return f"{value / GIB:.{digits}f}"
