"""The vLLM engine against bare vLLM on the same requests, and what a sync and a night's sleep cost.

    python benchmarks/rollout.py --model DIR --problems 16 --group 8 --prompt 256 --tokens 512 [--lora] [--json]

Bare vLLM is the same engine object asked without seeds and log-probabilities. The two take turns, so that what else the
machine does hits both; on a CPU the seconds are those of the processor, not of the clock. --model names a model folder
or a size to make one of (benchmarks/common.py): 1m, 1.5b.

--lora adds an adapter (rank 64 on all linear layers) and compares the two ways of sampling with it: merged weights, as
the engine does, and the adapter itself, applied by vLLM at every token.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import common
from grpo.config import Config, parse
from grpo.policy import Policy, load_policy
from grpo.rollout import Engine, Sampling, make_engine
from grpo.types import Request


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", default="1m")
    cli.add_argument("--problems", type=int, default=16)
    cli.add_argument("--group", type=int, default=8)
    cli.add_argument("--prompt", type=int, default=256, help="tokens")
    cli.add_argument("--tokens", type=int, default=128, help="completion tokens; every completion is this long")
    cli.add_argument("--repeat", type=int, default=3)
    cli.add_argument("--kv-gib", type=float, help="[half of what is free; on a CPU at most 1]")
    cli.add_argument("--lora", action="store_true")
    cli.add_argument("--json", action="store_true")
    arguments = cli.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.model in common.SIZES:
            arguments.model = str(common.make_model(arguments.model, Path(scratch) / "model"))
        common.show(measure(arguments, Path(scratch)), arguments.json)


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = settings(arguments)
    policy = load_policy(config, device)
    requests = random_requests(arguments, policy)
    engine = make_engine(config, device)
    engine.sync(policy)
    ways = {"engine": lambda: engine.generate(requests, sampling(arguments))}
    ways["bare vLLM"] = lambda: bare(engine, requests, arguments.tokens)
    figures = rates(ways, arguments)
    figures["engine / bare vLLM"] = figures["engine, tokens/s"] / figures["bare vLLM, tokens/s"]
    cycles = [sleep_and_sync(engine, policy) for _ in range(arguments.repeat)]
    figures |= common.medians(cycles)
    if arguments.lora:
        engine.close()
        figures |= adapter(config, policy, requests, arguments, scratch)
    return figures | {"peak memory, GiB": common.peak_gib()}


def settings(arguments: argparse.Namespace) -> Config:
    rollout = {name: getattr(arguments, name) for name in ("problems", "group", "kv_gib")}
    rollout |= {"engine": "vllm", "max_prompt_tokens": arguments.prompt, "max_new_tokens": arguments.tokens}
    policy = {"lora_rank": 64, "lora_alpha": 128} if arguments.lora else {}
    return parse({"model": arguments.model, "rollout": rollout, "policy": policy})


def random_requests(arguments: argparse.Namespace, policy: Policy) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.problems, arguments.prompt)
    prompts = torch.randint(policy.network.config.vocab_size, shape, generator=generator).tolist()
    return [Request(tuple(prompt), arguments.group, 1000 * i) for i, prompt in enumerate(prompts)]


def sampling(arguments: argparse.Namespace) -> Sampling:
    return Sampling(arguments.tokens, ignore_eos=True)


def bare(engine: Engine, requests: list[Request], tokens: int, **options: object) -> None:
    from vllm import SamplingParams

    params = SamplingParams(n=requests[0].n, max_tokens=tokens, ignore_eos=True, detokenize=False)
    engine._llm.generate(
        [{"prompt_token_ids": list(r.prompt_ids)} for r in requests], params, use_tqdm=False, **options
    )


def rates(ways: dict, arguments: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of each way: medians of turns, after one that warms up."""
    tokens = arguments.problems * arguments.group * arguments.tokens
    turns = []
    for _ in range(arguments.repeat + 1):
        seconds = {name: seconds_of(way) for name, way in ways.items()}
        turns.append({f"{name}, tokens/s": tokens / second for name, second in seconds.items()})
    return common.medians(turns[1:])


def seconds_of(work: Callable[[], object]) -> float:
    return common.stopwatch(work)["seconds" if torch.cuda.is_available() else "cpu_seconds"]


def sleep_and_sync(engine: Engine, policy: Policy) -> dict[str, float]:
    """Seconds of each, on a CPU with nothing to give back. A sync includes its proof; the last one also wakes."""
    works = {"sync": lambda: engine.sync(policy), "sleep": engine.sleep, "wake and sync": lambda: engine.sync(policy)}
    return {f"{name}, s": seconds_of(work) for name, work in works.items()}


def adapter(config: Config, policy: Policy, requests: list[Request], arguments: argparse.Namespace, scratch: Path):
    """Merged weights and the adapter itself take turns in an engine that can do both."""
    import vllm
    from vllm.lora.request import LoRARequest

    plain = vllm.LLM
    vllm.LLM = functools.partial(plain, enable_lora=True, max_lora_rank=64)
    engine = make_engine(config, policy.device)
    vllm.LLM = plain  # its weights stay random: every completion has the same length anyway
    policy.save(scratch / "adapter")
    request = LoRARequest("policy", 1, str(scratch / "adapter"))
    ways = {
        "merged": lambda: bare(engine, requests, arguments.tokens),
        "adapter": lambda: bare(engine, requests, arguments.tokens, lora_request=request),
    }
    figures = rates(ways, arguments)
    return figures | {"adapter / merged": figures["adapter, tokens/s"] / figures["merged, tokens/s"]}


if __name__ == "__main__":
    main()
