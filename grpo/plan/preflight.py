"""What is known before a run starts: its plan, and what around it would make it fail. Loads nothing big.

Every run goes through `plan_run`; `train.py --check` also reads all data and tries the reward.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import torch

from data.sources import SOURCES
from grpo import hub
from grpo.chat_template import ChatTemplate
from grpo.engines.base import engine_type
from grpo.environment import installed, versions
from grpo.errors import UserError
from grpo.evaluation import benchmarks
from grpo.plan import Plan, decide, describe
from grpo.plan.memory import GIB, disk_parts, host_bytes, model_config
from grpo.plan.time import this_card
from grpo.policy import generation_config, load_tokenizer
from grpo.problems import first_prompt, make_problems, read_data, training_problems
from grpo.rollout import known
from grpo.run.resume import new_folder
from grpo.settings import Config, flat, short, typed
from grpo.terminal import escape_control, notify
from rewards import Row, load_reward

LORA_LEAST_LR = 5e-6
FIRST_ROWS = 20
"""Rows in which the reward's self-test looks for a problem"""
PROBLEM = "PROBLEM: "
REMEDIES: tuple[dict[str, object], ...] = (
    {"rollout.kv_gib": None}, {"policy.gradient_checkpointing": True}, {"learner.microbatch_tokens": 4096},
    {"learner.logit_chunk": 256}, {"rollout.sleep": True}, {"rollout.max_num_seqs": 32},
    {"policy.lora_rank": 64, "learner.lr": 1e-5},
)  # fmt: skip
"""What may be changed to make a run fit, the mildest first: memory and speed, then what is trained"""


def plan_run(config: Config, device: torch.device) -> Plan:
    """The plan of a run that is about to start, printed. Raises UserError with all that would make the run fail.

    `plan.config` are the settings to run with: what was left to the plan (auto) is decided in them.
    """
    plan, notes = decide(config, this_card(device))
    lines = describe(plan)
    print(lines.splitlines()[0] if config.quiet else f"{short(plan.config)}\n{lines}", flush=True)
    if wrong := list(problems(plan)):
        raise UserError("\n".join([*without_gpu(plan), *wrong]))
    for line in (*notes, *warnings(plan)):
        notify(line)
    return plan


def check(config: Config, device: torch.device, resumed: Path | None = None) -> int:
    """Prints what would run, or go on in the folder `resumed`, and everything that is wrong with it. 1 if the run would
    fail, else 0."""
    print(short(config))
    sections = {
        "machine": _machine(config, device),
        "data": _data(config),
        "reward": _reward(config),
        "plan": _plan(config, device, resumed),
    }
    failures = 0
    for name, section in sections.items():
        lines = []
        try:
            lines += section
        except (UserError, ValueError, OSError) as error:
            lines.append(f"{PROBLEM}{error}")
        print(escape_control("\n".join([name, *(f"    {line}" for line in lines)])))
        failures += sum(line.startswith(PROBLEM) for line in lines)
    print(f"{failures} problem{'s' * (failures != 1)}: the run would fail" if failures else "ready to run")
    return int(failures > 0)


def _machine(config: Config, device: torch.device) -> Iterator[str]:
    yield ", ".join(f"{name} {value}" for name, value in versions().items())
    free = {"memory": psutil.virtual_memory().available}
    if device.type == "cuda":
        free["the GPU's memory"] = torch.cuda.mem_get_info(device)[0]
    free[f"disk under {config.out}"] = shutil.disk_usage(existing_parent(Path(config.out)) or ".").free
    yield "free: " + ", ".join(f"{count / GIB:.1f} GiB of {name}" for name, count in free.items())


def _data(config: Config) -> Iterator[str]:
    """Every file of the run: rows, checksum, ground truths, and with a tokenizer at hand the prompts' lengths."""
    here = Path(config.model).is_dir() or hub.is_cached(config.model)
    tokenizer = load_tokenizer(config.model, config.policy.trust_remote_code) if here else None
    for name in _data_names(config):
        published = None if Path(name).exists() else SOURCES.get(Path(name).stem)
        checksum = f", sha256 {published.sha256[:12]} verified" if published else ""
        if name == config.data:
            found, _ = training_problems(config, tokenizer)
        else:
            template, columns = ChatTemplate.of_run(config, tokenizer), config.eval.columns
            found = benchmarks.load(name, template, config.prompt, config.data_dir, columns=columns)
        longest = max(len(problem.prompt_ids) for problem in found)
        of = f"longest prompt {longest if here else 'not known'} of {config.rollout.max_prompt_tokens} tokens"
        truths = len({problem.ground_truth for problem in found})
        yield f"{name}: {len(found)} rows{checksum}; ground truths: {truths}; {of}"
        if tokenizer and name == config.data:
            yield from first_prompt(found, config, tokenizer, generation_config(config.model))


def _data_names(config: Config) -> list[str]:
    return list(dict.fromkeys(filter(None, [config.data, *benchmarks.names(config.eval.data), config.eval.test])))


def _reward(config: Config) -> Iterator[str]:
    """The self-test that a run starts with. The reward model is not loaded."""
    name = "multi_signal" if config.reward.name == "hybrid" else config.reward.name
    row: Row = {}
    if ":" in name:  # a user's own function is tried on the first problem
        first = read_data(config.data, config.data_dir, FIRST_ROWS)
        found, _ = make_problems(first, None, config.prompt, columns=config.data_columns, graded=False)
        row = known(next(iter(found.values()))) if found else row
    settings = config.reward.model_dump() | {"name": name, "workers": 1}
    with closing(load_reward(row, config.seed, "cpu", **settings)) as reward:
        terms = " + ".join(f"{weight:g} {signal}" for signal, weight in reward.weights.items())
        yield f"{config.reward.name}: {terms}; self-test passed"
        yield from reward.warnings


