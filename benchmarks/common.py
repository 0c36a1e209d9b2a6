"""Parts of several benchmarks: random models, completions of given lengths, seconds, and turns between processes."""

from __future__ import annotations

import json
import math
import random
import resource
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config

from data.tiny_base import make_tokenizer
from grpo.types import Sample

if TYPE_CHECKING:
    from execnet import Channel

ROOT = Path(__file__).resolve().parents[1]
PROBLEMS = str(ROOT / "data/arithmetic/128.parquet")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES: dict[str, dict[str, int]] = yaml.safe_load(Path(__file__).with_name("sizes.yaml").read_text())


def make_config(size: str) -> Qwen2Config:
    return Qwen2Config(**SIZES[size], tie_word_embeddings=True, max_position_embeddings=4096)


def save_model(shape: PreTrainedConfig, folder: Path, dtype: torch.dtype = torch.float32) -> str:
    """Writes random weights and the built-in model's tokenizer, padded to the vocabulary. Returns the folder."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(shape.vocab_size - len(tokenizer))])
    shape.update({"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id})
    AutoModelForCausalLM.from_config(shape, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def lognormal_lengths(count: int, mean: float, longest: int) -> list[int]:
    """Completion lengths as in reasoning: most short, a few very long."""
    rng = random.Random(0)
    sigma = 0.8
    mu = math.log(mean) - sigma**2 / 2
    return [min(longest, max(1, round(rng.lognormvariate(mu, sigma)))) for _ in range(count)]


def make_samples(lengths: list[int], group: int, prompt_tokens: int, vocabulary: int) -> list[list[Sample]]:
    """Groups of random completions of these lengths, with advantages of +1 and -1."""
    rng = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(3, vocabulary), k=count))

    groups = []
    for start in range(0, len(lengths), group):
        prompt = ids(prompt_tokens)
        rows = lengths[start : start + group]
        groups.append([Sample(prompt, ids(n), (0.0,) * n, rng.choice([-1.0, 1.0])) for n in rows])
    return groups


class Stopwatch:
    """Wall and processor seconds since it was made. Processor seconds are steadier on a busy machine."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """The seconds, and the most GiB in tensors on the GPU; on a CPU the most that this process ever held."""
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
            peak_gib = torch.cuda.max_memory_allocated() / 2**30
        wall, processor = self.start
        seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}
        return seconds | {"peak_gib": peak_gib}


# ---- turns: processes that work one after the other, so that other programs slow down all of them


def start_side(python: str, function: str, *arguments: str) -> Channel:
    """Starts a process of that Python in which benchmarks.`function` answers every message with a row of figures.

    Returns when the function is ready, which is its first message. An error of the function is raised here.
    """
    import execnet  # with pytest-xdist: not on a machine that only runs gpu.py

    gateway = execnet.makegateway(f"popen//python={python}//chdir={ROOT}//env:HF_HUB_OFFLINE=1")
    module = function.rpartition(".")[0]
    call = ", ".join(["channel", *map(repr, arguments)])
    channel = gateway.remote_exec(f"import benchmarks.{module}\nbenchmarks.{function}({call})")
    channel.receive()
    return channel


def take_turns(sides: dict[str, Channel], rounds: int, work: dict[str, int]) -> list[dict[str, Any]]:
    """Gives the work to one side after the other, `rounds` times. Prints and returns a row of each turn."""
    rows = []
    for number, (side, channel) in product(range(rounds), sides.items()):
        channel.send(work)
        rows.append({"round": number, "side": side} | work | channel.receive())
        print(json.dumps(rows[-1]), flush=True)
    return rows


def compare(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Each side's medians, and median and range of its ratios to the first side, which are taken round by round."""
    figures = pd.DataFrame(rows).set_index(["round", "side"])
    ratios = figures.groupby("round").transform(lambda column: column / column.iloc[0]).groupby("side", sort=False)
    medians = figures.groupby("side", sort=False).median()
    tables = {"median": medians, "ratio": ratios.median(), "lowest": ratios.min(), "highest": ratios.max()}
    return pd.concat(tables)
