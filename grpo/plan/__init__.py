"""What a run will take, in bytes and hours, from the model's configuration alone: before anything is loaded.

`Plan` sums the parts of memory.py and duration.py; text.py puts it in words; check.py looks for what would make the run
fail around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from grpo.config import Config, changed, flat, typed
from grpo.errors import UserError
from grpo.plan.cards import Card
from grpo.plan.duration import expected, step_seconds
from grpo.plan.memory import (
    CUDA_CONTEXT,
    GIB,
    Shape,
    full_length,
    host_bytes,
    learning_parts,
    policy_parts,
    reward_model_bytes,
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
COMPRESSED_TOKEN = 1.3
"""bytes of a token in the run folder: about four letters, compressed"""


@dataclass(frozen=True)
class Plan:
    config: Config
    card: Card
    shape: Shape
    engine: str
    """vllm or torch"""

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
        stay = policy_parts(config, self.shape, self.element)
        if cpu:
            stay["completions"] = host_bytes(config)
        elif not self.card.here:  # what is free on a card of this machine is without the context already
            stay["CUDA context"] = CUDA_CONTEXT
        sampler = sampler_parts(config, self.shape, self.engine, cpu, self.element)
        learn = learning_parts(config, self.shape, self.element, token_budget or config.learner.token_budget)
        if config.reward.name == "hybrid":
            sampler["reward model"] = reward_model_bytes(config)
        leave = {"vLLM activations", "sampler's logits", "KV cache"}
        leave |= {"vLLM weights"} if config.rollout.sleep and not cpu else set()
        leave |= {"reward model"} if config.reward.hybrid_offload else set()
        kept = {name: value for name, value in sampler.items() if name not in leave}
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
        """Phase -> seconds of a step, with completions of so many tokens or of the expected number."""
        tokens = completion_tokens or expected(self.config.rollout.max_new_tokens)
        return step_seconds(self.config, self.shape, self.card, self.engine, self.kv_bytes, tokens)

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds().values())


def make_plan(config: Config, card: Card) -> Plan:
    """The plan for this card. Raises UserError where the model's configuration cannot be found."""
    other = "vllm" if config.rollout.engine == "auto" and not card.here else None  # what a GPU machine would have
    engine = other or engine_name(config)
    return Plan(config, card, shape_of(config.model, config.policy.trust_remote_code), engine)


def decide(config: Config, card: Card) -> tuple[Config, list[str]]:
    """What was left to the plan (policy.quant auto, policy.gradient_checkpointing auto), and a line on each."""
    notes = []
    if config.policy.quant == "auto":
        plan = make_plan(changed(config, {"policy.quant": "none"}), card)
        need = max(plan.needs("learn"), plan.needs("rollout")) / GIB
        of = f"{need:.1f} of {plan.usable / GIB:.1f} GiB on {card.name}"
        if plan.fits:
            notes.append(f"quant auto: the base is not quantised, which fits ({of} without the KV cache)")
        else:
            notes.append(f"quant auto: the base in NF4, because without it needs {of}")
        config = changed(config, {"policy.quant": "none" if plan.fits else "nf4"})
    if config.policy.gradient_checkpointing == "auto":
        on, off = (make_plan(changed(config, {"policy.gradient_checkpointing": x}), card) for x in (True, False))
        keep = off.fits and off.step_seconds < on.step_seconds
        need = f"{max(off.totals().values()) / GIB:.1f} of {off.usable / GIB:.1f} GiB"
        why = f"it is faster without and fits ({need})" if keep else f"without it needs {need}"
        notes.append(f"gradient_checkpointing auto: {'off' if keep else 'on'}, because {why}")
        config = (off if keep else on).config
    return config, notes


def disk_parts(plan: Plan) -> tuple[float, float, float]:
    """Bytes of one checkpoint, of the weights kept of older evaluated steps, and of all completions, compressed."""
    config, lora = plan.config, plan.config.policy.lora_rank
    parts = policy_parts(config, plan.shape, plan.element)
    weights = parts["adapter"] if lora else parts["weights"]
    masters = parts["float32 masters"] or weights  # float32 weights are their own, and are written with the rest again
    both = math.lcm(config.eval.every, config.checkpoint.every)  # 0: one of them never happens
    older = max(0, config.steps // both - config.checkpoint.keep) if both else 0
    completions = config.steps * config.rollout.problems * config.rollout.group
    text = completions * expected(config.rollout.max_new_tokens) * COMPRESSED_TOKEN
    return weights + masters + parts["optimiser moments"], older * weights, text


# What may be changed to make a run fit, the mildest first: memory and speed, then precision, then what is trained.
REMEDIES: tuple[dict[str, object], ...] = (
    {"rollout.kv_gib": None},
    {"policy.gradient_checkpointing": True},
    {"learner.token_budget": 4096},
    {"learner.logit_chunk": 256},
    {"rollout.sleep": True},
    {"rollout.max_sequences": 32},
    {"policy.lora_rank": 64, "learner.lr": 1e-5},
    {"policy.quant": "nf4"},
)
AT_MOST = ("learner.token_budget", "learner.logit_chunk", "rollout.max_sequences")
"""Settings whose remedy is a smaller number."""


def remedy(plan: Plan) -> dict[str, object]:
    """The mildest change that makes the plan fit: one remedy if one is enough, else all down to the one that does."""
    every: dict[str, object] = {}
    for part in REMEDIES:
        options = _of_use(plan.config, part)
        if options and _fits(plan, options):
            return options
    for part in REMEDIES:
        every |= _of_use(changed(plan.config, every), part)
        if every and _fits(plan, every):
            return every
    return {}


def _fits(plan: Plan, options: dict[str, object]) -> bool:
    return make_plan(changed(plan.config, options), plan.card).fits


def _of_use(config: Config, part: dict[str, object]) -> dict[str, object]:
    """The remedy, or nothing where it would change nothing, or not for the better."""
    now = flat(config)
    name, value = next(iter(part.items()))
    worse = now[name] <= value if name in AT_MOST else now[name] == value
    if worse or (name == "policy.lora_rank" and now[name]) or (name == "policy.quant" and not now["policy.lora_rank"]):
        return {}
    return part


def check_fits(plan: Plan) -> None:
    """Raises UserError with what would make it fit."""
    if plan.fits:
        return
    used = f"{plan.usable / GIB:.1f} of {plan.card.memory / GIB:.1f} GiB may be used"
    phase, need = max(plan.totals().items(), key=lambda item: item[1])
    if need > plan.usable:
        problem = f"{phase} needs {need / GIB:.1f} GiB"
    else:
        problem = f"the KV cache would hold {plan.kv_sequences} sequences of {full_length(plan.config)} tokens"
    change = " ".join(f"--{key} {typed(value)}" for key, value in remedy(plan).items())
    advice = f"It fits with: {change}" if change else "Use a smaller --model, or a larger card"
    raise UserError(f"does not fit {plan.card.name}: {problem}, and {used}. {advice}")
