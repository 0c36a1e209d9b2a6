"""What the presets do on this GPU, by parts: are the numbers right, how fast, how much memory. No network is used.

    python benchmarks/gpu.py --out gpu.json                                      # all parts, under 10 minutes
    python benchmarks/gpu.py --out gpu.json --part matmul h100 l4 exact oom      # what matters most, about 3 minutes
    python benchmarks/gpu.py --out gpu.json --part bf16 --model DIR              # a real model's folder
    python benchmarks/gpu.py --out tiny.json --size tiny                         # the same code on a CPU

The figures of a part are written to the file as soon as it ends, and a part that is in the file is not run again: after
a time-out the same command goes on. The weights are random, of Qwen2.5-Math-1.5B's shape. Parts, with their seconds on
an H100 as estimated:

matmul    5  bf16 matrix products sustained for 3 s: what utilisation is measured against
h100     40  its learner on 128 completions (lognormal, mean 700, at most 3072; 4 prompts of 150 tokens): tokens/s,
             utilisation, memory; with the preset's own terms; one scoring pass of policy and of reference
l4       60  the same for 64 completions, held to 22.5 GiB
exact    10  a small model: packed, one by one and the chunked head against float64 on a CPU
oom      20  the memory is capped until an update does not fit; it must start over and give the same gradient
step     40  one step of l4 and of h100 at 8 x 8 x 256 tokens: every phase, plan beside measured
bf16     20  --model: |sampler - trainer| log-probability at T = 1 and 0.6, with benchmarks/mismatch.py
nf4      20  4 layers in NF4 (needs bitsandbytes): memory, difference to bf16, an update
cpu      10  what the processor does at h100's size: packing and decoding 4096 completions
vllm    120  start-up, tokens/s beside bare vLLM, sync with proof, sleep, wake (needs vllm)

Utilisation counts the work once: nothing for what checkpointing computes a second time.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import common, mismatch
from benchmarks.common import GIB
from grpo.config import Config, build, changed
from grpo.errors import UserError
from grpo.logprob import token_logprobs
from grpo.packages import installed
from grpo.packing import pack
from grpo.plan import make_plan
from grpo.plan.duration import this_card
from grpo.policy import Policy, load_policy, load_tokenizer
from grpo.rollout import Sampling, make_engine, rollout
from grpo.run import files
from grpo.types import Sample

SMALL = {
    "rollout.max_prompt_tokens": 64,
    "rollout.max_new_tokens": 48,
    "learner.token_budget": 256,
    "learner.logit_chunk": 64,
}
BARE = {"learner.kl_coef": 0, "learner.entropy_coef": 0, "learner.minibatches_per_rollout": 1}


@dataclass
class Bench:
    """Where the parts run and at what size."""

    device: torch.device
    size: str
    scratch: Path
    model: str = str(common.REPO / "data/tiny-base")
    profile: bool = False

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def or_small(self, full: Any, small: Any) -> Any:
        """The value at the presets' size, or at a smaller one."""
        return full if self.size == "1.5b" else small

    def config(self, preset: str, options: dict[str, object] | None = None) -> Config:
        """The preset with a model folder that holds the shape alone; the plan, and vLLM, need no more."""
        common.make_config(self.size).save_pretrained(self.scratch / "shape")
        fixed = {"model": str(self.scratch / "shape"), "policy.quant": "none", "rollout.engine": "torch"}
        return build(preset, fixed | self.or_small({}, SMALL) | (options or {}))

    def policy(self, config: Config, **changes: int) -> Policy:
        """Random weights of the size, with another number of layers and so on where asked for."""
        return common.make_policy(common.make_config(self.size, **changes), config, self.device)

    def groups(self, completions: int) -> list[list[Sample]]:
        """Four of them."""
        lengths = common.lognormal_lengths(completions, self.or_small(700, 12), self.or_small(3072, 48))
        vocabulary = common.make_config(self.size).vocab_size
        return common.make_samples(lengths, completions // 4, self.or_small(150, 8), vocabulary)

    @cached_property
    def peak(self) -> float:
        """Operations per second of matrix products, sustained: a burst says nothing of a card bound by its power."""
        size, dtype = (8192, torch.bfloat16) if self.cuda else (512, torch.float32)
        a = torch.randn(size, size, device=self.device, dtype=dtype)
        out = a @ a  # the first product loads the library
        synchronize()
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < self.or_small(3, 0.1):
            for _ in range(4):
                torch.mm(a, a, out=out)
            synchronize()
            count += 4
        return 2 * size**3 * count / elapsed

    @contextmanager
    def held_to(self, gib: float | None) -> Iterator[None]:
        """No more of the GPU's memory than this, as torch's allocator counts it."""
        free()
        if self.cuda and gib:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))
        try:
            yield
        finally:
            if self.cuda:
                torch.cuda.set_per_process_memory_fraction(1.0)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def seconds(work: Callable[[], object]) -> float:
    return common.stopwatch(work)["seconds"]


