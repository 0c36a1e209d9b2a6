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
bf16     20  --model: |sampler - trainer| log-probability at T = 1 and 0.6
nf4      20  4 layers in NF4 (needs bitsandbytes): memory, difference to bf16, an update
cpu      10  what the processor does at h100's size: packing and decoding 4096 completions
vllm    120  start-up, tokens/s beside bare vLLM, sync with proof, sleep, wake (needs vllm)

Utilisation counts the work once: nothing for what checkpointing computes a second time.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import common
from benchmarks.common import GIB
from grpo.config import Config, build, changed
from grpo.errors import UserError
from grpo.learner import Learner
from grpo.logprob import token_logprobs
from grpo.packages import installed
from grpo.packing import pack
from grpo.plan import make_plan
from grpo.plan.cards import this_card
from grpo.policy import Policy, load_policy, load_tokenizer
from grpo.problems import read_problems
from grpo.rollout import Sampling, make_engine, rollout
from grpo.types import Sample

CAP_GIB = 22.5
SMALL = {
    "rollout.max_prompt_tokens": 64,
    "rollout.max_new_tokens": 48,
    "learner.token_budget": 256,
    "learner.logit_chunk": 64,
}
BARE = {"learner.kl_coef": 0, "learner.entropy_coef": 0, "learner.minibatches_per_rollout": 1}


@dataclass
class Bench:
    device: torch.device
    size: str
    scratch: Path
    model: str | None = None
    profile: bool = False

    @cached_property
    def peak(self) -> float:
        """Operations per second that utilisation is measured against."""
        return common.matmul_flops(self.device, 0.1 if self.small else 3)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def small(self) -> bool:
        return self.size != "1.5b"

    def config(self, preset: str, **options: object) -> Config:
        """The preset with a model folder that holds the shape alone; the plan, and vLLM, need no more."""
        common.make_config(self.size).save_pretrained(self.scratch / "shape")
        fixed = {"model": str(self.scratch / "shape"), "policy.quant": "none", "rollout.engine": "torch"}
        given = {name.replace("__", "."): value for name, value in options.items()}
        return build(preset, fixed | (SMALL if self.small else {}) | given)

    def groups(self, completions: int) -> list[list[Sample]]:
        lengths = common.lognormal_lengths(completions, 12 if self.small else 700, 48 if self.small else 3072)
        vocabulary = common.make_config(self.size).vocab_size
        return common.make_samples(lengths, completions // 4, 8 if self.small else 150, vocabulary)

    @contextmanager
    def held_to(self, gib: float) -> Iterator[None]:
        """No more of the GPU's memory than this, as torch's allocator counts it."""
        if self.cuda:
            free()
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))
        try:
            yield
        finally:
            if self.cuda:
                torch.cuda.set_per_process_memory_fraction(1.0)


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


def h100(bench: Bench) -> dict[str, float]:
    return learner(bench, "h100", 16 if bench.small else 128)


def l4(bench: Bench) -> dict[str, float]:
    with bench.held_to(CAP_GIB):
        return learner(bench, "l4", 16 if bench.small else 64)


