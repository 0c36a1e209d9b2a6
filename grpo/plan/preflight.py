"""Checks a run before it starts: the plan, and everything known that would make the run fail.

Every run goes through `plan_run`; `train.py --check` also reads all data, tests the reward and proves the model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import torch

from data.sources import SOURCES
from grpo import hub
from grpo.chat_template import ChatTemplate
from grpo.environment import installed, main_memory, versions
from grpo.errors import UserError
from grpo.model_check import prove
from grpo.plan.hardware import GIB, this_hardware
from grpo.plan.memory import disk_parts, host_bytes
from grpo.plan.planner import Plan, decide, describe
from grpo.plan.shapes import model_config
from grpo.policy import generation_config, load_policy, load_tokenizer
from grpo.problems import first_prompt, make_problems, read_data, training_problems
from grpo.rollout import reward_row
from grpo.run.resume import new_folder
from grpo.settings import Config, short, typed
from grpo.terminal import escape_control, notify
from grpo.types import Problem
from rewards import Row, load_reward

LEAST_LORA_STEP = 3e-4
FIRST_ROWS = 20
"""Rows in which the reward's self-test looks for a problem"""
PROBLEM = "PROBLEM: "
HeldOut = Callable[[Config], Mapping[str, Callable[[ChatTemplate | None], list[Problem]]]]
"""Settings -> name of each held-out set -> function that loads it"""
FIXES: tuple[dict[str, object], ...] = (
    {"rollout.kv_gib": None}, {"policy.gradient_checkpointing": True}, {"learner.microbatch_tokens": 4096},
    {"learner.logit_chunk": 256}, {"rollout.sleep": True}, {"rollout.max_num_seqs": 32},
    {"policy.lora_rank": 64, "learner.lr": 1e-5},
)  # fmt: skip
"""Changes that can make a run fit, the mildest first: memory and speed, then the trained weights"""


def plan_run(config: Config, device: torch.device, held_out: HeldOut) -> Plan:
    """Prints and returns the plan of a run that is about to start. Raises UserError with one line for each blocker.

    `plan.config` holds the settings to run with; those that were auto are decided.
    """
    plan, notes = decide(config, this_hardware(device))
    if lines := blockers(plan, held_out(config)):
        raise UserError("\n".join(lines))
    text = describe(plan)
    print(text.splitlines()[0] if config.quiet else f"{short(plan.config)}\n{text}", flush=True)
    for line in (*notes, *warnings(plan)):
        notify(line)
    return plan


def check(config: Config, device: torch.device, held_out: HeldOut, resumed: Path | None = None) -> int:
    """Prints what would run, or continue in the folder `resumed`, and all problems. Returns 1 if there is one."""
    print(short(config))
    sections = {
        "machine": _machine(config, device),
        "data": _data(config, held_out),
        "reward": _reward(config),
        "plan": _plan(config, device, held_out, resumed),
        "model": _model(config, device),
    }
    failures = 0
    for name, section in sections.items():
        lines: list[str] = []
        try:
            lines += section
        except (UserError, ValueError, OSError) as error:
            lines.append(f"{PROBLEM}{error}")
        print(escape_control("\n".join([name, *(f"    {line}" for line in lines)])))
        failures += sum(line.startswith(PROBLEM) for line in lines)
    plural = "problem" if failures == 1 else "problems"
    print(f"{failures} {plural}: the run would fail" if failures else "ready to run")
    return int(failures > 0)


def _machine(config: Config, device: torch.device) -> Iterator[str]:
    yield ", ".join(f"{name} {value}" for name, value in versions().items())
    free = {"memory": main_memory()[1]}
    if device.type == "cuda":
        free["the GPU's memory"] = torch.cuda.mem_get_info(device)[0]
    free[f"disk under {config.out}"] = shutil.disk_usage(existing_parent(Path(config.out)) or ".").free
    yield "free: " + ", ".join(f"{count / GIB:.1f} GiB of {name}" for name, count in free.items())


