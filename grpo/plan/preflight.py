"""Checks a run before it starts: the plan, and everything known that would make the run fail.

Every run calls `plan_run`; `train.py --check` also reads all data, tests the reward and proves the model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import cache, partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from data.sources import SOURCES
from grpo import hub
from grpo.chat_template import ChatTemplate, describe_prompt
from grpo.environment import installed, main_memory, versions
from grpo.errors import UserError, first_line, is_out_of_memory
from grpo.machine import GIB
from grpo.model_check import prove
from grpo.plan.hardware import this_hardware
from grpo.plan.memory import disk_parts, host_bytes
from grpo.plan.planner import Plan, decide, describe
from grpo.plan.shapes import model_config
from grpo.policy import generation_config, load_policy, load_tokenizer
from grpo.problems import training_problems
from grpo.rollout import reward_row
from grpo.run.resume import new_folder
from grpo.settings import Config, flat, short, typed
from grpo.terminal import escape_control, notify
from grpo.types import Problem
from rewards import load_reward
from rewards.function import find

LEAST_LORA_STEP = 3e-4
NO_GPU = "this machine has no GPU; --preset cpu and --preset laptop run here"
PROBLEM = "PROBLEM: "
Sets = Mapping[str, Callable[[ChatTemplate | None], list[Problem]]]
"""Name of each held-out set -> function that loads it"""
FIXES: dict[str, object] = {
    "rollout.kv_gib": None, "policy.gradient_checkpointing": True, "learner.microbatch_tokens": 4096,
    "learner.logit_chunk": 256, "rollout.sleep": True, "rollout.max_num_seqs": 32,
}  # fmt: skip
"""Settings that can make a run fit without changing what it learns, mildest first"""
LORA: dict[str, object] = {"policy.lora_rank": 64, "learner.lr": 1e-5}


def plan_run(config: Config, device: torch.device, sets: Iterable[str], resumed: Path | None = None) -> Plan:
    """Prints and returns the plan of a run that is about to start, or to continue in the folder `resumed`.

    Raises UserError with one line for each blocker.

    sets: names of the held-out sets. `plan.config` holds the settings to run with; those that were auto are decided.
    """
    if ":" in config.reward.name:
        find(config.reward.name)  # RewardError before minutes of loading, if there is no such function
    plan = decide(config, this_hardware(device))
    if lines := blockers(plan, sets, resumed):
        raise UserError("\n".join(lines))
    first, *rest = describe(plan)
    print(first if config.quiet else "\n".join([short(plan.config), first, *rest]), flush=True)
    for line in warnings(plan):
        notify(line)
    return plan


def check(config: Config, device: torch.device, sets: Sets, resumed: Path | None = None) -> int:
    """Prints what would run, or continue in the folder `resumed`, and all problems. Returns 1 if there are any."""
    print(short(config))
    problems = cache(lambda: training_problems(config, _tokenizer(config))[0])
    plan = cache(lambda: decide(config, this_hardware(device)))
    sections = {
        "machine": _machine(config),
        "data": _data(config, problems, sets),
        "reward": _reward(config, problems),
        "plan": _plan(plan, sets, resumed),
        "model": _model(plan, device),
    }
    failures = 0
    for name, section in sections.items():
        lines: list[str] = []
        try:
            lines += section
        except (UserError, ValueError, OSError) as error:
            lines.append(f"{PROBLEM}{error}")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            lines.append(f"{PROBLEM}out of memory: {first_line(error)}; use a smaller model or a larger machine")
        print(escape_control("\n    ".join([name, *lines])))
        failures += sum(line.startswith(PROBLEM) for line in lines)
    print(f"problems: {failures}; the run would fail" if failures else "ready to run")
    return int(failures > 0)


def _machine(config: Config) -> Iterator[str]:
    yield ", ".join(f"{name} {value}" for name, value in versions().items())
    disk = shutil.disk_usage(nearest_folder(config)).free
    yield f"free: {main_memory()[1] / GIB:.1f} GiB of memory, {disk / GIB:.1f} GiB of disk under {config.out}"


def _data(config: Config, problems: Callable[[], list[Problem]], sets: Sets) -> Iterator[str]:
    """Every file of the run: rows, checksum, ground truths and, with a tokenizer, the longest prompt."""
    tokenizer = _tokenizer(config)
    template = ChatTemplate.of_run(config, tokenizer) if tokenizer else None
    loaders = {config.data: problems}
    for name, load_set in sets.items():
        loaders.setdefault(name, partial(load_set, template))
    for name, load in loaders.items():
        rows = load()
        published = None if Path(name).is_file() else SOURCES.get(Path(name).stem)
        checksum = f", sha256 {published.sha256[:12]} verified" if published else ""
        truths = len({problem.ground_truth for problem in rows})
        longest = max(len(problem.prompt_ids) for problem in rows) or "not known"
        prompts = f"longest prompt {longest} of {config.rollout.max_prompt_tokens} tokens"
        yield f"{name}: {len(rows)} rows{checksum}; ground truths: {truths}; {prompts}"
    if tokenizer:
        yield from describe_prompt(problems()[0], config, tokenizer, generation_config(config.model))


def _reward(config: Config, problems: Callable[[], list[Problem]]) -> Iterator[str]:
    """The self-test that a run starts with. The reward model is not loaded; a user's function gets a problem."""
    settings = config.reward.model_dump() | {"workers": 1}
    if config.reward.name == "hybrid":
        settings["name"] = "multi_signal"
    row = reward_row(problems()[0]) if ":" in config.reward.name else {}
    with closing(load_reward(row, config.seed, "cpu", **settings)) as reward:
        terms = " + ".join(f"{weight:g} {signal}" for signal, weight in reward.weights.items())
        yield f"{config.reward.name}: {terms}; self-test passed"
        yield from reward.warnings


