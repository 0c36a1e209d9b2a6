"""Models as they lie on a disk or on the hub, opened for sampling: folders, LoRA adapters, the checkpoints of a run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from grpo.errors import UserError
from grpo.policy import Policy, load_model, load_tokenizer
from grpo.settings import Config, read_yaml

ADAPTER = "adapter_config.json"
WEIGHTS = {".safetensors", ".bin", ".json", ".jinja", ".txt", ".model"}


@dataclass(frozen=True, slots=True)
class Target:
    """One model to sample from: a Hugging Face id, a model folder, a LoRA adapter folder, a checkpoint of a run."""

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
    folder = Path(path).resolve()
    settings = folder.parent.parent / "config.yaml"
    if folder.parent.name == "checkpoints" and settings.is_file():
        return Target(f"{settings.parent.name}--{folder.name}", path, read_yaml(settings)["prompt"])
    return Target(folder.name if folder.is_dir() else path.replace("/", "--"), path)


def of_run(folder: str) -> list[Target]:
    """`--run`: the base model and every checkpoint, oldest first."""
    run = Path(folder)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run: it has no config.yaml (runs/NAME, as train.py prints it)")
    checkpoints = sorted(path for path in run.glob("checkpoints/step_*") if path.name[5:].isdecimal())
    if not checkpoints:
        raise UserError(f"{run} has no checkpoint yet: checkpoints/ is empty")
    config = read_yaml(run / "config.yaml")
    base = Target(f"{run.resolve().name}--base", config["model"], config["prompt"], step=0)
    return [base, *(replace(single(str(path)), step=int(path.name[5:])) for path in checkpoints)]


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
    if not Path(path).is_dir():
        return f"{path}@{getattr(AutoConfig.from_pretrained(path), '_commit_hash', None)}"
    total = hashlib.sha256()
    for file in sorted(file for file in Path(path).iterdir() if file.suffix in WEIGHTS):
        with file.open("rb") as content:
            total.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    base = adapter_base(path)
    return total.hexdigest() + (f"+{fingerprint(base)}" if base else "")


def tokenizer_of(target: Target) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer where it has one (it may hold another chat template), else its base's."""
    base = load_tokenizer(target.base)
    if target.base != target.path and (Path(target.path) / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(target.path)
    return base


def open_policy(target: Target, device: torch.device) -> Policy:
    """The model with its tokenizer, ready for an engine: bfloat16 on a GPU. An adapter is merged into its base.

    A run with a 4-bit base is evaluated on the base in full precision, as its adapter would be deployed. Raises
    UserError for weights that are not finite: they would sample noise and score like a bad model.
    """
    disable_progress_bar()  # an evaluation has one of its own
    model, _ = load_model(Config(model=target.base), device)
    if target.base != target.path:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, target.path).merge_and_unload()
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{target.path}: the weights {name} hold NaN or infinity; evaluate an older checkpoint")
    return Policy(model.requires_grad_(False), tokenizer_of(target))