def _data(config: Config, held_out: HeldOut) -> Iterator[str]:
    """Every file of the run: rows, checksum, ground truths, and with a tokenizer at hand the prompts' lengths."""
    here = Path(config.model).is_dir() or hub.is_cached(config.model)
    tokenizer = load_tokenizer(config.model, config.policy.trust_remote_code) if here else None
    sets = held_out(config)
    for name in dict.fromkeys([config.data, *sets]):
        published = None if Path(name).exists() else SOURCES.get(Path(name).stem)
        checksum = f", sha256 {published.sha256[:12]} verified" if published else ""
        if name == config.data:
            problems, _ = training_problems(config, tokenizer)
        else:
            problems = sets[name](ChatTemplate.of_run(config, tokenizer) if tokenizer else None)
        longest = max(len(problem.prompt_ids) for problem in problems)
        of = f"longest prompt {longest if here else 'not known'} of {config.rollout.max_prompt_tokens} tokens"
        truths = len({problem.ground_truth for problem in problems})
        yield f"{name}: {len(problems)} rows{checksum}; ground truths: {truths}; {of}"
        if tokenizer and name == config.data:
            yield from first_prompt(problems, config, tokenizer, generation_config(config.model))


def _reward(config: Config) -> Iterator[str]:
    """The self-test that a run starts with. The reward model is not loaded."""
    name = "multi_signal" if config.reward.name == "hybrid" else config.reward.name
    row: Row = {}
    if ":" in name:  # a user's own function is tried on the first problem
        first = read_data(config.data, config.data_dir, FIRST_ROWS)
        found, _ = make_problems(first, None, config.prompt, columns=config.data_columns, graded=False)
        row = reward_row(next(iter(found.values()))) if found else row
    settings = config.reward.model_dump() | {"name": name, "workers": 1}
    with closing(load_reward(row, config.seed, "cpu", **settings)) as reward:
        terms = " + ".join(f"{weight:g} {signal}" for signal, weight in reward.weights.items())
        yield f"{config.reward.name}: {terms}; self-test passed"
        yield from reward.warnings


def _model(config: Config, device: torch.device) -> Iterator[str]:
    """The proof that a run starts with, where the model is on this machine and fits it."""
    plan, _ = decide(config, this_hardware(device))
    if not (Path(config.model).is_dir() or hub.is_cached(config.model)) or not (plan.hardware.here and plan.fits):
        yield "not loaded: it is checked against its own forward pass when the run starts"
    else:
        yield prove(load_policy(plan.config, device), config.rollout.longest_sequence)


def _plan(config: Config, device: torch.device, held_out: HeldOut, resumed: Path | None) -> Iterator[str]:
    plan, notes = decide(config, this_hardware(device))
    lines = blockers(plan, held_out(config))
    if NO_GPU not in lines:
        yield from describe(plan).removeprefix("plan: ").splitlines()
        yield from notes
    yield from (PROBLEM + line for line in lines)
    yield from (f"warning: {line}" for line in warnings(plan))
    if resumed is None:
        new_folder(config)  # UserError where the name is taken


# ---- fit


def fit_error(plan: Plan) -> str | None:
    """Why the plan does not fit, and a change that makes it fit; None where it fits."""
    if plan.fits:
        return None
    used = f"{plan.usable / GIB:.1f} of {plan.hardware.memory / GIB:.1f} GiB may be used"
    phase, need = max(plan.totals().items(), key=lambda item: item[1])
    problem = f"{phase} needs {need / GIB:.1f} GiB"
    if need <= plan.usable:
        problem = f"the KV cache holds {plan.kv_sequences} sequences of {plan.run.longest_sequence} tokens"
    change = " ".join(f"--{name} {typed(value)}" for name, value in suggest_fix(plan).items())
    advice = f"It fits with: {change}" if change else "Use a smaller --model, or a larger GPU"
    return f"does not fit {plan.hardware.name}: {problem}, and {used}. {advice}"


def suggest_fix(plan: Plan) -> dict[str, object]:
    """The mildest of FIXES that makes the plan fit, else all that lower its need together, else nothing."""
    together: dict[str, object] = {}
    for options in FIXES:
        if plan.but(options).fits:
            return options
        if sum(plan.but(together | options).totals().values()) < sum(plan.but(together).totals().values()):
            together |= options
    return together if plan.but(together).fits else {}


# ---- what would make the run fail

NO_GPU = "this machine has no GPU; --preset cpu and --preset laptop run here"


