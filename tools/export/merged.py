"""Writes a trained model as a plain Hugging Face folder: `python -m tools.export merged runs/NAME --out DIR`.

The weights are those of the policy to the bit: a LoRA adapter is added to its base by the policy's own sum, and a 4-bit
base is dequantised. A library that adds the adapter itself rounds to nearest (docs/models.md has the difference).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from grpo.errors import UserError
from grpo.policy import load_plain, load_tokenizer
from grpo.saved import of_run, single


def add_arguments(cli: argparse.ArgumentParser) -> None:
    cli.add_argument("source", metavar="RUN|CHECKPOINT", help="run folder (its newest checkpoint) or adapter")


def export(args: argparse.Namespace) -> str:
    """Writes beside `out` first: a folder with the final name is complete. UserError where it exists."""
    if args.out.exists():
        raise UserError(f"{args.out} exists; choose another --out")
    is_run = (Path(args.source) / "config.yaml").is_file()
    path = (of_run(args.source)[-1] if is_run else single(args.source)).path
    model = load_plain(path, None, torch.device("cpu"))
    unfinished = args.out.with_name(f".{args.out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    model.save_pretrained(unfinished)
    load_tokenizer(path).save_pretrained(unfinished)
    unfinished.rename(args.out)
    return f"{args.out}: {path} as a plain model in {str(model.dtype).removeprefix('torch.')}"
