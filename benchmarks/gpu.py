"""One command, one GPU, no network, under nine minutes: is the learner right there, how fast, how much memory.

    python benchmarks/gpu.py [--json]            # Qwen2.5-Math-1.5B's architecture with random bf16 weights
    python benchmarks/gpu.py --size tiny         # the same on a CPU with a small model, so that this file cannot rot

1. packed = one by one and chunked = plain, on this device's kernels
2. h100: all weights, gradient checkpointing, micro-batches of 24k tokens, lognormal lengths (mean 700, at most 3072)
3. l4: LoRA of rank 64 in micro-batches of 8k tokens, in no more than 22.5 GiB
4. the same completions through TRL, where it is installed (see benchmarks/versus_trl.py)

Utilisation counts the work once (grpo/plan/duration.py): nothing for what checkpointing computes a second time.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from benchmarks import common, learner, versus_trl
from data.tiny_base import make_tokenizer
from grpo.config import Config, parse
from grpo.logprob import token_logprobs
from grpo.packing import pack
from grpo.policy import Policy
from grpo.types import Sample

CAP_GIB = 22.5
TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-4}
"""mean |difference| of log-probabilities: bfloat16 keeps 8 bits, and kernels add up in another order"""


def settings(preset: str, small: bool) -> Config:
    lora = preset == "l4"
    budget = (256 if small else 8192) if lora else (512 if small else 24576)
    return parse(
        {},
        {
            "policy.lora_rank": 64 if lora else 0,
            "policy.gradient_checkpointing": True,
            "learner.token_budget": budget,
            "learner.logit_chunk": 64 if small else 1024,
            "steps": 10,
        },
    )


def make_policy(size: str, config: Config, device: torch.device) -> Policy:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = AutoModelForCausalLM.from_config(common.make_config(size), dtype=dtype)
    return Policy(model, make_tokenizer(), config.policy, config.learner.logit_chunk)


def groups_of(lengths: list[int], policy: Policy, prompt_tokens: int) -> list[list[Sample]]:
    return learner.make_samples(lengths, len(lengths) // 4, prompt_tokens, policy.network.config.vocab_size)


@torch.no_grad()
def check_packing(policy: Policy, groups: list[list[Sample]]) -> float:
    """Mean |difference| between the log-probabilities of completions packed and of the same ones alone."""
    samples = [sample for group in groups for sample in group][:6]

    def logprobs(budget: int) -> torch.Tensor:
        found = torch.zeros(sum(len(sample.completion_ids) for sample in samples), device=policy.device)
        for batch in pack(samples, [1.0] * len(samples), budget):
            batch = batch.to(policy.device)
            found[batch.slots] = policy.logprobs(batch, 1.0)[0].float()
        return found

    return (logprobs(10**6) - logprobs(1)).abs().mean().item()


def check_chunks(policy: Policy, tokens: int = 96) -> float:
    """Largest difference between chunked and plain log-probabilities and their gradients, relative to the largest."""
    head = policy.network.get_output_embeddings().weight.detach().clone().requires_grad_()
    hidden = torch.randn(tokens, head.shape[1], device=head.device).to(head.dtype).requires_grad_()
    targets = torch.randint(len(head), (tokens,), device=head.device)
    worst = 0.0
    chunked = token_logprobs(hidden, head, targets, 0.6, 40)[0]
    plain = torch.log_softmax((hidden @ head.T).float() / 0.6, -1).gather(-1, targets[:, None])[:, 0]
    pairs = [(chunked, plain)]
    gradients = [torch.autograd.grad(x.sum(), (hidden, head)) for x in (chunked, plain)]
    pairs += zip(*gradients, strict=True)
    for found, expected in pairs:
        worst = max(worst, ((found - expected).abs().max() / expected.abs().max()).item())
    return worst


def time_learner(policy: Policy, config: Config, groups: list[list[Sample]], peak: float, updates: int = 3):
    """Figures of the median update after a first one, and the profiler's table of one more."""
    work = learner.make_learner(policy, config)
    tokens, operations = learner.work(work, groups)
    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    figures = common.medians([common.stopwatch(lambda: work.update(groups)) for _ in range(updates + 1)][1:])
    figures |= {
        "packed_tokens": tokens,
        "tokens_per_second": tokens / figures["seconds"],
        "utilisation": operations / figures["seconds"] / peak,
        "peak_gib": common.peak_gib(),
    }
    cuda = policy.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        work.update(groups)
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return figures, profiler.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=60)


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(argv: list[str]) -> dict:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--size", choices=common.SIZES, default="1.5b")
    cli.add_argument("--json", action="store_true")
    args = cli.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = args.size != "1.5b"
    if not small and device.type == "cpu":
        cli.error("--size 1.5b needs a GPU; --size tiny runs here")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    peak = common.matmul_flops(device, seconds=0.2 if small else 3)
    results: dict = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "matmul_flops": peak}
    lengths = common.lognormal_lengths(16, 12, 48) if small else common.lognormal_lengths(128, 700, 3072)

    room = torch.cuda.get_device_properties(0).total_memory if device.type == "cuda" else math.inf
    for preset in ("h100", "l4") if room > 40 * 2**30 else ("l4",):  # all weights of 1.5B take about 30 GiB
        config = settings(preset, small)
        if preset == "l4" and device.type == "cuda":
            share = CAP_GIB * 2**30 / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, share))
        policy = make_policy(args.size, config, device)
        groups = groups_of(lengths, policy, 8 if small else 150)
        if "packed_minus_alone" not in results:
            results["packed_minus_alone"] = check_packing(policy, groups)
            results["chunked_minus_plain"] = check_chunks(policy)
        figures, table = time_learner(policy, config, groups, peak)
        results |= {f"{preset}/{name}": value for name, value in figures.items()}
        if not args.json:
            print(f"\n{preset}: where one update spends its time\n{table}")
        del policy
        free()

    if importlib.util.find_spec("trl"):
        results |= versus(args.size)
    common.show(results, args.json)
    if results["packed_minus_alone"] > TOLERANCE[dtype] or results["chunked_minus_plain"] > TOLERANCE[dtype]:
        sys.exit("packed or chunked results differ from plain ones by more than rounding: see the two figures above")
    return results


def versus(size: str) -> dict:
    """The learner's time on the same shapes, ours and TRL's, in processes of their own."""
    case = "h100" if size == "1.5b" else "tiny-ragged"
    args = argparse.Namespace(
        case=case,
        trl_python=sys.executable,
        rounds=2,
        token_budget=24576,
        logit_chunk=1024,
        trl_micro_batch=8,
    )
    with tempfile.TemporaryDirectory() as folder:
        return {f"trl/{name}": value for name, value in versus_trl.versus(args, Path(folder)).items()}


if __name__ == "__main__":
    main(sys.argv[1:])
