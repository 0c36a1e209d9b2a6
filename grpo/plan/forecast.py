"""What a run needs of a card, and how long it takes: sums over the parts of memory.py and duration.py."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from grpo.config import Config, changed
from grpo.plan.duration import EXPECTED_SHARE, step_seconds
from grpo.plan.hardware import Card
from grpo.plan.memory import (
    CUDA_CONTEXT,
    GIB,
    Shape,
    full_length,
    learning_parts,
    policy_parts,
    running_sequences,
    sampler_parts,
    shape_of,
)
from grpo.rollout import engine_name

USABLE = 0.93
"""Share of the memory to plan with; the rest is for fragmentation and for what a plan forgets."""
LEAST_SEQUENCES = 4
"""A KV cache that holds fewer full-length sequences is no rollout engine."""
CPU_KV = GIB
"""vLLM's CPU build touches all of its KV cache at the start."""
MEASURED = ("completion/tokens_mean", "memory/peak_gib")


@dataclass(frozen=True)
class Plan:
    config: Config
    card: Card
    shape: Shape
    engine: str
    """vllm or torch"""
    measured: dict[str, float] = field(default_factory=dict)
    """means of the steps timed so far, by metric name"""
    steps_measured: int = 0

    @property
    def usable(self) -> float:
        return self.card.memory * USABLE

    @property
    def element(self) -> int:
        """Bytes of a number in compute precision."""
        dtype = self.config.policy.dtype
        return 2 if dtype == "bfloat16" or (dtype == "auto" and not self.card.is_cpu) else 4

    def phases(self, token_budget: int | None = None) -> dict[str, dict[str, float]]:
        """learn, rollout -> part -> bytes, vLLM's KV cache left out: it takes what remains."""
        config, cpu = self.config, self.card.is_cpu
        stay = {} if cpu else {"CUDA context": CUDA_CONTEXT}
        stay |= policy_parts(config, self.shape, self.element)
        sampler = sampler_parts(config, self.shape, self.engine, cpu, self.element)
        learn = learning_parts(config, self.shape, self.element, token_budget or config.learner.token_budget)
        kept = {}
        if self.engine == "vllm":
            asleep = config.rollout.sleep and not cpu
            kept = {
                name: sampler[name] for name in ("vLLM weights", "vLLM graphs") if name.endswith("graphs") or not asleep
            }
        return {"learn": stay | learn | kept, "rollout": stay | sampler}

    def needs(self, phase: str, token_budget: int | None = None) -> float:
        """Bytes of `learn` or `rollout` without vLLM's KV cache."""
        return sum(self.phases(token_budget)[phase].values())

    @property
    def kv_bytes(self) -> float:
        """vLLM's KV cache: as asked for, else what the phases leave, up to what all running sequences can fill."""
        if self.config.rollout.kv_gib is not None:
            return self.config.rollout.kv_gib * GIB
        taken = self.needs("rollout")
        if not self.config.rollout.sleep or self.card.is_cpu:
            taken = max(taken, self.needs("learn"))
        every = running_sequences(self.config) * full_length(self.config) * self.shape.kv_bytes
        room = self.usable - taken
        return max(0.0, min(every, room, CPU_KV) if self.card.is_cpu else min(every, room))

    @property
    def kv_gib(self) -> float:
        return self.kv_bytes / GIB

    @property
    def engine_config(self) -> Config:
        """The settings with the size of vLLM's KV cache decided. A CPU's engine decides for itself."""
        if self.engine == "torch" or self.card.is_cpu or self.config.rollout.kv_gib is not None:
            return self.config
        return changed(self.config, {"rollout.kv_gib": round(self.kv_gib, 2)})

    @property
    def kv_sequences(self) -> int:
        """Full-length sequences that the KV cache holds."""
        return int(self.kv_bytes // (full_length(self.config) * self.shape.kv_bytes))

    def totals(self, token_budget: int | None = None) -> dict[str, float]:
        """learn, rollout -> bytes, vLLM's KV cache included wherever it is."""
        totals = {phase: sum(parts.values()) for phase, parts in self.phases(token_budget).items()}
        if self.engine == "vllm":
            totals["rollout"] += self.kv_bytes
            if not self.config.rollout.sleep or self.card.is_cpu:
                totals["learn"] += self.kv_bytes
        return totals

    @property
    def fits(self) -> bool:
        enough = self.engine == "torch" or self.kv_sequences >= min(LEAST_SEQUENCES, running_sequences(self.config))
        return enough and max(self.totals().values()) <= self.usable

    @property
    def largest_token_budget(self) -> int:
        """The most tokens in a micro-batch, a multiple of 1024, that learning fits with; 0 if not even one sequence."""
        kept = self.kv_bytes if self.engine == "vllm" and not self.config.rollout.sleep else 0
        least = -(-full_length(self.config) // 1024)

        def fits(thousands: int) -> bool:
            return self.needs("learn", thousands * 1024) + kept <= self.usable

        if not fits(least):
            return 0
        low, high = least, 4096
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low * 1024

    def seconds(self, completion_tokens: float | None = None) -> dict[str, float]:
        """Phase -> seconds of a step: measured where steps have been timed, else planned."""
        tokens = completion_tokens or EXPECTED_SHARE * self.config.rollout.max_new_tokens
        planned = step_seconds(self.config, self.shape, self.card, self.engine, self.kv_bytes, tokens)
        if completion_tokens is not None or not self.measured:
            return planned
        phases = {name: value for name, value in self.measured.items() if name.startswith("time/")}
        return {name.removeprefix("time/"): value for name, value in phases.items() if name != "time/step"}

    @property
    def step_seconds(self) -> float:
        return self.measured.get("time/step") or sum(self.seconds().values())

    def updated(self, metrics: dict[str, float]) -> Plan:
        """With a step's measured times in place of the planned.

        The first step, which warms up, is forgotten with the second; then it is the mean, mostly of the last twenty.
        """
        count = self.steps_measured + 1
        share = 1 / max(1, min(count - 1, 20))
        wanted = {key: value for key, value in metrics.items() if key.startswith("time/") or key in MEASURED}
        mean = {key: self.measured.get(key, value) * (1 - share) + value * share for key, value in wanted.items()}
        if "memory/peak_gib" in metrics:
            mean["memory/peak_gib"] = max(metrics["memory/peak_gib"], self.measured.get("memory/peak_gib", 0))
        return replace(self, measured=mean, steps_measured=count)


def make_plan(config: Config, card: Card) -> Plan:
    """The plan for this card. Raises UserError where the model's configuration cannot be found."""
    other = "vllm" if config.rollout.engine == "auto" and not card.here else None  # what a GPU machine would have
    engine = other or engine_name(config)
    return Plan(config, card, shape_of(config.model, config.policy.trust_remote_code), engine)
