"""Parts of several benchmarks: random models, completions of given lengths, timing, and turns between processes."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from subprocess import DEVNULL, PIPE, Popen

import torch
import yaml
from transformers import AutoModelForCausalLM, Qwen2Config

from data.tiny_base import make_tokenizer
from grpo.learner import Learner
from grpo.policy import Policy, compute_dtype
from grpo.settings import Config, changed
from grpo.types import Sample

PROBLEMS = str(Path(__file__).resolve().parents[1] / "data/arithmetic/128.parquet")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GIB = 2**30

SIZES: dict[str, dict[str, int]] = yaml.safe_load(Path(__file__).with_name("sizes.yaml").read_text())


def make_config(size: str) -> Qwen2Config:
    config = Qwen2Config(**SIZES[size], tie_word_embeddings=True, max_position_embeddings=4096)
    config.architectures = ["Qwen2ForCausalLM"]
    return config


def make_policy(shape: Qwen2Config, config: Config) -> Policy:
    """A policy with random weights, created on the device: loads no file and draws no random numbers on the CPU."""
    torch.manual_seed(0)
    with DEVICE:
        model = AutoModelForCausalLM.from_config(shape, dtype=compute_dtype(config, DEVICE))
    return Policy(model, make_tokenizer(), config)


def save_model(shape: Qwen2Config, folder: Path, dtype: torch.dtype) -> str:
    """Writes random weights and the built-in model's tokenizer, padded to the vocabulary. Returns the folder."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(shape.vocab_size - len(tokenizer))])
    shape.bos_token_id, shape.eos_token_id, shape.pad_token_id = None, tokenizer.eos_token_id, tokenizer.pad_token_id
    with DEVICE:
        AutoModelForCausalLM.from_config(shape, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def lognormal_lengths(count: int, mean: float, longest: int) -> list[int]:
    """Completion lengths as in reasoning: most short, a few very long."""
    rng, sigma = random.Random(0), 0.8
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


def make_learner(policy: Policy, config: Config) -> Learner:
    """A learner without a limit on the sampler/trainer difference: random completions come from no sampler."""
    return Learner(policy, changed(config, {"rollout.logprob_diff_limit": 1e9}))


# ---- time and memory


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> dict[str, float]:
    """Wall and processor seconds since `now`. Processor seconds are steadier on a busy machine."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}


def stopwatch(work: Callable[[], object]) -> dict[str, float]:
    start = now()
    work()
    return since(start)


def peak_gib() -> float:
    """The most GiB in tensors on the GPU since `free`; on a CPU the most that this process ever held."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def free() -> None:
    """Empties the allocator's cache and starts `peak_gib` anew."""
    if DEVICE.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# ---- turns: processes that work one after the other, so that other programs slow down all of them


class Worker:
    """A process that works once for each line of JSON it receives, and answers with one line of figures."""

    def __init__(self, command: list[str]):
        """Waits until the process prints "ready"."""
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        self.command = command
        self.process = Popen(command, text=True, env=environment, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        self._read("ready")

    def turn(self, **work: int) -> dict[str, float]:
        self.process.stdin.write(json.dumps(work) + "\n")
        self.process.stdin.flush()
        return json.loads(self._read("#")[1:])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _read(self, start: str) -> str:
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise RuntimeError(f"a worker ended with code {self.process.wait()}; run it by hand: {' '.join(self.command)}")


def requests(lines: Iterator[str]) -> Iterator[dict[str, int]]:
    """The worker's end: reports that it is ready, then yields the work of each turn."""
    print("ready", flush=True)
    yield from map(json.loads, lines)


def answer(figures: dict[str, float]) -> None:
    print("#" + json.dumps(figures), flush=True)


def compare(rounds: list[dict[str, dict[str, float]]]) -> dict[str, float | str]:
    """Medians of every side's figures, and of their ratios to the first side's, which are taken round by round."""
    base = next(iter(rounds[0]))
    figures: dict[str, float | str] = {}
    for side in rounds[0]:
        for name in rounds[0][side]:
            figures[f"{side}/{name}"] = median(turns[side][name] for turns in rounds)
            ratios = sorted(turns[side][name] / turns[base][name] for turns in rounds if turns[base][name])
            if side != base and ratios:
                figures[f"{side}/{name}_ratio"] = median(ratios)
                figures[f"{side}/{name}_ratio_range"] = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    return figures