def learner(bench: Bench, preset: str, completions: int) -> dict[str, float]:
    """The learner on made-up completions: bare (the surrogate alone, one optimiser step), then as the preset has it."""
    groups = bench.groups(completions)
    config = bench.config(preset, rollout__problems=4, rollout__group=completions // 4)
    free()
    policy = common.make_policy(common.make_config(bench.size), config, bench.device)
    work = common.make_learner(policy, config)
    work.config = changed(config, BARE).learner
    tokens, operations = common.packed_work(work, groups)
    work.update(groups[:1])  # warms up and makes the moments
    bare = seconds(lambda: work.update(groups))
    figures = {"packed_tokens": tokens, "bare_s": bare, "bare_tokens_per_s": tokens / bare}
    figures["utilisation"] = operations / bare / bench.peak
    work.config = config.learner
    figures |= {"preset_s": seconds(lambda: work.update(groups))} | memory()
    batches = work._micro_batches([sample for group in groups for sample in group])
    with torch.no_grad():
        figures["scoring_pass_s"] = seconds(lambda: [policy.logprobs(batch, 0.6) for batch in batches])
        figures["reference_pass_s"] = seconds(lambda: [policy.ref_logprobs(batch, 0.6) for batch in batches])
    mean = sum(len(sample.completion_ids) for group in groups for sample in group) / completions
    plan = make_plan(config, this_card(bench.device))
    figures |= {"planned_preset_s": plan.seconds(mean)["learn"], "planned_gib": plan.needs("learn") / GIB}
    if bench.profile:
        print_profile(work, groups[:1], bench.cuda)
    return figures


def print_profile(work: Learner, groups: list[list[Sample]], cuda: bool) -> None:
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        work.update(groups)
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=60))


def exact(bench: Bench) -> dict[str, float]:
    """Errors of the device's log-probabilities and gradients, relative to float64 on a CPU where each sequence is
    alone. Packed and one by one must be equally far from it."""
    torch.manual_seed(0)
    config = bench.config("h100", learner__kl_coef=0)
    policy = common.make_policy(small_shape(), config, bench.device)
    samples = [sample for group in common.make_samples([40, 7, 90, 3, 25, 60], 3, 30, 4096) for sample in group]
    truth = float64_copy(policy, config)
    expected = logprobs_and_gradient(truth, samples, 1)
    figures = {}
    for name, budget in (("packed", 10**6), ("alone", 1)):
        found = logprobs_and_gradient(policy, samples, budget)
        for what, a, b in zip(("logprobs", "gradient"), found, expected, strict=True):
            figures[f"{name}_{what}_error"] = relative(a, b)
    return figures | chunked(bench.device, policy.dtype)


def small_shape():
    return common.make_config("1m", hidden_size=256, num_hidden_layers=3, vocab_size=4096)


def float64_copy(policy: Policy, config: Config) -> Policy:
    """The same weights on the CPU. First the policy's are scaled up: as initialised they hardly see their context."""
    with torch.no_grad():
        for parameter in policy.network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model = type(policy.network)(small_shape()).double()
    model.load_state_dict(policy.network.state_dict())
    return Policy(model, policy.tokenizer, config.policy, config.learner.logit_chunk)


