"""Writes a trained model as a plain Hugging Face folder: `python -m tools.export merged runs/NAME --out DIR`.

The weights are those of the policy to the bit: a LoRA adapter is added to its base by the policy's own sum, and a 4-bit
base is dequantised. A library that adds the adapter itself rounds to nearest: docs/measurements/2026-11-29-merge.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from grpo.policy import load_plain, load_tokenizer
from grpo.saved import of_run, single


def add_arguments(cli: argparse.ArgumentParser) -> None:
    cli.add_argument("source", metavar="RUN|CHECKPOINT", help="run folder (its newest checkpoint) or adapter")


def write(args: argparse.Namespace, folder: Path) -> str:
    is_run = (Path(args.source) / "config.yaml").is_file()
    path = (of_run(args.source)[-1] if is_run else single(args.source)).path
    model = load_plain(path, None, torch.device("cpu"), args.trust_remote_code)
    model.save_pretrained(folder)
    load_tokenizer(path, args.trust_remote_code).save_pretrained(folder)
    return f"{args.out}: {path} as a plain model in {str(model.dtype).removeprefix('torch.')}"
