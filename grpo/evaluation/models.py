"""What can be evaluated: a Hugging Face id, a model folder, a LoRA adapter folder, the checkpoints of a run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from grpo.config import PolicyConfig
from grpo.errors import UserError
from grpo.policy import Policy, load_model, load_tokenizer

ADAPTER = "adapter_config.json"
FILES = {".safetensors", ".bin", ".json", ".jinja", ".txt", ".model"}


@dataclass(frozen=True, slots=True)
class Target:
    """One model to evaluate."""

    label: str
    """its folder under evals/"""
    path: str
    """folder or Hugging Face id"""
    prompt: str | None = None
    """the prompt it was trained with; None where that is not known"""
    step: int | None = None
    """of a run: 0 is the base model"""

    @property
    def base(self) -> str:
        """The model whose config and weights come first: of an adapter, what it was trained on."""
        return adapter_base(self.path) or self.path


def single(path: str) -> Target:
    """`--model`. A checkpoint inside a run's folder brings that run's prompt."""
    folder = Path(path)
    settings = folder.resolve().parent.parent / "config.yaml"
    if folder.is_dir() and folder.resolve().parent.name == "checkpoints" and settings.is_file():
        run = settings.parent
        return Target(f"{run.name}--{folder.resolve().name}", path, yaml.safe_load(settings.read_text())["prompt"])
    if folder.is_dir():
        return Target(folder.resolve().name, path)
    if folder.exists() or path.startswith((".", "/")):
        raise UserError(
            f"--model {path}: there is no such folder (a Hugging Face id looks like Qwen/Qwen2.5-Math-1.5B)"
        )
    return Target(path.replace("/", "--"), path)


def of_run(folder: str) -> list[Target]:
    """`--run`: the base model and every checkpoint, oldest first."""
    run = Path(folder)
    settings = run / "config.yaml"
    if not settings.is_file():
        raise UserError(f"{run} is no run: it has no config.yaml (runs/NAME, as train.py prints it)")
    found = sorted((run / "checkpoints").glob("step_*"))
    if not found:
        raise UserError(f"{run} has no checkpoint yet: checkpoints/ is empty")
    config = yaml.safe_load(settings.read_text())
    prompt = config["prompt"]
    label = run.resolve().name
    return [
        Target(f"{label}--base", config["model"], prompt, 0),
        *(Target(f"{label}--{path.name}", str(path), prompt, int(path.name.removeprefix("step_"))) for path in found),
    ]


def adapter_base(path: str) -> str | None:
    """What a LoRA adapter folder was trained on; None for anything else."""
    config = Path(path) / ADAPTER
    if not config.is_file():
        return None
    base = json.loads(config.read_text()).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{config} does not name base_model_name_or_path; add the model the adapter was trained on")
    return base


def fingerprint(path: str) -> str:
    """Which weights these are: the sha256 of a folder's model and tokenizer files, or a hub id with its commit.

    Two trainings into the same folder differ here, so their outputs never mix. An adapter includes its base.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{getattr(AutoConfig.from_pretrained(path), '_commit_hash', None)}"
    total = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.suffix in FILES and file.is_file()):
        with file.open("rb") as content:
            total.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    base = adapter_base(path)
    return total.hexdigest() + (f"+{fingerprint(base)}" if base else "")


def context_length(target: Target) -> int:
    """Positions of the model."""
    return AutoConfig.from_pretrained(target.base).get_text_config().max_position_embeddings


def tokenizer_of(target: Target) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer where it has one (it may hold another chat template), else its base's."""
    if target.base != target.path and (Path(target.path) / "tokenizer_config.json").is_file():
        load_tokenizer(target.base)  # is the base there at all? says so in one line
        return AutoTokenizer.from_pretrained(target.path)
    return load_tokenizer(target.path if target.base == target.path else target.base)


def sampling_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def open_policy(target: Target, device: torch.device) -> Policy:
    """The model with its tokenizer, ready for an engine. An adapter is merged into its base.

    A run with a 4-bit base is evaluated on the base in full precision, as its adapter would be deployed.
    """
    tokenizer = tokenizer_of(target)
    model, _ = load_model(target.base, sampling_dtype(device), device, PolicyConfig())
    if target.base != target.path:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, target.path).merge_and_unload()
    model.requires_grad_(False)
    return Policy(model, tokenizer)
