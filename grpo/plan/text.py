"""The plan in words: a table of memory by phase, the time of a step and of the run, and what fits an hour."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from grpo.config import MODES
from grpo.plan import Plan, as_options, disk_parts
from grpo.plan.duration import START, expected, learning_flops
from grpo.plan.memory import GIB

HOUR = 3600


def describe(plan: Plan) -> str:
    config, shape = plan.config, plan.shape
    trained = f"LoRA rank {config.policy.lora_rank}, {_millions(shape.adapter(config.policy.lora_rank))} trained"
    how = trained if config.policy.lora_rank else "all weights trained"
    mode = [f"mode {config.mode}: at most {as_options(MODES[config.mode])}"] if MODES[config.mode] else []
    lines = [
        f"plan: {config.model} ({_millions(shape.parameters)} parameters, {how}"
        f"{', NF4 base' if config.policy.quant == 'nf4' else ''}) on {plan.card.name}, {_gib(plan.card.memory)} GiB"
        f"{' free' if plan.card.here else ''}",
        *mode,
        *_memory(plan),
        *([*_time(plan), _disk(plan)] if plan.fits else []),
    ]
    return "\n".join(lines)


def summary(plan: Plan) -> str:
    """One line for --quiet."""
    memory = max(plan.totals().values())
    return (
        f"plan: {_gib(memory)} of {_gib(plan.usable)} GiB on {plan.card.name}, {length(plan.step_seconds)} a step, "
        f"{length(plan.step_seconds * plan.config.steps)} in all"
    )


def planned_and_measured(plan: Plan, rows: Sequence[dict[str, float]]) -> str:
    """Planned beside the means of the run's `rows`, its first step (which warms up) left out; of memory the peak.

    The last line is how much of the card's data sheet learning used, counted with the mean length of a completion.
    """
    seconds = plan.seconds()
    planned = {f"time/{phase}": seconds[phase] for phase in ("rollout", "learn", "sync")} | {
        "time/step": sum(seconds.values()),
        "completion/tokens_mean": expected(plan.config.rollout.max_new_tokens),
        "memory/peak_gib": max(plan.totals().values()) / GIB,
    }
    steps = [row for row in rows if row["step"] > 1] or [row for row in rows if row["step"] == 1]
    measured = {name: mean(row[name] for row in steps) for name in planned}
    measured["memory/peak_gib"] = max(row["memory/peak_gib"] for row in steps)
    for numbers in (planned, measured):
        work = learning_flops(
            plan.config, plan.shape, expected(plan.config.rollout.max_prompt_tokens), numbers["completion/tokens_mean"]
        )
        numbers["utilisation"] = work / (numbers["time/learn"] * plan.card.flops)
    lines = [f"{name:24}{planned[name]:>10.4g}{measured[name]:>10.4g}" for name in planned]
    return "\n".join([f"{'':24}{'planned':>10}{'measured':>10}", *lines])


def length(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _memory(plan: Plan) -> list[str]:
    phases, totals, rollout = plan.phases(), plan.totals(), plan.config.rollout
    if plan.engine == "vllm":
        for phase, parts in phases.items():
            parts["vLLM KV cache"] = totals[phase] - sum(parts.values())
    names = dict.fromkeys([*phases["learn"], *phases["rollout"]])
    rows = [(name, [phases[phase].get(name, 0.0) for phase in ("learn", "rollout")]) for name in names]
    rows = [(name, values) for name, values in rows if max(values) >= 0.005 * GIB]
    rows.append(("total", [totals["learn"], totals["rollout"]]))
    table = [f"{'memory, GiB':24}{'learn':>9}{'rollout':>9}"]
    table += [f"  {name:22}" + "".join(f"{_gib(value, 2):>9}" for value in values) for name, values in rows]
    table[-1] += f"   of {_gib(plan.usable)} that may be used"
    if plan.engine == "vllm":
        table.append(
            f"KV cache of {_gib(plan.kv_bytes)} GiB: {plan.kv_sequences} sequences of {rollout.longest_sequence} "
            f"tokens at once, of {rollout.running_sequences} that may run"
        )
    table.append(f"largest learner.token_budget that fits: {plan.largest_token_budget}")
    return table


def _time(plan: Plan) -> list[str]:
    config, seconds = plan.config, plan.seconds()
    step = sum(seconds.values())
    shares = ", ".join(f"{phase} {value / step:.0%}" for phase, value in seconds.items())
    full = sum(plan.seconds(config.rollout.max_new_tokens).values())
    tokens = round(expected(config.rollout.max_new_tokens))
    source = "a guess" if plan.card.is_cpu else "from data sheets"
    start = "" if plan.card.is_cpu else f", after about {length(START[plan.engine])} of start-up"
    lines = [
        f"time, {source} until steps have been timed: {length(step)} a step ({shares}), "
        f"{length(step * config.steps)} for {config.steps} steps, with {tokens} tokens a completion{start}; "
        f"{length(full)} a step if all run to {config.rollout.max_new_tokens}"
    ]
    if step * config.steps > HOUR:
        lines.append(f"an hour holds {int(HOUR / step)} of these steps; --mode takes fewer and smaller ones")
    return lines


def _disk(plan: Plan) -> str:
    """What the run folder grows to."""
    checkpoint, weights, completions = disk_parts(plan)
    kept = plan.config.checkpoint.keep
    line = f"disk: {kept} checkpoint{'s' * (kept != 1)} of {_gib(checkpoint, 2)} GiB"
    if weights:
        line += f", weights of the evaluated steps {_gib(weights)} GiB as far as there is room"
    return f"{line}, completions {_gib(completions, 2)} GiB"


def _gib(value: float, digits: int = 1) -> str:
    return f"{value / GIB:.{digits}f}"


def _millions(count: float) -> str:
    return f"{count / 1e9:.3f} B" if count >= 1e9 else f"{count / 1e6:.3g} M"