def memory() -> dict[str, float]:
    """GiB at the peak since `free`: tensors, and what torch's allocator held for them."""
    if not torch.cuda.is_available():
        return {"allocated_gib": common.peak_gib()}
    return {"allocated_gib": common.peak_gib(), "reserved_gib": torch.cuda.max_memory_reserved() / GIB}


# ---- the parts


def matmul(bench: Bench) -> dict[str, float]:
    return {"tflops": bench.peak / 1e12}


def learner(bench: Bench, preset: str, completions: int, cap_gib: float | None = None) -> dict[str, float]:
    """The learner on made-up completions: bare (the surrogate alone, one optimiser step), then as the preset has it."""
    completions = bench.or_small(completions, 16)
    groups = bench.groups(completions)
    config = bench.config(preset, {"rollout.problems": 4, "rollout.group": completions // 4})
    with bench.held_to(cap_gib):
        policy = bench.policy(config)
        work = common.make_learner(policy, config)
        work.config = changed(config, BARE).learner
        tokens, operations = common.packed_work(work, groups)
        work.update(groups[:1])  # warms up and makes the moments
        bare_s = seconds(lambda: work.update(groups))
        work.config = config.learner
        preset_s, peak = seconds(lambda: work.update(groups)), memory()
        batches = work._micro_batches([sample for group in groups for sample in group])
        with torch.no_grad():
            scoring_s = seconds(lambda: [policy.logprobs(batch, 0.6) for batch in batches])
            reference_s = seconds(lambda: [policy.ref_logprobs(batch, 0.6) for batch in batches])
        if bench.profile:
            with profile(activities=[ProfilerActivity.CUDA if bench.cuda else ProfilerActivity.CPU]) as profiler:
                work.update(groups[:1])
            by = "self_cuda_time_total" if bench.cuda else "self_cpu_time_total"
            print(profiler.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=60))
    plan = make_plan(config, this_card(bench.device))
    mean = sum(len(sample.completion_ids) for group in groups for sample in group) / completions
    return {
        "packed_tokens": tokens,
        "bare_s": bare_s,
        "bare_tokens_per_s": tokens / bare_s,
        "utilisation": operations / bare_s / bench.peak,
        "preset_s": preset_s,
        "planned_preset_s": plan.seconds(mean)["learn"],
        **peak,
        "planned_gib": plan.needs("learn") / GIB,
        "scoring_pass_s": scoring_s,
        "reference_pass_s": reference_s,
    }


def exact(bench: Bench) -> dict[str, float]:
    """Errors of the device's log-probabilities and gradients, relative to float64 on a CPU where each sequence is
    alone. Packed and one by one must be equally far from it."""
    config = bench.config("h100", {"learner.kl_coef": 0})
    shape = common.make_config("1m", hidden_size=256, num_hidden_layers=3, vocab_size=4096)
    policy = common.make_policy(shape, config, bench.device)
    with torch.no_grad():  # as initialised, the weights hardly see their context
        for parameter in policy.network.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1)
    truth = Policy(copy.deepcopy(policy.network).cpu().double(), policy.tokenizer)
    samples = [sample for group in common.make_samples([40, 7, 90, 3, 25, 60], 3, 30, 4096) for sample in group]
    expected = logprobs_and_gradient(truth, samples, 1)
    figures = {}
    for name, budget in (("packed", 10**6), ("alone", 1)):
        figures |= errors(name, logprobs_and_gradient(policy, samples, budget), expected)
    return figures | chunked(bench.device, policy.dtype)


