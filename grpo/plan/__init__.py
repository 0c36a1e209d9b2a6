"""What a run will take, in bytes and hours, from the model's configuration alone: before anything is loaded.

`Plan` sums the parts of memory.py and duration.py and puts them in words; check.py looks for what would make the run
fail.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from grpo.engines.base import choose_engine
from grpo.plan import memory
from grpo.plan.memory import GIB, Shape, expected, shape_of
from grpo.plan.time import START, Card, learning_flops, step_seconds
from grpo.settings import Config, changed, typed

USABLE = 0.93
"""Share of the memory to plan with; the rest is for fragmentation and for what a plan forgets."""
LEAST_SEQUENCES = 4
"""A KV cache that holds fewer full-length sequences is no rollout engine."""
CPU_KV = GIB
"""vLLM's CPU build touches all of its KV cache at the start."""
HOUR = 3600


@dataclass(frozen=True)
class Plan:
    config: Config
    card: Card
    shape: Shape
    engine: str
    """vllm or torch"""

    def but(self, options: dict[str, object]) -> Plan:
        """The plan of the same run with other settings (dotted name -> value); not of another model or engine."""
        return replace(self, config=changed(self.config, options))

    @property
    def usable(self) -> float:
        return self.card.memory * USABLE

    @property
    def element(self) -> int:
        """Bytes of a number in compute precision."""
        dtype = self.config.policy.dtype
        return 2 if dtype == "bfloat16" or (dtype == "auto" and not self.card.is_cpu) else 4

    @property
    def sleeps(self) -> bool:
        """Whether vLLM gives its weights and its KV cache back while the learner works. Its CPU build cannot."""
        return self.config.rollout.sleep and not self.card.is_cpu

    def needs(self, phase: str) -> float:
        """Bytes of `learn` or `rollout` without vLLM's KV cache, which takes what remains."""
        return sum(self._parts()[phase].values())

    def _parts(self) -> dict[str, dict[str, float]]:
        config = self.config
        stay = memory.policy_parts(config, self.shape, self.element)
        if self.card.is_cpu:
            stay["completions"] = memory.host_bytes(config)
        elif not self.card.here:  # what is free on a card of this machine is without the context already
            stay["CUDA context"] = memory.CUDA_CONTEXT
        sampling, sampler = memory.sampler_parts(self)
        if config.reward.name == "hybrid":
            (sampling if config.reward.hybrid.offload else sampler)["reward model"] = memory.reward_model_bytes(config)
        learning = memory.learning_parts(config, self.shape, self.element)
        return {"learn": stay | sampler | learning, "rollout": stay | sampler | sampling}

    @property
    def kv_bytes(self) -> float:
        """vLLM's KV cache: as asked for, else what the phases leave, up to what all running sequences can fill."""
        rollout = self.config.rollout
        if rollout.kv_gib is not None:
            return rollout.kv_gib * GIB
        taken = self.needs("rollout") if self.sleeps else max(self.needs("rollout"), self.needs("learn"))
        most = min(self.usable - taken, rollout.running_sequences * rollout.longest_sequence * self.shape.kv_bytes)
        return max(0.0, min(most, CPU_KV) if self.card.is_cpu else most)

    @property
    def kv_sequences(self) -> int:
        """Full-length sequences that the KV cache holds."""
        return int(self.kv_bytes // (self.config.rollout.longest_sequence * self.shape.kv_bytes))

    @property
    def engine_config(self) -> Config:
        """The settings with the size of vLLM's KV cache decided. A CPU's engine decides for itself."""
        if self.engine == "torch" or self.card.is_cpu or self.config.rollout.kv_gib is not None:
            return self.config
        return changed(self.config, {"rollout.kv_gib": max(1, math.floor(100 * self.kv_bytes / GIB)) / 100})

    def phases(self) -> dict[str, dict[str, float]]:
        """learn, rollout -> part -> bytes, vLLM's KV cache wherever it is."""
        phases = self._parts()
        if self.engine == "vllm":
            phases["rollout"]["vLLM KV cache"] = self.kv_bytes
            phases["learn"]["vLLM KV cache"] = 0.0 if self.sleeps else self.kv_bytes
        return phases

    def totals(self) -> dict[str, float]:
        return {phase: sum(parts.values()) for phase, parts in self.phases().items()}

    @property
    def fits(self) -> bool:
        least = min(LEAST_SEQUENCES, self.config.rollout.running_sequences)
        enough = self.engine == "torch" or self.kv_sequences >= least
        return enough and max(self.totals().values()) <= self.usable

    @property
    def largest_microbatch_tokens(self) -> int:
        """The most tokens in a micro-batch, a multiple of 1024, that fit beside this plan's KV cache; 0 where not even
        one sequence does."""
        fixed = replace(self, config=self.engine_config)
        least = -(-self.config.rollout.longest_sequence // 1024)
        budgets = range(1024 * least, 2**22, 1024)
        fitting = bisect(budgets, False, key=lambda budget: not fixed.but({"learner.microbatch_tokens": budget}).fits)
        return budgets[fitting - 1] if fitting else 0

    def seconds(self, completion_tokens: float | None = None) -> dict[str, float]:
        """Phase -> seconds of a step, with completions of so many tokens or of the expected number."""
        return step_seconds(self, completion_tokens or expected(self.config.rollout.max_new_tokens))

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds().values())


def make_plan(config: Config, card: Card) -> Plan:
    """The plan for this card. Raises UserError where the model's configuration cannot be found."""
    other = "vllm" if config.rollout.engine == "auto" and not card.here else None  # what a GPU machine would have
    engine = other or choose_engine(config.rollout.engine, "cpu" if card.is_cpu else "cuda").name
    return Plan(config, card, shape_of(config.model, config.policy.trust_remote_code), engine)


def decide(config: Config, card: Card) -> tuple[Plan, list[str]]:
    """The plan with what was left to it decided (policy.quant auto, policy.gradient_checkpointing auto), and a line on
    each."""
    plan, notes = make_plan(config, card), []
    if config.policy.quant == "auto":
        whole = plan.but({"policy.quant": "none"})
        plan = whole if whole.fits else plan.but({"policy.quant": "nf4"})
        notes.append(f"policy.quant auto: {plan.config.policy.quant}; none needs {_beside_kv(whole)}")
    if config.policy.gradient_checkpointing == "auto":
        on, off = (plan.but({"policy.gradient_checkpointing": choice}) for choice in (True, False))
        plan = off if off.fits and off.step_seconds < on.step_seconds else on
        chosen = typed(plan.config.policy.gradient_checkpointing)
        notes.append(f"policy.gradient_checkpointing auto: {chosen}; false needs {_beside_kv(off)}")
    return plan, notes


# ---- in words


def describe(plan: Plan) -> str:
    """A table of memory by phase, the time of a step and of the run, and what the run folder grows to."""
    shape, card, rank = plan.shape, plan.card, plan.config.policy.lora_rank
    trained = f"LoRA rank {rank}, {shape.adapter(rank):,} trained" if rank else "all weights trained"
    base = ", NF4 base" if plan.config.policy.quant == "nf4" else ""
    first = (
        f"plan: {plan.config.model} ({shape.parameters:,} parameters, {trained}{base}) on {card.name}, "
        f"{_gib(card.memory)} GiB{' free' * card.here}; {length(plan.step_seconds)} a step"
    )
    return "\n".join([first, *_memory(plan), *(_time(plan) if plan.fits else [])])


def _memory(plan: Plan) -> list[str]:
    phases, totals, rollout = plan.phases(), plan.totals(), plan.config.rollout
    lines = [f"{'memory, GiB':24}{'learn':>9}{'rollout':>9}"]
    for name in dict.fromkeys([*phases["learn"], *phases["rollout"]]):
        learn, sample = phases["learn"].get(name, 0.0), phases["rollout"].get(name, 0.0)
        if max(learn, sample) >= 0.005 * GIB:
            lines.append(f"  {name:22}{_gib(learn, 2):>9}{_gib(sample, 2):>9}")
    sums = f"{_gib(totals['learn'], 2):>9}{_gib(totals['rollout'], 2):>9}"
    lines.append(f"  {'total':22}{sums}   of {_gib(plan.usable)} that may be used")
    if plan.engine == "vllm":
        lines.append(
            f"KV cache of {_gib(plan.kv_bytes)} GiB: {plan.kv_sequences} sequences of {rollout.longest_sequence} "
            f"tokens at once, of {rollout.running_sequences} that may run"
        )
    return lines


def _time(plan: Plan) -> list[str]:
    config, seconds, step = plan.config, plan.seconds(), plan.step_seconds
    shares = ", ".join(f"{phase} {value / step:.0%}" for phase, value in seconds.items())
    longest = config.rollout.max_new_tokens
    start = "" if plan.card.is_cpu else f", after about {length(START[plan.engine])} of start-up"
    hour = f" (an hour holds {int(HOUR / step)}; see --mode)" if step * config.steps > HOUR else ""
    checkpoint, weights, completions = memory.disk_parts(config, plan.shape, plan.element)
    return [
        f"largest learner.microbatch_tokens that fits: {plan.largest_microbatch_tokens}",
        f"time, planned and not measured: {length(step)} a step ({shares}) with {expected(longest):.0f} tokens a "
        f"completion, {length(sum(plan.seconds(longest).values()))} if all run to {longest}; "
        f"{length(step * config.steps)} for {config.steps} steps{hour}{start}",
        f"disk: {config.checkpoint.keep} x {_gib(checkpoint, 2)} GiB of checkpoints, {_gib(weights)} GiB of older "
        f"evaluated weights as far as there is room, {_gib(completions, 2)} GiB of completions",
    ]


def planned_and_measured(plan: Plan, rows: Sequence[dict[str, float]]) -> str:
    """Planned beside the means of the run's `rows`, its first step (which warms up) left out; of memory the peak.

    The last line is how much of the card's data sheet learning used, counted with the mean length of a completion.
    """
    seconds = plan.seconds()
    planned = {f"time/{phase}": seconds[phase] for phase in ("rollout", "learn", "sync")} | {
        "time/step": plan.step_seconds,
        "completion/length_mean": expected(plan.config.rollout.max_new_tokens),
        "memory/peak_gib": max(plan.totals().values()) / GIB,
    }
    steps = [row for row in rows if row["step"] > 1] or [row for row in rows if row["step"] == 1]
    measured = {name: mean(row[name] for row in steps) for name in planned}
    measured["memory/peak_gib"] = max(row["memory/peak_gib"] for row in steps)
    for numbers in (planned, measured):
        work = learning_flops(plan.config, plan.shape, numbers["completion/length_mean"])
        numbers["utilisation"] = work / (numbers["time/learn"] * plan.card.flops)
    lines = [f"{name:24}{planned[name]:>10.4g}{measured[name]:>10.4g}" for name in planned]
    return "\n".join([f"{'':24}{'planned':>10}{'measured':>10}", *lines])


def length(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _beside_kv(plan: Plan) -> str:
    most = max(plan.needs("learn"), plan.needs("rollout"))
    return f"{_gib(most)} GiB beside the KV cache, of {_gib(plan.usable)} that may be used"


def _gib(value: float, digits: int = 1) -> str:
    return f"{value / GIB:.{digits}f}"