def _plan(config: Config, device: torch.device, resumed: Path | None) -> Iterator[str]:
    """The plan, and below it what is wrong around it."""
    plan, notes = decide(config, this_card(device))
    yield from describe(plan).removeprefix("plan: ").splitlines()
    yield from notes
    if wrong := list(problems(plan)):
        yield from (PROBLEM + line for line in (*without_gpu(plan), *wrong))
    yield from (f"warning: {line}" for line in warnings(plan))
    if resumed is None:
        new_folder(config)  # UserError where the name is taken


# ---- what is known to go wrong


def misfit(plan: Plan) -> str | None:
    """Why the plan does not fit its card, and what would make it fit."""
    if plan.fits:
        return None
    used = f"{plan.usable / GIB:.1f} of {plan.card.memory / GIB:.1f} GiB may be used"
    phase, need = max(plan.totals().items(), key=lambda item: item[1])
    problem = f"{phase} needs {need / GIB:.1f} GiB"
    if need <= plan.usable:
        problem = f"the KV cache holds {plan.kv_sequences} sequences of {plan.config.rollout.longest_sequence} tokens"
    change = " ".join(f"--{name} {typed(value)}" for name, value in remedy(plan).items())
    advice = f"It fits with: {change}" if change else "Use a smaller --model, or a larger card"
    return f"does not fit {plan.card.name}: {problem}, and {used}. {advice}"


def remedy(plan: Plan) -> dict[str, object]:
    """The mildest of REMEDIES that makes the plan fit, else all that lower its need, else nothing."""
    together: dict[str, object] = {}
    for options in REMEDIES:
        if plan.but(options).fits:
            return options
        if sum(plan.but(together | options).totals().values()) < sum(plan.but(together).totals().values()):
            together |= options
    return together if plan.but(together).fits else {}


def without_gpu(plan: Plan) -> Iterator[str]:
    """The line that explains the others, where a run for a GPU is started on a machine without one."""
    if plan.card.is_cpu and plan.config.device != "cpu":
        yield "this machine has no GPU; --preset cpu and --preset laptop run here"


def problems(plan: Plan) -> Iterator[str]:
    """One line each for what would make the run fail, with its cure. Empty: nothing known stands in the way."""
    config, rollout, context = plan.config, plan.config.rollout, plan.shape.context
    if context is not None and rollout.longest_sequence > context:
        room = context - rollout.max_prompt_tokens
        cure = f"--rollout.max_new_tokens {room}" if room > 0 else f"--rollout.max_prompt_tokens {context // 4}"
        yield (
            f"rollout.max_prompt_tokens + rollout.max_new_tokens is {rollout.longest_sequence}, but {config.model} has "
            f"positions for {context} tokens; use {cure}"
        )
    if plan.card.here:
        yield from machine_problems(plan)
        yield from model_problems(config)
    there = existing_parent(Path(config.out))
    checkpoint, _, completions = disk_parts(config, plan.shape, plan.element)
    need = checkpoint * (config.checkpoint.keep + 1) + completions  # one is being written
    if there is None or not os.access(there, os.W_OK):
        yield f"out is {config.out}, where nothing can be written; name another folder by --out"
    elif need > (free := shutil.disk_usage(there).free):
        yield (
            f"{there} has {free / GIB:.1f} GiB free, and {config.checkpoint.keep + 1} checkpoints with the completions "
            f"take {need / GIB:.1f}; use --out on another disk or --checkpoint.keep 1"
        )
    yield from filter(None, [hub.weights_problem(Path(config.model)), misfit(plan)])


def model_problems(config: Config) -> Iterator[str]:
    """Models, and data sets beside them, that are not on this machine and cannot be fetched."""
    models = [config.model, *([config.reward.hybrid.model] if config.reward.name == "hybrid" else [])]
    if line := hub.missing(models, _data_names(config), config.data_dir):
        yield line
        return
    for model in models:
        if not Path(model).is_dir() and not hub.is_cached(model):
            try:
                model_config(model, config.policy.trust_remote_code, known=False)  # gated, or no such name
            except UserError as error:
                yield str(error)


def machine_problems(plan: Plan) -> Iterator[str]:
    """What this machine cannot do."""
    config = plan.config
    yield from engine_type(plan.engine).problems("cpu" if plan.card.is_cpu else "cuda")
    if not plan.card.bf16 and plan.element == 2:
        yield (
            f"{plan.card.name} does not compute in bfloat16, and float16 is not offered; use a card of 2020 or later "
            "(compute capability 8.0), or --policy.dtype float32"
        )
    need, free = host_bytes(config), psutil.virtual_memory().available
    if need > free:
        yield (
            f"the completions of a step may take {need / GIB:.1f} GiB of the {free / GIB:.1f} GiB of main memory that "
            "are free; lower rollout.prompts_per_step, rollout.group_size or rollout.max_new_tokens"
        )
    for setting, value in (("policy.quant", "nf4"), ("learner.optimizer", "adamw_8bit")):
        if flat(config)[setting] == value and not installed("bitsandbytes"):
            yield f"{setting} {value} needs bitsandbytes: pip install 'bitsandbytes>=0.50'"


def warnings(plan: Plan) -> Iterator[str]:
    """One line each for what a run survives but its owner should know."""
    lr = plan.config.learner.lr
    if plan.config.policy.lora_rank and lr < LORA_LEAST_LR:
        yield f"learner.lr {lr:g} is a rate for all weights; LoRA learns next to nothing below {LORA_LEAST_LR:g}"
    yield from engine_type(plan.engine).notices()


def existing_parent(path: Path) -> Path | None:
    """The folder, or the nearest above it that is there; None where a file is in the way."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return there if there.is_dir() else None
