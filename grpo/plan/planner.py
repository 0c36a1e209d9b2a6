"""Sums the parts of memory.py and time.py, decides the settings that are auto, and describes the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from statistics import mean
from typing import Any

from grpo.engines.base import Engine, choose_engine, engine_type
from grpo.plan import memory, time
from grpo.plan.hardware import GIB, Hardware
from grpo.plan.shapes import ModelShape, RunShape, model_shape
from grpo.settings import ENGINES, Config, changed, typed

USABLE = 0.93
"""Share of the memory to plan with; the rest is for fragmentation and for errors of the plan."""
LEAST_SEQUENCES = 4
"""A KV cache that holds fewer full-length sequences is too small to sample with."""
CPU_KV = GIB
"""On a CPU all of a KV cache of fixed size is touched at the start."""
AUTO_TOKENS = 16384
"""The largest micro-batch that auto chooses."""


@dataclass(frozen=True)
class Plan:
    config: Config
    """the settings; `decide` has resolved those that were auto"""
    run: RunShape
    model: ModelShape
    hardware: Hardware
    engine: type[Engine]
    reward_model: ModelShape | None = None

    def but(self, options: dict[str, object]) -> Plan:
        """The plan with other sizes (dotted setting -> value). `config` stays as it is."""
        known = {field.name for field in fields(RunShape)}
        sizes: dict[str, Any] = {name.rpartition(".")[2]: value for name, value in options.items()}
        return replace(self, run=replace(self.run, **{name: sizes[name] for name in known & set(sizes)}))

    @property
    def usable(self) -> float:
        return self.hardware.memory * USABLE

    def needs(self, phase: str) -> float:
        """Bytes of `learn` or `rollout` without a KV cache of fixed size, which takes what remains."""
        return sum(self._parts()[phase].values())

    def _parts(self) -> dict[str, dict[str, float]]:
        run = self.run
        on_cpu = self.hardware.is_cpu
        stay = memory.policy_parts(run, self.model)
        if on_cpu:
            stay["completions"] = memory.host_bytes(run)
        elif not self.hardware.here:  # the free memory of a GPU of this machine already excludes the context
            stay["CUDA context"] = memory.CUDA_CONTEXT
        sampling, sampler = memory.sampler_parts(run, self.model, on_cpu)
        if self.reward_model:
            where = sampling if run.offload else sampler
            where["reward model"] = memory.reward_model_bytes(self.reward_model)
        learning = memory.learning_parts(run, self.model)
        return {"learn": stay | sampler | learning, "rollout": stay | sampler | sampling}

    @property
    def kv_bytes(self) -> float:
        """A KV cache of fixed size: as set, else the memory left by the phases, at most that of all sequences."""
        run = self.run
        if run.kv_gib is not None:
            return run.kv_gib * GIB
        taken = self.needs("rollout") if run.sleep else max(self.needs("rollout"), self.needs("learn"))
        most = min(self.usable - taken, run.running * self._sequence_bytes)
        return max(0.0, min(most, CPU_KV) if self.hardware.is_cpu else most)

    @property
    def _sequence_bytes(self) -> float:
        return self.run.longest_sequence * self.model.kv_elements * self.run.element

    @property
    def kv_sequences(self) -> int:
        """Full-length sequences that the KV cache holds."""
        return int(self.kv_bytes // self._sequence_bytes)

    @property
    def engine_config(self) -> Config:
        """The settings with the size of the KV cache. On a CPU the engine decides for itself."""
        if not self.engine.costs.reserves_cache or self.hardware.is_cpu or self.run.kv_gib is not None:
            return self.config
        return changed(self.config, {"rollout.kv_gib": max(1, math.floor(100 * self.kv_bytes / GIB)) / 100})

    def phases(self) -> dict[str, dict[str, float]]:
        """learn, rollout -> part -> bytes, with the KV cache."""
        phases = self._parts()
        if self.engine.costs.reserves_cache:
            phases["rollout"]["sampler KV cache"] = self.kv_bytes
            phases["learn"]["sampler KV cache"] = 0.0 if self.run.sleep else self.kv_bytes
        return phases

    def totals(self) -> dict[str, float]:
        return {phase: sum(parts.values()) for phase, parts in self.phases().items()}

    @property
    def fits(self) -> bool:
        enough = not self.engine.costs.reserves_cache or self.kv_sequences >= min(LEAST_SEQUENCES, self.run.running)
        return enough and max(self.totals().values()) <= self.usable

    def seconds(self, tokens: float | None = None) -> dict[str, float]:
        """Phase -> seconds of a step, with completions of this many tokens, or of the expected number."""
        run = self.run
        tokens = tokens or self.run.new_tokens
        running: float = run.running
        if self.engine.costs.reserves_cache:
            sequence = self.model.kv_elements * run.element * (run.prompt_tokens + tokens)
            running = max(1.0, min(running, self.kv_bytes // sequence))
        return time.step_seconds(run, self.model, self.hardware, tokens, running)

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds().values())


def make_plan(config: Config, hardware: Hardware) -> Plan:
    """The plan for this hardware; auto counts as its mildest value. UserError where a model has no configuration."""
    setting = config.rollout.engine
    if setting == "auto" and not hardware.here:
        engine = engine_type(ENGINES[-1])  # a GPU machine's default
    else:
        engine = choose_engine(setting, hardware.device)
    trusted = config.policy.trust_remote_code
    reward_model = model_shape(config.reward.hybrid.model, False) if config.reward.name == "hybrid" else None
    run = RunShape.of(config, hardware, engine.costs)
    model = model_shape(config.model, trusted)
    return Plan(config, run, model, hardware, engine, reward_model)


def decide(config: Config, hardware: Hardware) -> tuple[Plan, list[str]]:
    """The plan with all that is set to auto decided, and a line about it. LoRA's sums are kept where that fits."""
    plan, notes = _decide_auto(config, hardware)
    keeping = plan.but({"keep_sums": plan.run.lora_rank > 0})
    return keeping if keeping.fits else plan, notes


