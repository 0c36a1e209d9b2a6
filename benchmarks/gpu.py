"""Measures the presets on this GPU in parts: speed, memory, exactness. Needs no network.

    python benchmarks/gpu.py --out gpu.json --minutes 15     # the most telling parts first, each in its own process
    python benchmarks/gpu.py --out gpu.json --part exact oom
    python benchmarks/gpu.py --out tiny.json --size tiny     # the same code on a CPU

Writes the figures of a part to the file as soon as it ends and never repeats a part that is in the file, so the same
command continues after a time-out. With --minutes a part that would not end in time is skipped or stopped. The weights
are random, of Qwen2.5-Math-1.5B's shape, but for `train`. The parts, the most telling first:

vllm       start-up, tokens/s beside bare vLLM, sync with its check, sleep, wake (needs vllm)
step-l4    train.py's second step at 8 x 8 x 256 tokens: every phase, memory, mismatch; the plan beside it
step-h100  the same with all weights
train      the laptop preset on a real model (needs --model, SmolLM2's folder): held-out accuracy before and after
exact      packed, one-by-one and chunked log-probabilities and gradients against float64 on a CPU
matmul     bf16 matrix products sustained for 3 s: the base of every utilisation
h100       its learner on 128 completions (lognormal, mean 700, at most 3072; 4 prompts of 150 tokens)
l4         the same for 64 completions, held to 22.5 GiB
oom        the memory is capped until an update does not fit; it must start over and give the same gradient
step-nf4   step-l4 with its base in NF4 (needs bitsandbytes)
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import train
from benchmarks import common
from benchmarks.common import DEVICE, GIB, PROBLEMS, held_to, stopwatch
from grpo.engines.base import SamplingParams, make_engine
from grpo.environment import installed, versions
from grpo.errors import UserError
from grpo.logprob import token_logprobs
from grpo.packing import pack
from grpo.plan.hardware import this_hardware
from grpo.plan.planner import Plan, decide
from grpo.policy import Policy
from grpo.rollout import rollout
from grpo.run.checkpoint import Checkpoints
from grpo.run.files import read_rows, write
from grpo.settings import Config, build, changed
from grpo.types import Problem, Sample

BARE = {"learner.kl_coef": 0, "learner.entropy_coef": 0, "learner.minibatches_per_rollout": 1}
SMALL = {"rollout.max_prompt_tokens": 64, "rollout.max_new_tokens": 48, "learner.logit_chunk": 64}
TEMPERATURE = 0.6
ROW_PREFIXES = ("time/", "memory/", "logprob_diff/", "speed/", "lora/", "completion/length_mean", "groups/")


@dataclass(frozen=True)
class Bench:
    """The size of the parts, and a folder for what they write."""

    size: str
    scratch: Path
    model: str | None = None

    def or_small(self, full: Any, small: Any) -> Any:
        """The value at the presets' size, or at a smaller one."""
        return full if self.size == "1.5b" else small

    def plan(self, preset: str, options: dict[str, object] | None = None) -> Plan:
        """The preset's plan for a model folder that holds the shape alone; vLLM needs no more."""
        common.make_config(self.size).save_pretrained(self.scratch / "shape")
        fixed = {"model": str(self.scratch / "shape"), "policy.quant": "none", "rollout.engine": "torch"}
        small = self.or_small({}, SMALL | {"learner.microbatch_tokens": 256})
        return decide(build(preset, fixed | small | (options or {})), this_hardware(DEVICE))[0]

    def policy(self, config: Config) -> Policy:
        return common.make_policy(common.make_config(self.size), config, DEVICE)

    def groups(self, completions: int, prompts: int = 4) -> list[list[Sample]]:
        """The same number of completions for each prompt."""
        lengths = common.lognormal_lengths(completions, self.or_small(700, 12), self.or_small(3072, 48))
        return common.make_samples(lengths, completions // prompts, self.or_small(150, 8), self.or_small(151_936, 96))


def matmul(bench: Bench) -> dict[str, float]:
    return {"tflops": common.sustained(DEVICE, bench.or_small(3, 0.1)) / 1e12}


def learner(bench: Bench, preset: str, completions: int, cap_gib: float | None = None) -> dict[str, float]:
    """The learner on made-up completions: bare (the surrogate alone, one optimiser step), then as the preset has it."""
    sizes = {"rollout.prompts_per_step": 4, "rollout.group_size": completions // 4}
    plan, groups = bench.plan(preset, sizes), bench.groups(completions)
    with held_to(cap_gib):
        policy = bench.policy(plan.config)
        work = common.make_learner(policy, changed(plan.config, BARE))
        tokens, operations = common.packed_work(work, groups)
        work.update(groups[:1])  # warms up and makes the moments
        bare_s = stopwatch(lambda: work.update(groups))["seconds"]
        work = common.make_learner(policy, plan.config)
        preset_s = stopwatch(lambda: work.update(groups))["seconds"]
        memory = common.memory()
    mean = sum(len(sample.completion_ids) for group in groups for sample in group) / completions
    return memory | {
        "planned_gib": plan.needs("learn") / GIB,
        "packed_tokens": tokens,
        "bare_tokens_per_s": tokens / bare_s,
        "utilisation": operations / bare_s / common.sustained(DEVICE, bench.or_small(3, 0.1)),
        "preset_s": preset_s,
        "planned_preset_s": plan.seconds(mean)["learn"],
    }


def exact(bench: Bench) -> dict[str, float]:
    """Errors relative to float64 with each sequence alone. Packed and one by one must be equally far from it."""
    policy = common.make_policy(
        common.make_config("1m", hidden_size=256, num_hidden_layers=3, vocab_size=4096),
        bench.plan("h100", {"learner.kl_coef": 0}).config,
        DEVICE,
    )
    with torch.no_grad():  # as initialised, the weights hardly see their context
        for parameter in policy.network.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1)
    truth = Policy(copy.deepcopy(policy.network).cpu().double(), policy.tokenizer)
    samples = [sample for group in common.make_samples([40, 7, 90, 3, 25, 60], 3, 30, 4096) for sample in group]
    expected = logprobs_and_gradient(truth, samples, 1)
    results = {name: logprobs_and_gradient(policy, samples, size) for name, size in (("packed", 10**6), ("alone", 1))}
    hidden, head, targets = torch.randn(96, 128), torch.randn(5000, 128), torch.randint(5000, (96,))
    plain = torch.log_softmax(hidden.double() @ head.double().T / TEMPERATURE, -1).gather(-1, targets[:, None])[:, 0]
    chunked = token_logprobs(*(x.to(DEVICE) for x in (hidden, head, targets)), TEMPERATURE, 40)[0]
    errors = {
        f"{name}_{kind}_error": relative(x, expected[kind]) for name, xs in results.items() for kind, x in xs.items()
    }
    return errors | {"chunked_logprobs_error": relative(chunked, plain)}


def logprobs_and_gradient(policy: Policy, samples: list[Sample], budget: int) -> dict[str, torch.Tensor]:
    """[tokens] log-probabilities and the embedding's gradient of their advantage-weighted sum."""
    values = torch.zeros(sum(len(s.completion_ids) for s in samples), dtype=torch.float64, device=policy.device)
    total = torch.zeros((), device=policy.device)
    for batch in pack(samples, [1.0] * len(samples), budget):
        batch = batch.to(policy.device)
        logprobs = policy.logprobs(batch, TEMPERATURE)[0]
        values[batch.flat_index] = logprobs.detach().double()
        total = total + (logprobs * batch.advantages).sum()
    (gradient,) = torch.autograd.grad(total, policy.network.get_input_embeddings().weight)
    return {"logprobs": values, "gradient": gradient}


def relative(x: torch.Tensor, expected: torch.Tensor) -> float:
    """|x - expected| / |expected|, Euclidean."""
    expected = expected.detach().cpu().double()
    return ((x.detach().cpu().double() - expected).norm() / expected.norm()).item()


def oom(bench: Bench) -> dict[str, float]:
    """The gradient of an update with all sequences at once, and again under a cap that holds little more than one.

    The rate is next to nothing, so that both start from the same weights. A CPU has no cap.
    """
    options = {"learner.microbatch_tokens": 10**6, "learner.lr": 1e-12, "rollout.prompts_per_step": 4} | BARE
    config, groups = bench.plan("l4", options).config, bench.groups(32)
    work = common.make_learner(bench.policy(config), config)
    everything = common.packed_work(work, groups)[0]
    work.update(groups[:1])  # makes the moments
    stays = common.memory()["now_gib"]

    def update(budget: int) -> tuple[float, float]:
        common.free()
        work.microbatch_tokens = budget
        return work.update(groups)["policy/grad_norm"], common.memory()["peak_gib"]

    (_, one), (plain, _) = update(1), update(everything)
    cap = stays + 1.5 * (one - stays)
    with held_to(cap):
        rescued, _ = update(everything)
    return {
        "cap_gib": cap,
        "microbatch_tokens_under_the_cap": work.microbatch_tokens,
        "grad_norm_ratio": rescued / plain,
    }


def step(bench: Bench, preset: str, quant: str = "none") -> dict[str, Any]:
    """The second step of a run beside its plan, without a checkpoint. A coin is the reward: random weights are never
    right."""
    model = bench.scratch / "model"
    if not model.exists():
        dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
        common.save_model(common.make_config(bench.size), model, dtype, DEVICE)
    problems, group, tokens = bench.or_small((8, 8, 256), (2, 8, 8))
    run = {"model": str(model), "data": PROBLEMS, "prompt": "plain", "steps": 2, "policy.quant": quant, "eval.every": 0}
    run |= {"reward.name": "random", "out": str(bench.scratch), "name": f"{preset}-{quant}", "checkpoint.keep": 1}
    run |= {"rollout.prompts_per_step": problems, "rollout.group_size": group, "rollout.max_prompt_tokens": 64}
    run |= {"rollout.max_new_tokens": tokens, "rollout.engine": "auto" if DEVICE.type == "cuda" else "torch"}
    plan, _ = decide(build(preset, run), this_hardware(DEVICE))
    with patch.object(Checkpoints, "save"):  # 20 GiB for all weights
        rows = run_train(
            ["--preset", preset, *(f"--{name}={value}" for name, value in run.items())], bench, run["name"]
        )
    planned = {f"planned/{phase}": value for phase, value in plan.seconds(rows[-1]["completion/length_mean"]).items()}
    planned |= {"engine": plan.engine.name, "planned/peak_gib": max(plan.totals().values()) / GIB}
    return planned | {name: value for name, value in rows[-1].items() if name.startswith(ROW_PREFIXES)}


def run_train(command: list[str], bench: Bench, name: str) -> list[dict[str, Any]]:
    if train.main(command):
        raise UserError(f"train.py {' '.join(command)} failed")
    return read_rows(bench.scratch / name / "metrics.jsonl")


def train_real(bench: Bench) -> dict[str, Any]:
    """The laptop preset on this device: seconds, and accuracy on the test problems before and after."""
    command = ["--preset", "laptop", "--model", str(bench.model), "--device", DEVICE.type, "--quiet", "true"]
    command += bench.or_small([], ["--steps", "1", "--eval.limit", "2", "--rollout.prompts_per_step", "2"])
    run_train([*command, "--out", str(bench.scratch), "--name", "train"], bench, "train")
    summary = json.loads((bench.scratch / "train" / "summary.json").read_text())
    return {"device": DEVICE.type, "seconds": summary["seconds"]} | {
        f"{when}/{name}": value for when in ("before", "after") for name, value in summary[when].items()
    }


def vllm(bench: Bench) -> dict[str, float]:
    """The engine beside bare vLLM: the same engine object asked without seeds and log-probabilities, in turns."""
    from vllm import SamplingParams as BareParams

    count, group, tokens = bench.or_small((128, 8, 512), (2, 2, 8))
    sizes = {"rollout.prompts_per_step": count, "rollout.group_size": group, "rollout.max_new_tokens": tokens}
    plan = bench.plan("l4", sizes | {"rollout.engine": "vllm", "rollout.max_prompt_tokens": 256})
    policy = bench.policy(plan.config)
    prompts = [tuple(policy.tokenizer(f"{a}+{a + 1}=?")["input_ids"]) for a in range(count)]
    problems = [Problem(index, "", ids, "0") for index, ids in enumerate(prompts)]
    bare_prompts = [{"prompt_token_ids": list(ids)} for ids in prompts]
    params = BareParams(n=group, max_tokens=tokens, ignore_eos=True, detokenize=False)
    sampling = SamplingParams(tokens, TEMPERATURE, ignore_eos=True)
    started = time.perf_counter()
    engine = make_engine(plan.engine_config, DEVICE)
    figures = {"start_s": time.perf_counter() - started}
    figures["first_sync_s"] = stopwatch(lambda: engine.sync(policy))["seconds"]
    for turn in range(3):  # the first warms up, the last is kept
        ours = stopwatch(lambda turn=turn: rollout(engine, problems, group, sampling, 0, turn))
        bare = stopwatch(lambda: engine._llm.generate(bare_prompts, params, use_tqdm=False))
    figures["tokens_per_s"] = count * group * tokens / ours["seconds"]
    figures["bare_tokens_per_s"] = count * group * tokens / bare["seconds"]
    figures["sync_s"] = stopwatch(lambda: engine.sync(policy))["seconds"]
    before = free_bytes()
    figures["sleep_s"] = stopwatch(engine.sleep)["seconds"]
    figures["asleep_gave_gib"] = (free_bytes() - before) / GIB
    figures["wake_and_sync_s"] = stopwatch(lambda: engine.sync(policy))["seconds"]
    engine.close()
    return figures


def free_bytes() -> int:
    return torch.cuda.mem_get_info()[0] if DEVICE.type == "cuda" else 0


PARTS = {
    "vllm": (240, vllm),
    "step-l4": (240, partial(step, preset="l4")),
    "step-h100": (240, partial(step, preset="h100")),
    "train": (180, train_real),
    "exact": (30, exact),
    "matmul": (25, matmul),
    "h100": (60, partial(learner, preset="h100", completions=128)),
    "l4": (80, partial(learner, preset="l4", completions=64, cap_gib=22.5)),
    "oom": (40, oom),
    "step-nf4": (240, partial(step, preset="l4", quant="nf4")),
}
"""Part -> (seconds that it may take on an H100 at the presets' size, estimated; the function)"""
NEEDS = {"step-nf4": "bitsandbytes", "vllm": "vllm"}


def main(argv: list[str]) -> dict[str, Any]:
    """Returns the file's content. Exit code 1 where a part failed; the others run all the same."""
    started = time.monotonic()
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, default=Path("gpu.json"), help="figures, by part [gpu.json]")
    cli.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    cli.add_argument("--size", choices=common.SIZES, default="1.5b")
    cli.add_argument("--model", help="folder of a real model, for the part train")
    cli.add_argument("--minutes", type=float, help="end by then")
    args = cli.parse_args(argv)
    if args.size == "1.5b" and DEVICE.type == "cpu":
        cli.error("needs a GPU; --size tiny runs here")
    failed = []
    for part in args.part:
        left = 60 * args.minutes - (time.monotonic() - started) if args.minutes else None
        if reason := reason_to_skip(part, args, left):
            print(f"-- {part}: skipped, {reason}", flush=True)
            continue
        print(f"-- {part}", flush=True)
        if not (run_part(part, args) if left is None else run_apart(part, args, left)):
            failed.append(part)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the figures of the others are in {args.out}")
    return read_figures(args.out)