def logprobs_and_gradient(policy: Policy, samples: list[Sample], budget: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[tokens] log-probabilities and the embedding's gradient of their advantage-weighted sum."""
    found = torch.zeros(sum(len(s.completion_ids) for s in samples), dtype=torch.float64, device=policy.device)
    total = 0.0
    for batch in pack(samples, [1.0] * len(samples), budget):
        batch = batch.to(policy.device)
        logprobs = policy.logprobs(batch, 0.6)[0]
        found[batch.slots] = logprobs.detach().double()
        total = total + (logprobs * batch.advantages).sum()
    (gradient,) = torch.autograd.grad(total, policy.network.get_input_embeddings().weight)
    return found, gradient


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|, Euclidean."""
    difference = found.detach().cpu().double() - expected.detach().cpu().double()
    return (difference.norm() / expected.detach().cpu().double().norm()).item()


def chunked(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The chunked head against the plain one in float64, from the same inputs."""
    hidden, head = (torch.randn(n, 128, device=device).to(dtype).requires_grad_() for n in (96, 5000))
    targets = torch.randint(5000, (96,), device=device)
    found = token_logprobs(hidden, head, targets, 0.6, 40)[0]
    exact_hidden, exact_head = (x.detach().cpu().double().requires_grad_() for x in (hidden, head))
    logits = exact_hidden @ exact_head.T / 0.6
    expected = torch.log_softmax(logits, -1).gather(-1, targets.cpu()[:, None])[:, 0]
    figures = {"chunked_logprobs_error": relative(found, expected)}
    gradients = torch.autograd.grad(found.sum(), (hidden, head))
    truths = torch.autograd.grad(expected.sum(), (exact_hidden, exact_head))
    names = ("chunked_gradient_hidden_error", "chunked_gradient_head_error")
    return figures | {name: relative(a, b) for name, a, b in zip(names, gradients, truths, strict=True)}


def oom(bench: Bench) -> dict[str, float]:
    """An update under a cap that its micro-batches do not fit, beside the same update without the cap."""
    options = {"learner__token_budget": 10**6, "learner__lr": 1e-12, "rollout__problems": 4} | {
        name.replace(".", "__"): value for name, value in BARE.items()
    }
    config = bench.config("l4", **options)
    policy = common.make_policy(common.make_config(bench.size), config, bench.device)
    work, groups = common.make_learner(policy, config), bench.groups(16 if bench.small else 32)
    work.update(groups[:1])
    free()
    stays = torch.cuda.memory_allocated() / GIB if bench.cuda else 0
    plain = work.update(groups)
    need = memory()["allocated_gib"]
    packed = common.packed_work(work, groups)[0]
    work.token_budget = budget = packed
    cap, rescued = stays + 0.6 * (need - stays), {}
    with bench.held_to(cap), fails_above(policy, None if bench.cuda else packed // 2):
        took = seconds(lambda: rescued.update(work.update(groups)))
    return {
        "uncapped_gib": need,
        "capped_gib": cap,
        "token_budget_before": budget,
        "token_budget_after": work.token_budget,
        "seconds": took,
        "grad_norm_ratio": rescued["policy/grad_norm"] / plain["policy/grad_norm"],
    }


@contextmanager
def fails_above(policy: Policy, tokens: int | None) -> Iterator[None]:
    """A CPU's memory cannot be capped: there a micro-batch of more tokens fails as if it did not fit."""
    logprobs = policy.logprobs

    def limited(batch, temperature):
        if tokens is not None and len(batch.input_ids) > tokens:
            raise RuntimeError("out of memory, for the benchmark's sake")
        return logprobs(batch, temperature)

    policy.logprobs = limited
    try:
        yield
    finally:
        del policy.logprobs


def step(bench: Bench) -> dict[str, float]:
    """The second step of both presets, all completions of full length, on vLLM where it is installed."""
    figures = {}
    for preset in ("l4", "h100"):
        problems, group, tokens = (2, 2, 8) if bench.small else (8, 8, 256)
        config = bench.config(
            preset,
            rollout__problems=problems,
            rollout__group=group,
            rollout__max_new_tokens=tokens,
            rollout__max_prompt_tokens=64,
            rollout__engine="vllm" if bench.cuda and installed("vllm") else "torch",
        )
        free()
        plan = make_plan(config, this_card(bench.device))
        policy = common.make_policy(common.make_config(bench.size), config, bench.device)
        loop = common.Loop(plan.engine_config, policy, ignore_eos=True)
        loop.step(1)
        measured = loop.step(2)
        loop.close()
        for phase, planned in plan.seconds(tokens).items():
            figures |= {f"{preset}_{phase}_s": measured[f"time/{phase}"], f"{preset}_{phase}_planned_s": planned}
        figures |= {f"{preset}_{phase}_s": measured[f"time/{phase}"] for phase in ("reward", "other", "step")}
        figures |= {f"{preset}_{name}": value for name, value in memory().items()}
        figures[f"{preset}_planned_gib"] = max(plan.totals().values()) / GIB
        del policy, loop
    return figures | {"engine": config.rollout.engine}


def bf16(bench: Bench) -> dict[str, float]:
    """A real model's sampler and trainer in bfloat16, by temperature: |difference| of log-probabilities."""
    model = bench.model or str(common.REPO / "data/tiny-base")
    figures = {}
    for temperature in (1.0, 0.6):
        options = {"model": model, "policy.dtype": "bfloat16", "rollout.temperature": temperature}
        options |= {"rollout.problems": 8, "rollout.group": 8, "rollout.max_new_tokens": 16 if bench.small else 128}
        options |= {"rollout.mismatch_limit": 10, "rollout.engine": "auto" if bench.cuda else "torch"}
        config = changed(bench.config("l4"), options)
        policy = load_policy(config, bench.device)
        engine = make_engine(config, bench.device)
        engine.sync(policy)
        problems = read_problems(str(common.PROBLEMS), policy.tokenizer, "plain", 1024)[0][:8]
        groups = rollout(engine, problems, 8, Sampling(config.rollout.max_new_tokens, temperature), 0, 1)
        samples = [Sample(g.problem.prompt_ids, c.ids, c.sampler_logprobs, 0.0) for g in groups for c in g.completions]
        gaps = []
        with torch.no_grad():
            for batch in pack(samples, [1.0] * len(samples), 8192):
                batch = batch.to(policy.device)
                gaps.append((policy.logprobs(batch, temperature)[0] - batch.sampler_logprobs).abs().double())
        engine.close()
        gap = torch.cat(gaps)
        values = {"mean": gap.mean(), "rms": gap.square().mean().sqrt(), "max": gap.max()}
        figures |= {f"mismatch_{name}_T{temperature:g}": value.item() for name, value in values.items()}
        del policy, engine
        free()
    return figures


def nf4(bench: Bench) -> dict[str, float]:
    """A few layers of the true width, packed in four bits, beside the same in full."""
    shape, folder = common.make_config(bench.size, num_hidden_layers=2 if bench.small else 4), bench.scratch / "nf4"
    config = bench.config("l4")
    policy = common.make_policy(shape, config, bench.device)
    batch = pack(bench.groups(8)[0], [1.0] * 2, 10**6)[0].to(bench.device)
    with torch.no_grad():
        plain = policy.logprobs(batch, 1.0)[0]
    policy.model.unload().save_pretrained(folder)  # its adapter is still zero
    policy.tokenizer.save_pretrained(folder)
    del policy
    free()
    packed = changed(config, {"model": str(folder), "policy.quant": "nf4"})
    policy = load_policy(packed, bench.device)
    weights = torch.cuda.memory_allocated() / GIB if bench.cuda else 0.0
    stays = make_plan(packed, this_card(bench.device)).phases()["learn"]
    with torch.no_grad():
        difference = (policy.logprobs(batch, 1.0)[0] - plain).abs().mean().item()
    work = common.make_learner(policy, packed)
    work.update(bench.groups(16)[:1])
    return {
        "held_gib": weights,
        "planned_gib": (stays["weights"] + stays["adapter"]) / GIB,
        "logprob_difference": difference,
        "update_s": seconds(lambda: work.update(bench.groups(16))),
    }


def cpu(bench: Bench) -> dict[str, float]:
    """Seconds of the processor with the GPU idle, at h100's 128 x 32 completions."""
    lengths = common.lognormal_lengths(64 if bench.small else 4096, 12 if bench.small else 700, 3072)
    tokenizer = load_tokenizer(bench.model or str(common.REPO / "data/tiny-base"))
    groups = common.make_samples(lengths, 32, 150, len(tokenizer))
    samples = [sample for group in groups for sample in group]
    ids = [sample.completion_ids for sample in samples]
    return {
        "completions": len(samples),
        "tokens": sum(lengths),
        "pack_s": seconds(lambda: pack(samples, [1.0] * len(samples), 24576)),
        "decode_s": seconds(lambda: tokenizer.batch_decode(ids, skip_special_tokens=True)),
    }


def vllm(bench: Bench) -> dict[str, float]:
    """The engine beside bare vLLM: the same engine object asked without seeds and log-probabilities, in turns."""
    problems, group, tokens = (2, 2, 8) if bench.small else (128, 8, 512)
    sizes = {"rollout__problems": problems, "rollout__group": group, "rollout__max_new_tokens": tokens}
    config = bench.config("l4", rollout__engine="vllm", rollout__max_prompt_tokens=256, **sizes)
    policy = common.make_policy(common.make_config(bench.size), config, bench.device)
    prompts = read_problems(str(common.PROBLEMS), policy.tokenizer, "plain", 256)[0][:problems]
    sampling, made = Sampling(tokens, config.rollout.temperature, ignore_eos=True), []
    engine_config = make_plan(config, this_card(bench.device)).engine_config
    figures = {"start_s": seconds(lambda: made.append(make_engine(engine_config, bench.device)))}
    engine = made[0]
    figures["first_sync_s"] = seconds(lambda: engine.sync(policy))
    turns = []
    for turn in range(3):
        ours = seconds(lambda turn=turn: rollout(engine, prompts, group, sampling, 0, turn))
        turns.append({"tokens_per_s": ours, "bare_tokens_per_s": seconds(lambda: bare(engine, prompts, group, tokens))})
    count = problems * group * tokens
    figures |= {name: count / value for name, value in common.medians(turns[1:]).items()}
    figures["sync_s"] = seconds(lambda: engine.sync(policy))
    before = torch.cuda.mem_get_info()[0] if bench.cuda else 0
    figures["sleep_s"] = seconds(engine.sleep)
    figures["asleep_gave_gib"] = (torch.cuda.mem_get_info()[0] - before) / GIB if bench.cuda else 0.0
    figures["wake_and_sync_s"] = seconds(lambda: engine.sync(policy))
    engine.close()
    return figures


def bare(engine, problems: list, group: int, tokens: int) -> None:
    from vllm import SamplingParams

    params = SamplingParams(n=group, max_tokens=tokens, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": list(problem.prompt_ids)} for problem in problems]
    engine._llm.generate(prompts, params, use_tqdm=False)


PARTS = {part.__name__: part for part in (matmul, h100, l4, exact, oom, step, bf16, nf4, cpu, vllm)}
NEEDS = {"nf4": "bitsandbytes", "vllm": "vllm"}


# ---- one after the other


def main(argv: list[str]) -> dict:
    """Returns the file's content. Exit code 1 where a part failed; the others are run all the same."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, default=Path("gpu.json"), help="figures, by part [gpu.json]")
    cli.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    cli.add_argument("--size", choices=common.SIZES, default="1.5b")
    cli.add_argument("--model", help="folder of a real model, for bf16 and cpu")
    cli.add_argument("--profile", action="store_true", help="print where a learner's update spends its time (slow)")
    args = cli.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.size == "1.5b" and device.type == "cpu":
        cli.error("--size 1.5b needs a GPU; --size tiny runs here")
    done = json.loads(args.out.read_text()) if args.out.exists() else {}
    done["machine"] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(device, args.size, Path(scratch), args.model, args.profile)
        for name in args.part:
            if why := reason_to_skip(name, bench, done):
                print(f"-- {name}: {why}", flush=True)
                continue
            start = time.perf_counter()
            try:
                figures = PARTS[name](bench)
            except (RuntimeError, ValueError, OSError, AttributeError, TypeError, KeyError, UserError):
                failed.append(name)
                print(f"-- {name} failed:\n{traceback.format_exc()}", flush=True)
            else:
                done[name] = figures | {"part_s": time.perf_counter() - start}
                write(args.out, done)
                print(f"-- {name}", flush=True)
                common.show(done[name])
            free()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the figures of the others are in {args.out}")
    return done


def reason_to_skip(name: str, bench: Bench, done: dict) -> str | None:
    if name in done:
        return "is in the file already"
    if name in NEEDS and not installed(NEEDS[name]):
        return f"skipped, {NEEDS[name]} is not installed"
    if name == "bf16" and bench.model is None and not bench.small:
        return "skipped, needs --model"
    return None


def write(path: Path, figures: dict) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(figures, indent=1))
    part.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])
