"""Will it fit, and how long will it take: known before anything is loaded, from the model's configuration alone."""

from __future__ import annotations

from itertools import combinations

import torch

from grpo.config import Config, changed, flat, short, typed
from grpo.errors import UserError
from grpo.plan import traps
from grpo.plan.forecast import Plan, make_plan
from grpo.plan.hardware import Card, this_card
from grpo.plan.memory import GIB, full_length, shape_of
from grpo.plan.text import describe, length, shares, summary
from grpo.run.terminal import say


def resolve_quant(config: Config, card: Card) -> tuple[Config, str | None]:
    """`policy.quant auto` decided by the plan, and the line that says so."""
    if config.policy.quant != "auto":
        return config, None
    plain = changed(config, {"policy.quant": "none"})
    plan = make_plan(plain, card)
    need = max(plan.needs("learn"), plan.needs("rollout")) / GIB
    of = f"{need:.1f} of {plan.usable / GIB:.1f} GiB on {card.name}"
    if plan.fits:
        return plain, f"quant auto: the base is not quantised, which fits ({of} without the KV cache)"
    return changed(config, {"policy.quant": "nf4"}), f"quant auto: the base in NF4, because without it needs {of}"


TIMED_STEPS = 3

# What may be changed to make a run fit, the mildest first: memory and speed, then precision, then the training itself.
REMEDIES: tuple[dict[str, object], ...] = (
    {"rollout.kv_gib": None},
    {"policy.gradient_checkpointing": True},
    {"learner.token_budget": 0},  # down to one full-length sequence
    {"learner.logit_chunk": 256},
    {"rollout.sleep": True},
    {"rollout.max_sequences": 32},
    {"learner.optimizer": "adamw_8bit"},
    {"policy.lora_rank": 64, "learner.lr": 1e-5},
    {"policy.quant": "nf4"},
    {"learner.kl_coef": 0.0},
    {"rollout.max_new_tokens": 1024},
    {"model": "Qwen/Qwen2.5-0.5B"},
)


def remedies(plan: Plan, at_most: int = 3) -> list[dict[str, object]]:
    """The smallest sets of changes that make the plan fit, none of which contains another."""
    found: list[dict[str, object]] = []
    for size in range(1, 4):
        for combination in combinations(REMEDIES, size):
            options = _differing(plan.config, {key: value for part in combination for key, value in part.items()})
            if len(options) < size or any(done.items() <= options.items() for done in found):
                continue
            if make_plan(changed(plan.config, options), plan.card).fits:
                found.append(options)
                if len(found) == at_most:
                    return found
    return found


def _differing(config: Config, options: dict[str, object]) -> dict[str, object]:
    """Those that change something, and for the better."""
    now = flat(config)
    if "learner.token_budget" in options:
        options["learner.token_budget"] = options.get("rollout.max_new_tokens", config.rollout.max_new_tokens) + (
            config.rollout.max_prompt_tokens
        )
    smaller = ("learner.token_budget", "learner.logit_chunk", "rollout.max_sequences", "rollout.max_new_tokens")
    lora = now["policy.lora_rank"] or "policy.lora_rank" in options
    return {
        key: value
        for key, value in options.items()
        if now[key] != value
        and not (key in smaller and now[key] <= value)
        and not (key == "policy.quant" and not lora)
        and not (key == "model" and shape_of(str(value)).parameters >= shape_of(config.model).parameters)
        and not (key in ("policy.lora_rank", "learner.lr") and now["policy.lora_rank"])
    }


def check_fits(plan: Plan) -> None:
    """Raises UserError naming up to three ways to make it fit."""
    if plan.fits:
        return
    used = f"{plan.usable / GIB:.1f} of {plan.card.memory / GIB:.1f} GiB may be used"
    phase, need = max(plan.totals().items(), key=lambda item: item[1])
    if need > plan.usable:
        problem = f"{phase} needs {need / GIB:.1f} GiB"
    else:
        problem = f"the KV cache would hold {plan.kv_sequences} sequences of {full_length(plan.config)} tokens"
    ways = [" ".join(f"--{key} {typed(value)}" for key, value in options.items()) for options in remedies(plan)]
    advice = "It fits with: " + "; or ".join(ways) if ways else "Use a smaller --model, or a larger card"
    raise UserError(f"does not fit {plan.card.name}: {problem}, and {used}. {advice}")


def plan_run(config: Config, device: torch.device) -> Plan:
    """The plan of a run that is about to start, printed. Raises UserError with all that would make the run fail.

    `plan.config` are the settings to run with: what was left to the plan (policy.quant auto) is decided in them.
    """
    card = this_card(device)
    config, note = resolve_quant(config, card)
    plan = make_plan(config, card)
    if wrong := traps.problems(plan):
        raise UserError("; and ".join(wrong))
    print(summary(plan) if config.quiet else f"{short(config)}\n{describe(plan)}", flush=True)
    check_fits(plan)
    for line in filter(None, [note, *traps.warnings(plan)]):
        say(line)
    return plan


def timed(plan: Plan, row: dict[str, float]) -> Plan:
    """The plan with the times of a step, and once they mean something, a line that says what they come to."""
    plan = plan.updated(row)
    if plan.steps_measured == TIMED_STEPS and row["step"] < plan.config.steps:
        left = plan.step_seconds * (plan.config.steps - row["step"])
        say(f"measured: {length(plan.step_seconds)} a step ({shares(plan)}), {length(left)} to go")
    return plan
