"""The torch sampler beside transformers' `generate` and vLLM's CPU build: the same work, in turns.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py --model FOLDER [--vllm-python ENV/bin/python]
        [--sequences 8 64 256] [--tokens 40 1024] [--prompt 83] [--vocabulary 151936] [--rounds 3]

One prompt, `sequences` completions of exactly `tokens` tokens at temperature 1 from the whole distribution, float32 on
a CPU, every side in its own process. --vocabulary gives the model's shape random weights and that many words. Seconds
are medians over the rounds. A ratio is another side's processor seconds over the torch sampler's, from its lowest to
its highest round. `generate` reads the prompt once for every completion.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PROMPT = 83


class Ours:
    """The trainer's sampler."""

    def __init__(self, model: str):
        from benchmarks.common import DEVICE
        from grpo.engines.torch_engine import TorchEngine
        from grpo.policy import load_policy
        from grpo.settings import parse

        self.engine = TorchEngine()
        self.engine.sync(load_policy(parse({"model": model}), DEVICE))

    def sample(self, prompt: list[int], sequences: int, tokens: int) -> None:
        from grpo.engines.base import SamplingParams
        from grpo.types import Request

        self.engine.generate([Request(tuple(prompt), sequences, 0)], SamplingParams(tokens, 1.0, ignore_eos=True))


class Generate:
    """transformers' own loop, with the cache that it names `cache`; None is its default, a dynamic one."""

    def __init__(self, model: str, cache: str | None):
        from transformers import AutoModelForCausalLM

        from benchmarks.common import DEVICE

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype="float32").to(DEVICE).eval()
        self.cache = cache

    def sample(self, prompt: list[int], sequences: int, tokens: int) -> None:
        import torch

        lengths = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": sequences}
        ids = torch.tensor([prompt], device=self.model.device)
        self.model.generate(ids, **lengths, **drawn, cache_implementation=self.cache, pad_token_id=0)


class Vllm:
    """vLLM in this process, without its own processes: their processor seconds would not be counted."""

    def __init__(self, model: str):
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
        from vllm import LLM

        room = {"max_model_len": 2048, "max_num_seqs": 256, "gpu_memory_utilization": 0.4}  # a share of the machine's
        self.llm = LLM(model, dtype="float32", enable_prefix_caching=False, **room)

    def sample(self, prompt: list[int], sequences: int, tokens: int) -> None:
        from vllm import SamplingParams

        how = SamplingParams(n=sequences, temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self.llm.generate([{"prompt_token_ids": prompt}], how, use_tqdm=False)


SIDES = {
    "torch": Ours,
    "generate": lambda model: Generate(model, None),
    "static": lambda model: Generate(model, "static"),
    "vllm": Vllm,
}


def worker(side: str, model: str) -> None:
    """One side: for every line "sequences prompt tokens" that comes in, a line with its seconds goes out."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sampler = SIDES[side](model)
    print("ready", flush=True)
    for line in sys.stdin:
        sequences, prompt, tokens = map(int, line.split())
        start, cpu = time.perf_counter(), time.process_time()
        sampler.sample([5 + i % 80 for i in range(prompt)], sequences, tokens)
        seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        print("#" + json.dumps(seconds), flush=True)


def random_model(model: str, vocabulary: int, folder: str) -> str:
    """A model of the same shape with random weights and so many words, in `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(model, vocab_size=vocabulary)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def measure(sides: dict[str, str], args: argparse.Namespace, model: str) -> None:
    """Prints a row for each amount of work: tokens a second of every side and, in brackets, processor seconds."""
    from benchmarks.common import Worker

    file = str(Path(__file__).resolve())
    workers = {side: Worker([python, file, "--worker", side, "--model", model]) for side, python in sides.items()}
    for process in workers.values():
        process.turn(f"2 {PROMPT} 4")  # loads what is loaded late
    for sequences, prompt, tokens in product(args.sequences, args.prompt, args.tokens):
        rounds = [{n: w.turn(f"{sequences} {prompt} {tokens}") for n, w in workers.items()} for _ in range(args.rounds)]
        row = {"sequences": sequences, "prompt": prompt, "tokens": tokens}
        for side in sides:
            wall, cpu = (median(turn[side][key] for turn in rounds) for key in ("seconds", "cpu_seconds"))
            ratios = sorted(turn[side]["cpu_seconds"] / turn["torch"]["cpu_seconds"] for turn in rounds)
            row |= {f"{side}/tokens_per_s": round(sequences * tokens / wall, 1), f"{side}/cpu_s": round(cpu, 2)}
            row |= {f"{side}/ratio": f"{ratios[0]:.2f} to {ratios[-1]:.2f}"}
        print(json.dumps(row), flush=True)
    for process in workers.values():
        process.close()


def main(argv: list[str]) -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", required=True, help="a model's folder")
    cli.add_argument("--vllm-python", help="the Python of an environment that has vLLM's CPU build")
    cli.add_argument("--sides", nargs="+", choices=[name for name in SIDES if name != "vllm"], default=list(SIDES)[:3])
    cli.add_argument("--sequences", nargs="+", type=int, default=[8, 64, 256])
    cli.add_argument("--prompt", nargs="+", type=int, default=[PROMPT], help="tokens of the prompt")
    cli.add_argument("--tokens", nargs="+", type=int, default=[40], help="tokens of each completion")
    cli.add_argument("--vocabulary", type=int, help="random weights, and so many words")
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = cli.parse_args(argv)
    if args.worker:
        return worker(args.worker, args.model)
    sides = dict.fromkeys(["torch", *args.sides], sys.executable)
    if args.vllm_python:
        sides["vllm"] = args.vllm_python
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(args.model, args.vocabulary, folder) if args.vocabulary else args.model
        measure(sides, args, model)


if __name__ == "__main__":
    main(sys.argv[1:])