def blockers(plan: Plan, held_out: Iterable[str] = ()) -> list[str]:
    """One line for each known reason why the run would fail, with its fix; first that there is no GPU."""
    machine = [*machine_blockers(plan), *_not_at_hand(plan.config, held_out)] if plan.hardware.here else []
    checks = [
        *_context(plan),
        *machine,
        *_out_folder(plan),
        hub.weights_problem(Path(hub.base_of(plan.config.model))),
        fit_error(plan),
    ]
    lines = [line for line in checks if line]
    no_gpu = plan.hardware.is_cpu and plan.config.device != "cpu" and lines
    return [NO_GPU, *lines] if no_gpu else lines


def _context(plan: Plan) -> Iterator[str]:
    run = plan.run
    context = plan.model.context
    if context is not None and run.longest_sequence > context:
        room = context - run.max_prompt_tokens
        fix = f"--rollout.max_new_tokens {room}" if room > 0 else f"--rollout.max_prompt_tokens {context // 4}"
        yield (
            f"rollout.max_prompt_tokens + rollout.max_new_tokens is {run.longest_sequence}, but {plan.config.model} "
            f"has positions for {context} tokens; use {fix}"
        )


def _out_folder(plan: Plan) -> Iterator[str]:
    folder = existing_parent(Path(plan.config.out))
    keep = plan.run.keep
    checkpoint, _, completions = disk_parts(plan.run, plan.model)
    need = checkpoint * (keep + 1) + completions  # one is being written
    if folder is None or not os.access(folder, os.W_OK):
        yield f"out is {plan.config.out}, where nothing can be written; name another folder by --out"
    elif need > (free := shutil.disk_usage(folder).free):
        yield (
            f"{folder} has {free / GIB:.1f} GiB free, and {keep + 1} checkpoints with the completions take "
            f"{need / GIB:.1f}; use --out on another disk or --checkpoint.keep 1"
        )


def machine_blockers(plan: Plan) -> Iterator[str]:
    """Requirements of the run that this machine does not meet."""
    run = plan.run
    yield from plan.engine.problems(plan.hardware.device)
    if not plan.hardware.bf16 and run.element == 2:
        yield (
            f"{plan.hardware.name} does not compute in bfloat16, and float16 is not offered; use a GPU of 2020 or "
            "later (compute capability 8.0), or --policy.dtype float32"
        )
    need = host_bytes(run)
    free = main_memory()[1]
    if need > free:
        yield (
            f"the completions of a step may take {need / GIB:.1f} GiB of the {free / GIB:.1f} GiB of main memory that "
            "are free; lower rollout.prompts_per_step, rollout.group_size or rollout.max_new_tokens"
        )
    needs_bitsandbytes = {
        "policy.quant nf4": run.quant == "nf4",
        "learner.optimizer adamw_8bit": run.optimizer == "adamw_8bit",
    }
    for setting, needed in needs_bitsandbytes.items():
        if needed and not installed("bitsandbytes"):
            yield f"{setting} needs bitsandbytes: pip install 'bitsandbytes>=0.50'"


def _not_at_hand(config: Config, held_out: Iterable[str]) -> Iterator[str]:
    """Models, and data sets beside them, that are not on this machine and cannot be fetched."""
    models = [hub.base_of(config.model), *([config.reward.hybrid.model] if config.reward.name == "hybrid" else [])]
    if line := hub.missing(models, [config.data, *held_out], config.data_dir):
        yield line
        return
    for model in models:
        if not Path(model).is_dir() and not hub.is_cached(model):
            try:
                model_config(model, config.policy.trust_remote_code, known=False)  # gated, or no such name
            except UserError as error:
                yield str(error)


def warnings(plan: Plan) -> Iterator[str]:
    """One line for each thing that a run survives and its owner should know."""
    policy = plan.config.policy
    lr = plan.config.learner.lr
    if policy.lora_rank and policy.lora_alpha * lr < LEAST_LORA_STEP:
        yield (
            f"policy.lora_alpha x learner.lr is {policy.lora_alpha * lr:.2g}, a rate for training all weights; "
            "published LoRA runs lie between 3e-4 and 3e-3"
        )
    yield from plan.engine.notices()


def existing_parent(path: Path) -> Path | None:
    """The folder, or the nearest above it that exists; None where a file is in the way."""
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return nearest if nearest.is_dir() else None