def _decide_auto(config: Config, hardware: Hardware) -> tuple[Plan, list[str]]:
    """All that is set to auto is decided together.

    Whole weights before 4 bits; then the fastest choice that fits, and of equally fast ones the largest micro-batch.
    """
    plan = make_plan(config, hardware)
    longest = plan.run.longest_sequence
    budgets = [longest, *range(-(-longest // 1024) * 1024, AUTO_TOKENS + 1, 1024)]
    choices = {
        "policy.quant": (config.policy.quant, ("none", "nf4")),
        "policy.gradient_checkpointing": (config.policy.gradient_checkpointing, (True, False)),
        "learner.microbatch_tokens": (config.learner.microbatch_tokens, budgets),
    }
    open_choices = {name: values for name, (setting, values) in choices.items() if setting == "auto"}
    if not open_choices:
        return plan, []
    options = [dict(zip(open_choices, values, strict=True)) for values in product(*open_choices.values())]
    candidates = [(plan.but(option), option) for option in options]
    if fitting := [candidate for candidate in candidates if candidate[0].fits]:
        best, option = min(
            fitting, key=lambda c: (c[0].run.quant == "nf4", c[0].step_seconds, -c[0].run.microbatch_tokens)
        )
        reason = f"the fastest of {len(fitting)} choices that fit"
    else:
        best, option = min(candidates, key=lambda c: max(c[0].totals().values()))
        reason = f"none of {len(candidates)} choices fits; this one needs the least"
    words = ", ".join(f"{name} {typed(value)}" for name, value in option.items())
    return replace(best, config=changed(config, option)), [f"auto: {words} ({reason})"]


# ---- in words


def describe(plan: Plan) -> str:
    """A table of memory by phase; on a GPU the time of a step and of the run; and the final size of the run folder."""
    run = plan.run
    model = plan.model
    hardware = plan.hardware
    rank = run.lora_rank
    trained = f"LoRA rank {rank}, {model.adapter(rank):,} trained" if rank else "all weights trained"
    base = ", NF4 base" if run.quant == "nf4" else ""
    first = (
        f"plan: {plan.config.model} ({model.parameters:,} parameters, {trained}{base}) on {hardware.name}, "
        f"{_gib(hardware.memory)} GiB{' free' if hardware.here else ''}"
    )
    checkpoint, weights, completions = memory.disk_parts(run, model)
    disk = (
        f"disk: {run.keep} x {_gib(checkpoint, 2)} GiB of checkpoints, {_gib(weights)} GiB of older evaluated weights "
        f"as far as there is room, {_gib(completions, 2)} GiB of completions"
    )
    if hardware.is_cpu:
        return "\n".join([first, *_memory_table(plan), disk])
    first += f"; {time.in_words(plan.step_seconds)} a step"
    return "\n".join([first, *_memory_table(plan), *(_time_lines(plan) if plan.fits else []), disk])


def _memory_table(plan: Plan) -> list[str]:
    phases, totals = plan.phases(), plan.totals()
    lines = [f"{'memory, GiB':24}{'learn':>9}{'rollout':>9}"]
    for name in dict.fromkeys([*phases["learn"], *phases["rollout"]]):
        learn, rollout = phases["learn"].get(name, 0.0), phases["rollout"].get(name, 0.0)
        if max(learn, rollout) >= 0.005 * GIB:
            lines.append(f"  {name:22}{_gib(learn, 2):>9}{_gib(rollout, 2):>9}")
    sums = f"{_gib(totals['learn'], 2):>9}{_gib(totals['rollout'], 2):>9}"
    lines.append(f"  {'total':22}{sums}   of {_gib(plan.usable)} that may be used")
    if plan.engine.costs.reserves_cache:
        lines.append(
            f"KV cache of {_gib(plan.kv_bytes)} GiB: {plan.kv_sequences} sequences of {plan.run.longest_sequence} "
            f"tokens at once, of {plan.run.running} that may run"
        )
    return lines


def _time_lines(plan: Plan) -> list[str]:
    seconds, step, run = plan.seconds(), plan.step_seconds, plan.run
    shares = ", ".join(f"{phase} {value / step:.0%}" for phase, value in seconds.items())
    return [
        f"time, planned and not measured: {time.in_words(step)} a step ({shares}) with {run.new_tokens:.0f} tokens a "
        f"completion, {time.in_words(sum(plan.seconds(run.max_new_tokens).values()))} if all run to "
        f"{run.max_new_tokens}",
        f"{time.in_words(step * run.steps)} for {run.steps} steps, after about "
        f"{run.engine.start_s:.0f} s of start-up; evaluations come on top",
    ]


def planned_and_measured(plan: Plan, rows: Sequence[dict[str, float]]) -> str:
    """Planned values beside the means of the run's `rows`, without the first step, which warms up; of memory the peak.

    The last line is the share of the data sheet's operations that learning reached, counted with the mean length.
    """
    seconds = plan.seconds()
    planned = {f"time/{phase}": seconds[phase] for phase in ("rollout", "learn", "sync")} | {
        "time/step": plan.step_seconds,
        "completion/length_mean": plan.run.new_tokens,
        "memory/peak_gib": max(plan.totals().values()) / GIB,
    }
    steps = [row for row in rows if row["step"] > 1] or [row for row in rows if row["step"] == 1]
    measured = {name: mean(row[name] for row in steps) for name in planned}
    measured["memory/peak_gib"] = max(row["memory/peak_gib"] for row in steps)
    for numbers in (planned, measured):
        work = time.learning_flops(plan.run, plan.model, numbers["completion/length_mean"])
        numbers["utilisation"] = work / (numbers["time/learn"] * plan.hardware.flops)
    lines = [f"{name:24}{planned[name]:>10.4g}{measured[name]:>10.4g}" for name in planned]
    return "\n".join([f"{'':24}{'planned':>10}{'measured':>10}", *lines])


def _gib(value: float, digits: int = 1) -> str:
    return f"{value / GIB:.{digits}f}"