def reason_to_skip(part: str, args: argparse.Namespace, left: float | None) -> str:
    if part in read_figures(args.out):
        return "it is in the file already"
    if part in NEEDS and not installed(NEEDS[part]):
        return f"{NEEDS[part]} is not installed"
    if part == "train" and not args.model:
        return "it needs --model"
    needs_s = PARTS[part][0] if args.size == "1.5b" else 1
    return f"{left:.0f} s are left and it may take {needs_s}" if left is not None and left < needs_s else ""


def run_part(part: str, args: argparse.Namespace) -> bool:
    """Runs the part here and adds its figures to the file."""
    common.free()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            figures = PARTS[part][1](Bench(args.size, Path(scratch), args.model))
        except (RuntimeError, ValueError, OSError, AttributeError, TypeError, KeyError, ImportError):
            traceback.print_exc()
            return False
    figures |= {"part_s": time.perf_counter() - started}
    common.show(figures)
    machine = versions() | {"time": time.strftime("%Y-%m-%d %H:%M")}
    write(args.out, json.dumps(read_figures(args.out) | {"machine": machine, part: figures}, indent=1))
    return True


def run_apart(part: str, args: argparse.Namespace, seconds: float) -> bool:
    """Runs the part in a process of its own and ends it when the time is up."""
    command = [sys.executable, __file__, "--out", str(args.out), "--size", args.size, "--part", part]
    command += ["--model", args.model] if args.model else []
    try:
        return subprocess.run(command, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{part}: stopped, the time is up", flush=True)
        return False


def read_figures(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main(sys.argv[1:])