def _plan(decided: Callable[[], Plan], sets: Sets, resumed: Path | None) -> Iterator[str]:
    plan = decided()
    lines = blockers(plan, sets, resumed)
    if NO_GPU not in lines:
        yield from describe(plan)
    yield from (PROBLEM + line for line in lines)
    yield from (f"warning: {line}" for line in warnings(plan))
    if resumed is None:
        new_folder(plan.config)  # UserError if the name is taken


def _model(decided: Callable[[], Plan], device: torch.device) -> Iterator[str]:
    """The proof that a run starts with, if the model is on this machine and fits."""
    plan = decided()
    if plan.fits and _at_hand(plan.config.model):
        yield prove(load_policy(plan.config, device), plan.config.rollout.longest_sequence)
    else:
        yield "not loaded: it is checked against its own forward pass when the run starts"


def _tokenizer(config: Config) -> PreTrainedTokenizerBase | None:
    """None if the model is not on this machine."""
    return load_tokenizer(config.model, config.policy.trust_remote_code) if _at_hand(config.model) else None


def _at_hand(model: str) -> bool:
    return Path(model).is_dir() or hub.is_cached(model)


# ---- fit


def fit_error(plan: Plan) -> str | None:
    """Why the plan does not fit, and a change that makes it fit; None if it fits."""
    if plan.fits:
        return None
    phase, need = max(plan.totals.items(), key=lambda item: item[1])
    problem = f"{phase} needs {need / GIB:.1f} GiB"
    if need <= plan.usable:
        problem = f"the KV cache holds {plan.kv_sequences} sequences of {plan.config.rollout.longest_sequence} tokens"
    used = f"{plan.usable / GIB:.1f} of {plan.hardware.memory / GIB:.1f} GiB may be used"
    change = " ".join(f"--{name} {typed(value)}" for name, value in suggest_fix(plan).items())
    advice = f"It fits with: {change}" if change else "Use a smaller --model, or a larger GPU"
    return f"does not fit {plan.hardware.name}: {problem}, and {used}. {advice}"


def suggest_fix(plan: Plan) -> dict[str, object]:
    """The mildest change that makes the plan fit: one or all of FIXES, then LoRA; empty if none does."""
    changes = [*({name: value} for name, value in FIXES.items()), FIXES, LORA, FIXES | LORA]
    change = next((change for change in changes if plan.with_settings(change).fits), {})
    return {name: value for name, value in change.items() if flat(plan.config)[name] != value}


