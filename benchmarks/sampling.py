"""The torch sampler beside transformers' `generate` and vLLM's CPU build: the same work, in turns.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py --model FOLDER [--vllm-python ENV/bin/python]
        [--sequences 8 64 256] [--tokens 40 1024] [--prompt 83] [--vocabulary 151936] [--rounds 3]

One prompt and `sequences` completions of exactly `tokens` tokens, at temperature 1 from the whole distribution, in
float32 on a CPU. Every side is a process of its own: the torch sampler, `generate` with its dynamic cache and with its
static cache, vLLM. Prints a line of JSON for each turn and, for each amount of work, medians and the ratios to the
torch sampler. `generate` reads the prompt once for every completion.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import tyro
from execnet import Channel
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.common import DEVICE, Stopwatch, compare, save_model, start_side, take_turns
from grpo.engines.base import SamplingParams
from grpo.engines.torch_engine import TorchEngine
from grpo.policy import load_policy
from grpo.settings import parse
from grpo.types import Request

Sample = Callable[[list[int], int, int], object]
"""(prompt, sequences, tokens) -> completions"""


def torch_sampler(model: str) -> Sample:
    engine = TorchEngine()
    engine.sync(load_policy(parse({"model": model}), DEVICE))
    return lambda prompt, sequences, tokens: engine.generate(
        [Request(tuple(prompt), sequences, 0)], SamplingParams(tokens, 1.0, ignore_eos=True)
    )


def generate(model: str, cache: str | None = None) -> Sample:
    """transformers' loop with the cache implementation `cache`; None is its default, a dynamic cache."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype="float32").to(DEVICE).eval()
    return lambda prompt, sequences, tokens: network.generate(
        torch.tensor([prompt], device=DEVICE),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        num_return_sequences=sequences,
        cache_implementation=cache,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=0,
    )


def vllm(model: str) -> Sample:
    """vLLM within this process: the processor seconds of processes of its own would not be counted."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM
    from vllm import SamplingParams as VllmParams

    room = {"max_model_len": 2048, "max_num_seqs": 256, "gpu_memory_utilization": 0.4}  # 40% of main memory
    llm = LLM(model, dtype="float32", enable_prefix_caching=False, **room)
    return lambda prompt, sequences, tokens: llm.generate(
        [{"prompt_token_ids": prompt}],
        VllmParams(n=sequences, temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )


SIDES = {"torch": torch_sampler, "generate": generate, "static": partial(generate, cache="static"), "vllm": vllm}


def side(channel: Channel, name: str, model: str) -> None:
    """Answers each message with the seconds of one side."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sample = SIDES[name](model)
    channel.send("ready")
    for work in channel:
        watch = Stopwatch()
        sample([5 + i % 80 for i in range(work["prompt"])], work["sequences"], work["tokens"])
        row = watch.read()
        channel.send(row | {"tokens_per_s": work["sequences"] * work["tokens"] / row["seconds"]})


@dataclass
class Options:
    model: str
    """a model's folder"""
    vllm_python: str | None = None
    """the Python of an environment with vLLM's CPU build"""
    sequences: tuple[int, ...] = (8, 64, 256)
    prompt: tuple[int, ...] = (83,)
    """tokens of the prompt"""
    tokens: tuple[int, ...] = (40,)
    """tokens of each completion"""
    vocabulary: int | None = None
    """use random weights of the model's shape with this vocabulary"""
    rounds: int = 3


def measure(options: Options, model: str) -> None:
    pythons = dict.fromkeys(SIDES, sys.executable) | {"vllm": options.vllm_python}
    sides = {name: start_side(python, "sampling.side", name, model) for name, python in pythons.items() if python}
    take_turns(sides, 1, {"sequences": 2, "prompt": 8, "tokens": 4})  # warms up
    for sequences, prompt, tokens in product(options.sequences, options.prompt, options.tokens):
        work = {"sequences": sequences, "prompt": prompt, "tokens": tokens}
        print(compare(take_turns(sides, options.rounds, work)).to_string(), flush=True)


def main(argv: list[str]) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if options.vocabulary:
            model = save_model(AutoConfig.from_pretrained(model, vocab_size=options.vocabulary), Path(folder))
        measure(options, model)


if __name__ == "__main__":
    main(sys.argv[1:])