def logprobs_and_gradient(policy: Policy, samples: list[Sample], budget: int) -> dict[str, torch.Tensor]:
    """[tokens] log-probabilities and the embedding's gradient of their advantage-weighted sum."""
    found = torch.zeros(sum(len(s.completion_ids) for s in samples), dtype=torch.float64, device=policy.device)
    total = 0.0
    for batch in pack(samples, [1.0] * len(samples), budget):
        batch = batch.to(policy.device)
        logprobs = policy.logprobs(batch, 0.6)[0]
        found[batch.slots] = logprobs.detach().double()
        total = total + (logprobs * batch.advantages).sum()
    (gradient,) = torch.autograd.grad(total, policy.network.get_input_embeddings().weight)
    return {"logprobs": found, "gradient": gradient}


def chunked(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The chunked head against the plain one in float64, from the same inputs."""
    inputs = [torch.randn(n, 128).to(dtype) for n in (96, 5000)]
    targets = torch.randint(5000, (96,))

    def found(logprobs: Callable, place: torch.device | str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        hidden, head = (x.to(place, dtype).requires_grad_() for x in inputs)
        values = logprobs(hidden, head, targets.to(place))
        gradients = torch.autograd.grad(values.sum(), (hidden, head))
        return {"logprobs": values, "gradient_hidden": gradients[0], "gradient_head": gradients[1]}

    def plain(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(hidden @ head.T / 0.6, -1).gather(-1, targets[:, None])[:, 0]

    ours = found(lambda *given: token_logprobs(*given, 0.6, 40)[0], device, dtype)
    return errors("chunked", ours, found(plain, "cpu", torch.float64))


def errors(name: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """|found - expected| / |expected|, Euclidean, by what it is of."""
    pairs = {what: (x.detach().cpu().double(), expected[what].detach()) for what, x in found.items()}
    return {f"{name}_{what}_error": ((a - b).norm() / b.norm()).item() for what, (a, b) in pairs.items()}


def oom(bench: Bench) -> dict[str, float]:
    """An update whose micro-batches do not fit a cap, beside the same update without the cap. A CPU has none."""
    config = bench.config("l4", {"learner.token_budget": 10**6, "learner.lr": 1e-12, "rollout.problems": 4} | BARE)
    policy, groups = bench.policy(config), bench.groups(bench.or_small(32, 16))
    work = common.make_learner(policy, config)
    packed = common.packed_work(work, groups)[0]
    work.update(groups[:1])

    def peak(budget: int) -> tuple[dict[str, float], float]:
        free()
        work.token_budget = budget
        return work.update(groups), memory()["allocated_gib"]

    stays = torch.cuda.memory_allocated() / GIB if bench.cuda else 0.0
    (_, one), (plain, need) = peak(1), peak(packed)  # one sequence at a time, and all at once
    cap = stays + 1.5 * (one - stays)
    with bench.held_to(cap):
        started = time.perf_counter()
        rescued, _ = peak(packed)
    return {
        "one_sequence_gib": one,
        "uncapped_gib": need,
        "capped_gib": cap,
        "token_budget_before": packed,
        "token_budget_after": work.token_budget,
        "seconds": time.perf_counter() - started,
        "grad_norm_ratio": rescued["policy/grad_norm"] / plain["policy/grad_norm"],
    }


def step(bench: Bench) -> dict[str, float]:
    """The second step of both presets, all completions of full length, on vLLM where it is installed."""
    problems, group, tokens = bench.or_small((8, 8, 256), (2, 2, 8))
    options = {"rollout.problems": problems, "rollout.group": group, "rollout.max_new_tokens": tokens}
    options |= {"rollout.max_prompt_tokens": 64}
    options |= {"rollout.engine": "vllm" if bench.cuda and installed("vllm") else "torch"}
    figures = {"engine": options["rollout.engine"]}
    for preset in ("l4", "h100"):
        free()
        plan = make_plan(bench.config(preset, options), this_card(bench.device))
        loop = common.Loop(plan.engine_config, bench.policy(plan.config))
        loop.step(1)
        found = {f"{name.removeprefix('time/')}_s": value for name, value in loop.step(2).items()}
        found |= {f"{phase}_planned_s": planned for phase, planned in plan.seconds(tokens).items()}
        found |= memory() | {"planned_gib": max(plan.totals().values()) / GIB}
        figures |= {f"{preset}_{name}": found[name] for name in sorted(found)}
        loop.close()
        del loop
    return figures


def bf16(bench: Bench) -> dict[str, float]:
    """A real model's sampler and trainer in bfloat16."""
    options = {"model": bench.model, "policy.dtype": "bfloat16", "rollout.mismatch_limit": 10}
    options |= {"rollout.engine": "auto" if bench.cuda else "torch", "rollout.problems": 16}
    options |= {"rollout.group": bench.or_small(4, 2), "rollout.max_new_tokens": bench.or_small(128, 8)}
    config = bench.config("l4", options)
    return {"model": Path(bench.model).name} | mismatch.measure(config, load_policy(config, bench.device))


def nf4(bench: Bench) -> dict[str, float]:
    """A few layers of the true width, packed in four bits, beside the same in full."""
    config, folder = bench.config("l4"), bench.scratch / "nf4"
    policy = bench.policy(config, num_hidden_layers=bench.or_small(4, 2))
    batch = pack(bench.groups(8)[0], [1.0] * 2, 10**6)[0].to(bench.device)
    with torch.no_grad():
        plain = policy.logprobs(batch, 1.0)[0]
    policy.model.unload().save_pretrained(folder)  # its adapter is still zero
    policy.tokenizer.save_pretrained(folder)
    del policy
    free()
    packed = changed(config, {"model": str(folder), "policy.quant": "nf4"})
    policy = load_policy(packed, bench.device)
    held = torch.cuda.memory_allocated() / GIB if bench.cuda else 0.0
    planned = make_plan(packed, this_card(bench.device)).phases()["learn"]
    with torch.no_grad():
        difference = (policy.logprobs(batch, 1.0)[0] - plain).abs().mean().item()
    work = common.make_learner(policy, packed)
    work.update(bench.groups(16)[:1])
    return {
        "held_gib": held,
        "planned_gib": (planned["weights"] + planned["adapter"]) / GIB,
        "logprob_difference": difference,
        "update_s": seconds(lambda: work.update(bench.groups(16))),
    }


def cpu(bench: Bench) -> dict[str, float]:
    """Seconds of the processor with the GPU idle, at h100's 128 x 32 completions."""
    lengths = common.lognormal_lengths(bench.or_small(4096, 64), bench.or_small(700, 12), 3072)
    tokenizer = load_tokenizer(bench.model)
    samples = [s for group in common.make_samples(lengths, 32, 150, len(tokenizer)) for s in group]
    ids = [sample.completion_ids for sample in samples]
    return {
        "completions": len(samples),
        "tokens": sum(lengths),
        "pack_s": seconds(lambda: pack(samples, [1.0] * len(samples), 24576)),
        "decode_s": seconds(lambda: tokenizer.batch_decode(ids, skip_special_tokens=True)),
    }


def vllm(bench: Bench) -> dict[str, float]:
    """The engine beside bare vLLM: the same engine object asked without seeds and log-probabilities, in turns."""
    from vllm import SamplingParams

    problems, group, tokens = bench.or_small((128, 8, 512), (2, 2, 8))
    sizes = {"rollout.problems": problems, "rollout.group": group, "rollout.max_new_tokens": tokens}
    config = bench.config("l4", sizes | {"rollout.engine": "vllm", "rollout.max_prompt_tokens": 256})
    policy = bench.policy(config)
    prompts = common.problems(policy.tokenizer, 256)[:problems]
    ids = [{"prompt_token_ids": list(problem.prompt_ids)} for problem in prompts]
    params = SamplingParams(n=group, max_tokens=tokens, ignore_eos=True, detokenize=False)
    sampling = Sampling(tokens, config.rollout.temperature, ignore_eos=True)
    started = time.perf_counter()
    engine = make_engine(make_plan(config, this_card(bench.device)).engine_config, bench.device)
    figures = {"start_s": time.perf_counter() - started, "first_sync_s": seconds(lambda: engine.sync(policy))}
    for turn in range(3):  # the first warms up, the last is kept
        for name, work in (
            ("tokens_per_s", lambda turn=turn: rollout(engine, prompts, group, sampling, 0, turn)),
            ("bare_tokens_per_s", lambda: engine._llm.generate(ids, params, use_tqdm=False)),
        ):
            figures[name] = problems * group * tokens / seconds(work)
    figures["sync_s"] = seconds(lambda: engine.sync(policy))
    before = torch.cuda.mem_get_info()[0] if bench.cuda else 0
    figures["sleep_s"] = seconds(engine.sleep)
    figures["asleep_gave_gib"] = (torch.cuda.mem_get_info()[0] - before) / GIB if bench.cuda else 0.0
    figures["wake_and_sync_s"] = seconds(lambda: engine.sync(policy))
    engine.close()
    return figures


PARTS = {
    "matmul": matmul,
    "h100": partial(learner, preset="h100", completions=128),
    "l4": partial(learner, preset="l4", completions=64, cap_gib=22.5),
    "exact": exact,
    "oom": oom,
    "step": step,
    "bf16": bf16,
    "nf4": nf4,
    "cpu": cpu,
    "vllm": vllm,
}
NEEDS = {"nf4": "bitsandbytes", "vllm": "vllm"}


# ---- one after the other


def main(argv: list[str]) -> dict:
    """Returns the file's content. Exit code 1 where a part failed; the others are run all the same."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, default=Path("gpu.json"), help="figures, by part [gpu.json]")
    cli.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    cli.add_argument("--size", choices=common.SIZES, default="1.5b")
    cli.add_argument("--model", default=Bench.model, help="folder of a real model, for bf16 and cpu")
    cli.add_argument("--profile", action="store_true", help="print where a learner's update spends its time (slow)")
    args = cli.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.size == "1.5b" and device.type == "cpu":
        cli.error("--size 1.5b needs a GPU; --size tiny runs here")
    done = json.loads(args.out.read_text()) if args.out.exists() else {}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    done["machine"] = {"device": name, "torch": torch.__version__, "time": time.strftime("%Y-%m-%d %H:%M")}
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(device, args.size, Path(scratch), args.model, args.profile)
        for name in args.part:
            if name in done:
                print(f"-- {name}: is in the file already")
            elif name in NEEDS and not installed(NEEDS[name]):
                print(f"-- {name}: skipped, {NEEDS[name]} is not installed")
            elif figures := figures_of(name, bench):
                done[name] = figures
                files.write(args.out, json.dumps(done, indent=1))
            else:
                failed.append(name)
            free()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the figures of the others are in {args.out}")
    return done


def figures_of(name: str, bench: Bench) -> dict[str, float]:
    """Nothing where the part failed, which is printed."""
    started = time.perf_counter()
    print(f"-- {name}", flush=True)
    try:
        figures = PARTS[name](bench)
    except (RuntimeError, ValueError, OSError, AttributeError, TypeError, KeyError, UserError):
        traceback.print_exc()
        return {}
    figures["part_s"] = time.perf_counter() - started
    common.show(figures)
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