# ---- what would make the run fail


def blockers(plan: Plan, sets: Iterable[str] = (), resumed: Path | None = None) -> list[str]:
    """One line, with its fix, for each known reason why the run would fail; a missing GPU comes first."""
    lines = [*(machine_blockers(plan, sets) if plan.hardware.here else []), *_run_blockers(plan)]
    lines += _disk_blockers(plan, resumed)
    no_gpu = plan.hardware.is_cpu and plan.config.device != "cpu" and lines
    return [NO_GPU, *lines] if no_gpu else lines


def _run_blockers(plan: Plan) -> Iterator[str]:
    config, rollout, context = plan.config, plan.config.rollout, plan.model.context
    if context is not None and rollout.longest_sequence > context:
        room = context - rollout.max_prompt_tokens
        fix = f"--rollout.max_new_tokens {room}" if room > 0 else f"--rollout.max_prompt_tokens {context // 4}"
        yield (
            f"rollout.max_prompt_tokens + rollout.max_new_tokens is {rollout.longest_sequence}, but {config.model} "
            f"has positions for {context} tokens; use {fix}"
        )
    if line := fit_error(plan):
        yield line


def _disk_blockers(plan: Plan, resumed: Path | None) -> Iterator[str]:
    """Requirements of the run folder that the disk does not meet.

    A resumed run needs no more room: it has most of its files already, and its saves make room for the others.
    """
    config = plan.config
    folder, copies = nearest_folder(config), config.checkpoint.keep + 1  # one is being written
    checkpoint, _, completions = disk_parts(plan)
    need, free = checkpoint * copies + completions, shutil.disk_usage(folder).free
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        yield f"out is {config.out}, where nothing can be written; name another folder by --out"
    elif resumed is None and need > free:
        yield (
            f"{folder} has {free / GIB:.1f} GiB free, and {copies} checkpoints with the completions take "
            f"{need / GIB:.1f}; use --out on another disk or --checkpoint.keep 1"
        )


def machine_blockers(plan: Plan, sets: Iterable[str]) -> Iterator[str]:
    """Requirements of the run that this machine does not meet."""
    config = plan.config
    yield from plan.engine.problems(plan.hardware.device)
    if not plan.hardware.bf16 and plan.element == 2:
        yield (
            f"{plan.hardware.name} does not compute in bfloat16, and float16 is not offered; use a GPU of 2020 or "
            "later (compute capability 8.0), or --policy.dtype float32"
        )
    need, free = host_bytes(plan), main_memory()[1]
    if need > free:
        yield (
            f"the completions of a step may take {need / GIB:.1f} GiB of the {free / GIB:.1f} GiB of main memory that "
            "are free; lower rollout.prompts_per_step, rollout.group_size or rollout.max_new_tokens"
        )
    for setting, value in {"policy.quant": "nf4", "learner.optimizer": "adamw_8bit"}.items():
        if flat(config)[setting] == value and not installed("bitsandbytes"):
            yield f"{setting} {value} needs bitsandbytes: pip install 'bitsandbytes>=0.50'"
    models = [hub.base_of(config.model), *([config.reward.hybrid.model] if config.reward.name == "hybrid" else [])]
    if line := hub.missing(models, [config.data, *sets], config.data_dir):
        yield line
        return
    for model in models:
        if not _at_hand(model):
            model_config(model, config.policy.trust_remote_code, known=False)  # UserError: gated, or no such name


def warnings(plan: Plan) -> Iterator[str]:
    """Yields a line for each setting that is probably a mistake but does not stop the run."""
    policy = plan.config.policy
    step = policy.lora_alpha * plan.config.learner.lr
    if policy.lora_rank and step < LEAST_LORA_STEP:
        yield (
            f"policy.lora_alpha x learner.lr is {step:.2g}, a rate for training all weights; published LoRA runs lie "
            "between 3e-4 and 3e-3"
        )


def nearest_folder(config: Config) -> Path:
    """The nearest existing parent of the run folders; may be a file."""
    out = Path(config.out).absolute()
    return next(path for path in (out, *out.parents) if path.exists())
