"""What a run will take, in bytes and hours, from the model's configuration alone: before anything is loaded.

`Plan` sums the parts of memory.py and duration.py; text.py puts it in words; check.py looks for what would make the run
fail around it.
"""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass

from grpo.config import Config, changed, flat, typed
from grpo.errors import UserError
from grpo.plan import memory
from grpo.plan.duration import Card, expected, step_seconds
from grpo.plan.memory import GIB, Shape, shape_of
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
        stay = memory.policy_parts(config, self.shape, self.element)
        if cpu:
            stay["completions"] = memory.host_bytes(config)
        elif not self.card.here:  # what is free on a card of this machine is without the context already
            stay["CUDA context"] = memory.CUDA_CONTEXT
        sampler = memory.sampler_parts(config, self.shape, self.engine, cpu, self.element)
        budget = token_budget or config.learner.token_budget
        learn = memory.learning_parts(config, self.shape, self.element, budget)
        if config.reward.name == "hybrid":
            sampler["reward model"] = memory.reward_model_bytes(config)
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
        every = self.config.rollout.running_sequences * self.sequence_bytes
        room = self.usable - taken
        return max(0.0, min(every, room, CPU_KV) if self.card.is_cpu else min(every, room))

    @property
    def sequence_bytes(self) -> int:
        """Of the KV cache, for a sequence of full length."""
        return self.config.rollout.longest_sequence * self.shape.kv_bytes

    @property
    def engine_config(self) -> Config:
        """The settings with the size of vLLM's KV cache decided. A CPU's engine decides for itself."""
        if self.engine == "torch" or self.card.is_cpu or self.config.rollout.kv_gib is not None:
            return self.config
        return changed(self.config, {"rollout.kv_gib": round(self.kv_bytes / GIB, 2)})

    @property
    def kv_sequences(self) -> int:
        """Full-length sequences that the KV cache holds."""
        return int(self.kv_bytes // self.sequence_bytes)

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
        least = min(LEAST_SEQUENCES, self.config.rollout.running_sequences)
        enough = self.engine == "torch" or self.kv_sequences >= least
        return enough and max(self.totals().values()) <= self.usable

    @property
    def largest_token_budget(self) -> int:
        """The most tokens in a micro-batch, a multiple of 1024, that learning fits with; 0 if not even one sequence."""
        kept = self.kv_bytes if self.engine == "vllm" and not self.config.rollout.sleep else 0

        def too_large(budget: int) -> bool:
            return self.needs("learn", budget) + kept > self.usable

        least = -(-self.config.rollout.longest_sequence // 1024)
        budgets = range(1024 * least, 2**22, 1024)
        fitting = bisect(budgets, False, key=too_large)
        return budgets[fitting - 1] if fitting else 0

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


def decide(config: Config, card: Card) -> tuple[Plan, list[str]]:
    """The plan with what was left to it decided (policy.quant auto, policy.gradient_checkpointing auto), and a line on
    each."""
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
    if config.policy.gradient_checkpointing != "auto":
        return make_plan(config, card), notes
    on, off = (make_plan(changed(config, {"policy.gradient_checkpointing": x}), card) for x in (True, False))
    keep = off.fits and off.step_seconds < on.step_seconds
    need = f"{max(off.totals().values()) / GIB:.1f} of {off.usable / GIB:.1f} GiB"
    why = f"it is faster without and fits ({need})" if keep else f"without it needs {need}"
    notes.append(f"gradient_checkpointing auto: {'off' if keep else 'on'}, because {why}")
    return (off if keep else on), notes


def disk_parts(plan: Plan) -> tuple[float, float, float]:
    """Bytes of one checkpoint, of the weights kept of older evaluated steps, and of all completions, compressed."""
    config, lora = plan.config, plan.config.policy.lora_rank
    parts = memory.policy_parts(config, plan.shape, plan.element)
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


def remedy(plan: Plan) -> dict[str, object]:
    """The mildest of REMEDIES that makes the plan fit, else all together, else nothing."""
    now = flat(plan.config)

    def of_use(name: str, value: object) -> bool:
        if name == "policy.quant":
            return now[name] != value and bool(now["policy.lora_rank"])
        if name == "policy.lora_rank":
            return not now[name]
        return now[name] > value if type(value) is int else now[name] != value

    helpful = [options for options in REMEDIES if of_use(*next(iter(options.items())))]
    together = {name: value for options in helpful for name, value in options.items()}
    for options in (*helpful, together):
        if make_plan(changed(plan.config, options), plan.card).fits:
            return options
    return {}


def as_options(options: dict[str, object]) -> str:
    return " ".join(f"--{name} {typed(value)}" for name, value in options.items())


def check_fits(plan: Plan) -> None:
    """Raises UserError with what would make it fit."""
    if plan.fits:
        return
    used = f"{plan.usable / GIB:.1f} of {plan.card.memory / GIB:.1f} GiB may be used"
    phase, need = max(plan.totals().items(), key=lambda item: item[1])
    if need > plan.usable:
        problem = f"{phase} needs {need / GIB:.1f} GiB"
    else:
        problem = (
            f"the KV cache would hold {plan.kv_sequences} sequences of {plan.config.rollout.longest_sequence} tokens"
        )
    change = as_options(remedy(plan))
    advice = f"It fits with: {change}" if change else "Use a smaller --model, or a larger card"
    raise UserError(f"does not fit {plan.card.name}: {problem}, and {used}. {advice}")
