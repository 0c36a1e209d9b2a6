"""What the speed benchmarks share: random models to time, completion lengths, a stopwatch, peak memory.

python benchmarks/common.py --size 1m --out models/1m      # a model folder for --model
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

REPO = Path(__file__).resolve().parent.parent
PROBLEMS = REPO / "data" / "arithmetic" / "128.parquet"

SIZES = {
    "tiny": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
    "1m": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5},
    "vocabulary": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 151_936},
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
    },
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}


def make_config(size: str) -> Qwen2Config:
    return Qwen2Config(**HEADS | SIZES[size], tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=None)


def make_model(size: str, folder: Path) -> Path:
    """A Hugging Face folder with random float32 weights, the built-in model's tokenizer, and a vocabulary filled up."""
    sys.path.insert(0, str(REPO))
    from data.tiny_base import make_tokenizer

    torch.manual_seed(0)
    config, tokenizer = make_config(size), make_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(config.vocab_size - len(tokenizer))])
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lognormal_lengths(count: int, mean: float, longest: int, seed: int = 0, sigma: float = 0.8) -> list[int]:
    """Completion lengths as reasoning has them: most short, a few very long. `sigma` is the spread of the logarithm."""
    rng = random.Random(seed)
    mu = math.log(mean) - sigma**2 / 2
    return [min(longest, max(1, round(rng.lognormvariate(mu, sigma)))) for _ in range(count)]


def read_lengths(source: str, count: int, mean: float, longest: int) -> list[int]:
    """`lognormal`, or a file with one length a line (a JSON list works too)."""
    if source == "lognormal":
        return lognormal_lengths(count, mean, longest)
    return [int(number) for number in Path(source).read_text().replace(",", " ").strip("[] \n").split()]


def stopwatch(work: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds of `work`; on a busy machine the second says more."""
    cuda = torch.cuda.is_available()
    start, cpu = time.perf_counter(), time.process_time()
    work()
    if cuda:
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}


def peak_gib() -> float:
    """The most memory held so far: the GPU's if there is one, else this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def matmul_flops(device: torch.device, seconds: float = 3.0) -> float:
    """Operations per second of matrix products, sustained: a burst says nothing of a card bound by its power."""
    cuda = device.type == "cuda"
    size = 8192 if cuda else 512
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    out, count, start = torch.empty_like(a), 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(4):
            torch.mm(a, a, out=out)
        if cuda:
            torch.cuda.synchronize()
        count += 4
    return 2 * size**3 * count / elapsed


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(row[name] for row in rows) for name in rows[0]}


def show(figures: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<24} {value:.4g}" if isinstance(value, float) else f"{name:<24} {value}")


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--size", choices=SIZES, default="1m")
    cli.add_argument("--out", type=Path, required=True)
    arguments = cli.parse_args()
    print(make_model(arguments.size, arguments.out))
