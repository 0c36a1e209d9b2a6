"""Saved models opened for sampling: model folders, LoRA adapters, checkpoints of a run, Hugging Face ids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from transformers.utils.logging import disable_progress_bar

from grpo.errors import UserError
from grpo.hub import MANIFEST, base_of, located_folder
from grpo.model_check import prove
from grpo.policy import Policy, compute_dtype, load_plain, load_tokenizer
from grpo.settings import parse, read_yaml
from grpo.terminal import notify

SUFFIXES = {".safetensors", ".bin", ".json", ".jinja", ".txt", ".model"}


@dataclass(frozen=True, slots=True)
class Target:
    """One model to sample from: a Hugging Face id, a model folder, a LoRA adapter folder, a checkpoint of a run."""

    label: str
    """its folder under evals/"""
    path: str
    """folder or Hugging Face id"""
    run: Path | None = None
    """the folder of its run"""
    dtype: str = "auto"
    """the run's policy.dtype"""
    quant: str = "none"
    """quantisation of a run's base model"""
    step: int | None = None
    """step of the checkpoint; 0: the run's base model; None: not one of --run"""
    trusted: bool = False
    """the command line allows the code that the model brings"""

    @property
    def name(self) -> str:
        """The name in a table: of a run the step, else the label."""
        if self.step is None:
            return self.label
        return f"step {self.step}" if self.step else "base"

    @property
    def base(self) -> str:
        """The model with its configuration: for an adapter, the model that it was trained on."""
        return base_of(self.path)


def single(path: str, trusted: bool = False) -> Target:
    """The target of `--model`. A checkpoint inside a run's folder comes with that run, for its settings."""
    folder = Path(path).resolve()
    run = folder.parent.parent
    if folder.parent.name == "checkpoints" and (run / "config.yaml").is_file():
        dtype = parse(read_yaml(run / "config.yaml")).policy.dtype
        return Target(f"{run.name}--{folder.name}", path, run, dtype, trusted=trusted)
    return Target(folder.name if folder.is_dir() else path.replace("/", "--"), path, trusted=trusted)


def of_run(folder: str | Path, trusted: bool = False) -> list[Target]:
    """The targets of `--run`: the base model and every checkpoint, oldest first."""
    run = Path(folder)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run: it has no config.yaml (runs/NAME, as train.py prints it)")
    steps = {int(path.name[5:]): path for path in run.glob("checkpoints/step_*") if path.name[5:].isdecimal()}
    if not steps:
        raise UserError(f"{run} has no checkpoint yet: checkpoints/ is empty")
    checkpoints = [replace(single(str(steps[step]), trusted), step=step) for step in sorted(steps)]
    config = parse(read_yaml(run / "config.yaml"))
    label, path = f"{run.resolve().name}--base", located_folder(config.model, run)
    return [replace(checkpoints[0], label=label, path=path, quant=config.policy.quant, step=0), *checkpoints]


def fingerprint(path: str) -> str:
    """Identifies the weights: the sha256 of a folder's model and tokenizer files, or a hub id with its commit.

    Two trainings into the same folder have different fingerprints, so their outputs never mix. An adapter's includes
    its base's. The manifest of a checkpoint is left out: pruning rewrites it and does not touch the weights.
    """
    if not Path(path).is_dir():
        return f"{path}@{Path(hf_hub_download(path, 'config.json')).parent.name}"  # snapshots/COMMIT/config.json
    total = hashlib.sha256()
    files = (file for file in Path(path).iterdir() if file.suffix in SUFFIXES and file.name != MANIFEST)
    for file in sorted(files):
        with file.open("rb") as content:
            total.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    base = base_of(path)
    return total.hexdigest() + (f"+{fingerprint(base)}" if base != path else "")


def open_policy(target: Target, device: torch.device, longest: int) -> Policy:
    """Opens a saved model for sampling as the policy that was trained, and proves it up to `longest` tokens.

    Raises UserError for weights that are not finite: they would sample noise and score like a bad model.
    """
    disable_progress_bar()  # an evaluation has its own
    config = parse({"model": target.path, "policy": {"dtype": target.dtype}})
    tokenizer = load_tokenizer(target.path, target.trusted)
    model = load_plain(target.path, compute_dtype(config, device), device, target.trusted, target.quant)
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{target.path}: the weights {name} hold NaN or infinity; evaluate an older checkpoint")
    policy = Policy(model.requires_grad_(False), tokenizer, config)
    notify(prove(policy, longest))
    return policy
