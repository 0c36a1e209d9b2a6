"""What the benchmarks share: random models, completions of given lengths, a learner and its work, a stopwatch."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from data.tiny_base import make_tokenizer
from grpo.learner import Learner
from grpo.plan.shapes import ModelShape
from grpo.plan.time import causal_pairs, training_flops
from grpo.policy import Policy, compute_dtype
from grpo.settings import Config, changed
from grpo.types import Sample

REPO = Path(__file__).resolve().parent.parent
PROBLEMS = str(REPO / "data/arithmetic/128.parquet")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GIB = 2**30

SIZES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 32, "num_hidden_layers": 2},  # heads of 32 are vLLM's least
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


def make_config(size: str, **changes: int) -> Qwen2Config:
    shape = HEADS | SIZES[size] | changes
    config = Qwen2Config(**shape, tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=None)
    config.architectures = ["Qwen2ForCausalLM"]
    return config


def make_policy(shape: Qwen2Config, config: Config, device: torch.device) -> Policy:
    """The run's policy with random weights, made on the device: no file, no wait for a CPU's random numbers."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(shape, dtype=compute_dtype(config, device))
    return Policy(model, make_tokenizer(), config)


def save_model(shape: Qwen2Config, folder: Path, dtype: torch.dtype, device: torch.device) -> str:
    """A folder with random weights, and the built-in model's tokenizer with its vocabulary filled up."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(shape.vocab_size - len(tokenizer))])
    shape.eos_token_id, shape.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    with device:
        AutoModelForCausalLM.from_config(shape, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def lognormal_lengths(count: int, mean: float, longest: int, sigma: float = 0.8) -> list[int]:
    """Completion lengths as reasoning has them: most short, a few very long. `sigma` is the spread of the logarithm."""
    rng = random.Random(0)
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
    # Made-up completions were not sampled from this model.
    return Learner(policy, changed(config, {"rollout.logprob_diff_limit": 1e9}))


def packed_work(learner: Learner, groups: list[list[Sample]]) -> tuple[int, int]:
    """Tokens that pass through the layers in one forward and backward pass, and the operations that takes."""
    batches = learner.micro_batches([sample for group in groups for sample in group])
    tokens = sum(len(batch.input_ids) for batch in batches)
    pairs = sum(
        causal_pairs(queries, keys - queries)
        for batch in batches
        for queries, keys in zip(batch.segments.queries, batch.segments.keys, strict=True)
    )
    policy = learner.policy
    predicted = sum(len(batch.targets) for batch in batches)
    head = policy.network.get_output_embeddings()
    linear = [m for m in policy.network.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    sizes = tuple((m.in_features, m.out_features) for m in linear)
    shape = ModelShape(policy.network.config, 0, sizes)
    return tokens, training_flops(shape, tokens, pairs, predicted, frozen=policy.lora)


def stopwatch(work: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds of `work`; on a busy machine the second says more."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    synchronize()
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Worker:
    """A process that takes a turn for every line that it is sent, and answers with one line of figures."""

    def __init__(self, command: list[str]):
        """Waits until the process prints "ready"."""
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        self.command = command
        self.process = Popen(command, text=True, env=environment, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        self._read("ready")

    def turn(self, work: str = "go") -> dict[str, float]:
        self.process.stdin.write(work + "\n")
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


def sustained(device: torch.device, seconds: float) -> float:
    """Operations per second of matrix products over so long: a burst says nothing of a card bound by its power."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)
    out = a @ a  # the first product loads the library
    synchronize()
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(4):
            torch.mm(a, a, out=out)
        synchronize()
        count += 4
    return 2 * size**3 * count / elapsed


# ---- memory


def memory() -> dict[str, float]:
    """GiB of the GPU: in tensors now, the most in tensors and the most that torch's allocator held since `free`.

    Without a GPU all three are the most that this process ever held.
    """
    if not torch.cuda.is_available():
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return dict.fromkeys(("now_gib", "peak_gib", "reserved_gib"), most)
    found = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return dict(zip(("now_gib", "peak_gib", "reserved_gib"), (x / GIB for x in found), strict=True))


def free() -> None:
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def held_to(gib: float | None) -> Iterator[None]:
    """No more of the GPU's memory than this, as torch's allocator counts it."""
    free()
    if not gib or not torch.cuda.is_available():
        yield
        return
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def show(figures: dict) -> None:
    for name, value in figures.items():
        print(f"{name:<36} {value:.4g}" if isinstance(value, float) else f"{name:<36} {value}")
