"""What the presets do on this GPU, by parts: how fast, how much memory, are the numbers right. No network is used.

    python benchmarks/gpu.py --out gpu.json [--part matmul h100 ...]
    python benchmarks/gpu.py --out tiny.json --size tiny      # the same code on a CPU

The figures of a part are written to the file as soon as it ends, and a part that is in the file is not run again: after
a time-out the same command goes on. The weights are random, of Qwen2.5-Math-1.5B's shape. Parts, with their seconds on
an H100 as estimated:

matmul      5  bf16 matrix products sustained for 3 s: what utilisation is measured against
h100       40  its learner on 128 completions (lognormal, mean 700, at most 3072; 4 prompts of 150 tokens): tokens/s,
               utilisation, memory; with the preset's own terms; one scoring pass of policy and of reference
l4         60  the same for 64 completions, held to 22.5 GiB
exact      10  a small model: packed, one by one and the chunked head against float64 on a CPU
oom        20  the memory is capped until an update does not fit; it must start over and give the same gradient
step-l4    60  train.py's second step at 8 x 8 x 256 tokens: every phase, memory, mismatch; plan beside measured
step-h100  60  the same with all weights (40 GiB of disk must be free, as for a run)
step-nf4   60  l4's with its base in NF4 (needs bitsandbytes)
cpu        10  what the processor does at h100's size: packing and decoding 4096 completions
vllm      120  start-up, tokens/s beside bare vLLM, sync with proof, sleep, wake (needs vllm)

Utilisation counts the work once: nothing for what checkpointing computes again. Not measured: how far NF4's
log-probabilities are from bf16's. For a real model in bf16 beside vLLM there is benchmarks/mismatch.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.profiler import profile

import train
from benchmarks import common, exact
from benchmarks.common import DEVICE, GIB, PROBLEMS, held_to, stopwatch
from grpo.chat_template import ChatTemplate
from grpo.engines.base import make_engine
from grpo.environment import installed, versions
from grpo.errors import UserError
from grpo.evaluation.benchmarks import load
from grpo.plan.hardware import this_hardware
from grpo.plan.planner import decide, make_plan
from grpo.policy import Policy
from grpo.rollout import rollout
from grpo.run.checkpoint import Checkpoints
from grpo.run.files import read_rows, write
from grpo.settings import Config, build, changed
from grpo.types import Sample

BARE = {"learner.kl_coef": 0, "learner.entropy_coef": 0, "learner.minibatches_per_rollout": 1}
SMALL = {"rollout.max_prompt_tokens": 64, "rollout.max_new_tokens": 48}
SMALL |= {"learner.microbatch_tokens": 256, "learner.logit_chunk": 64}


@dataclass(frozen=True)
class Bench:
    """At what size the parts run, and a folder for what they write."""

    size: str
    scratch: Path
    profile: bool = False

    def or_small(self, full: Any, small: Any) -> Any:
        """The value at the presets' size, or at a smaller one."""
        return full if self.size == "1.5b" else small

    def config(self, preset: str, options: dict[str, object] | None = None) -> Config:
        """The preset with a model folder that holds the shape alone; the plan, and vLLM, need no more."""
        common.make_config(self.size).save_pretrained(self.scratch / "shape")
        fixed = {"model": str(self.scratch / "shape"), "policy.quant": "none", "rollout.engine": "torch"}
        return build(preset, fixed | self.or_small({}, SMALL) | (options or {}))

    def policy(self, config: Config) -> Policy:
        return common.make_policy(common.make_config(self.size), config, DEVICE)

    def groups(self, completions: int, prompts: int = 4) -> list[list[Sample]]:
        """One of equally many completions for each prompt."""
        lengths = common.lognormal_lengths(completions, self.or_small(700, 12), self.or_small(3072, 48))
        return common.make_samples(lengths, completions // prompts, self.or_small(150, 8), self.or_small(151_936, 96))


@cache
def matmul(bench: Bench) -> dict[str, float]:
    return {"tflops": common.sustained(DEVICE, bench.or_small(3, 0.1)) / 1e12}


def learner(bench: Bench, preset: str, completions: int, cap_gib: float | None = None) -> dict[str, float]:
    """The learner on made-up completions: bare (the surrogate alone, one optimiser step), then as the preset has it."""
    config = bench.config(preset, {"rollout.prompts_per_step": 4, "rollout.group_size": completions // 4})
    groups = bench.groups(completions)
    with held_to(cap_gib):
        policy = bench.policy(config)
        work = common.make_learner(policy, config)
        work.config = changed(config, BARE).learner
        tokens, operations = common.packed_work(work, groups)
        work.update(groups[:1])  # warms up and makes the moments
        bare_s = stopwatch(lambda: work.update(groups))["seconds"]
        work.config = config.learner
        preset_s = stopwatch(lambda: work.update(groups))["seconds"]
        memory = common.memory()
        batches = work.micro_batches([sample for group in groups for sample in group])
        with torch.no_grad():
            scoring = stopwatch(lambda: [policy.logprobs(batch, 0.6) for batch in batches])
            reference = stopwatch(lambda: [policy.ref_logprobs(batch, 0.6) for batch in batches])
        if bench.profile:
            with profile() as profiler:
                work.update(groups[: config.learner.minibatches_per_rollout])
            print(profiler.key_averages().table(sort_by=f"self_{DEVICE.type}_time_total", row_limit=15))
    plan = make_plan(config, this_hardware(DEVICE))
    mean = sum(len(sample.completion_ids) for group in groups for sample in group) / completions
    return memory | {
        "planned_gib": plan.needs("learn") / GIB,
        "packed_tokens": tokens,
        "bare_s": bare_s,
        "bare_tokens_per_s": tokens / bare_s,
        "utilisation": operations / bare_s / 1e12 / matmul(bench)["tflops"],
        "preset_s": preset_s,
        "planned_preset_s": plan.seconds(mean)["learn"],
        "scoring_pass_s": scoring["seconds"],
        "reference_pass_s": reference["seconds"],
    }


def out_of_memory(bench: Bench) -> dict[str, float]:
    config = bench.config(
        "l4", {"learner.microbatch_tokens": 10**6, "learner.lr": 1e-12, "rollout.prompts_per_step": 4} | BARE
    )
    return exact.oom(config, bench.policy(config), bench.groups(32))


def step(bench: Bench, preset: str, quant: str = "none") -> dict[str, float]:
    """The second step of a run, on vLLM where it is installed, beside the plan made before it. Random weights end next
    to no completion early, and no checkpoint is written. A coin is the reward: random weights are never right, and
    without a difference in reward the step would be one of the entropy alone."""
    model = bench.scratch / "model"
    if not model.exists():
        dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
        common.save_model(common.make_config(bench.size), model, dtype, DEVICE)
    problems, group, tokens = bench.or_small((8, 8, 256), (2, 8, 8))
    run = {"model": str(model), "data": PROBLEMS, "prompt": "plain", "steps": 2, "policy.quant": quant}
    run |= {"eval.every": 0, "eval.data": "none", "reward.name": "random", "checkpoint.keep": 1}
    run |= {"out": str(bench.scratch), "name": f"{preset}-{quant}"}
    run |= {"rollout.prompts_per_step": problems, "rollout.group_size": group, "rollout.max_prompt_tokens": 64}
    run |= {"rollout.max_new_tokens": tokens, "rollout.engine": "auto" if DEVICE.type == "cuda" else "torch"}
    plan, _ = decide(build(preset, run), this_hardware(DEVICE))
    command = ["--preset", preset, *(f"--{name}={value}" for name, value in run.items())]
    with patch.object(Checkpoints, "save"):  # 20 GiB for all weights
        if train.main(command):
            raise UserError(f"train.py {' '.join(command)} failed")
    row = read_rows(bench.scratch / run["name"] / "metrics.jsonl")[-1]
    planned = {f"planned/{phase}": value for phase, value in plan.seconds(row["completion/length_mean"]).items()}
    measured = (
        "time/",
        "memory/",
        "logprob_diff/",
        "speed/",
        "lora/update_retention",
        "completion/length_mean",
        "groups/",
    )
    planned |= {"engine": plan.engine.name, "planned/peak_gib": max(plan.totals().values()) / GIB}
    return planned | {name: value for name, value in row.items() if name.startswith(measured)}


def vllm(bench: Bench) -> dict[str, float]:
    """The engine beside bare vLLM: the same engine object asked without seeds and log-probabilities, in turns."""
    from vllm import SamplingParams

    problems, group, tokens = bench.or_small((128, 8, 512), (2, 2, 8))
    sizes = {"rollout.prompts_per_step": problems, "rollout.group_size": group, "rollout.max_new_tokens": tokens}
    config = bench.config("l4", sizes | {"rollout.engine": "vllm", "rollout.max_prompt_tokens": 256})
    policy = bench.policy(config)
    asked = load(PROBLEMS, ChatTemplate(policy.tokenizer), "plain")[:problems]
    ids = [{"prompt_token_ids": list(problem.prompt_ids)} for problem in asked]
    params = SamplingParams(n=group, max_tokens=tokens, ignore_eos=True, detokenize=False)
    sampling = SamplingParams(tokens, config.rollout.temperature, ignore_eos=True)
    started = time.perf_counter()
    engine = make_engine(make_plan(config, this_hardware(DEVICE)).engine_config, DEVICE)
    figures = {"start_s": time.perf_counter() - started}
    figures["first_sync_s"] = stopwatch(lambda: engine.sync(policy))["seconds"]
    for turn in range(3):  # the first warms up, the last is kept
        ours = stopwatch(lambda turn=turn: rollout(engine, asked, group, sampling, 0, turn))
        bare = stopwatch(lambda: engine._llm.generate(ids, params, use_tqdm=False))
    figures["tokens_per_s"] = problems * group * tokens / ours["seconds"]
    figures["bare_tokens_per_s"] = problems * group * tokens / bare["seconds"]
    figures["sync_s"] = stopwatch(lambda: engine.sync(policy))["seconds"]
    before = torch.cuda.mem_get_info()[0] if DEVICE.type == "cuda" else 0
    figures["sleep_s"] = stopwatch(engine.sleep)["seconds"]
    figures["asleep_gave_gib"] = (torch.cuda.mem_get_info()[0] - before) / GIB if DEVICE.type == "cuda" else 0.0
    figures["wake_and_sync_s"] = stopwatch(lambda: engine.sync(policy))["seconds"]
    engine.close()
    return figures


PARTS = {
    "matmul": matmul,
    "h100": partial(learner, preset="h100", completions=128),
    "l4": partial(learner, preset="l4", completions=64, cap_gib=22.5),
    "exact": lambda bench: exact.exact(bench.config("h100", {"learner.kl_coef": 0}), DEVICE),
    "oom": out_of_memory,
    "step-l4": partial(step, preset="l4"),
    "step-h100": partial(step, preset="h100"),
    "step-nf4": partial(step, preset="l4", quant="nf4"),
    "cpu": lambda bench: common.packing_and_decoding(bench.groups(*bench.or_small((4096, 128), (64, 4)))),
    "vllm": vllm,
}
NEEDS = {"step-nf4": "bitsandbytes", "vllm": "vllm"}


def main(argv: list[str]) -> dict:
    """Returns the file's content. Exit code 1 where a part failed; the others are run all the same."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, default=Path("gpu.json"), help="figures, by part [gpu.json]")
    cli.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    cli.add_argument("--size", choices=common.SIZES, default="1.5b")
    cli.add_argument("--profile", action="store_true", help="print where a learner's update spends its time (slow)")
    args = cli.parse_args(argv)
    if args.size == "1.5b" and DEVICE.type == "cpu":
        cli.error("needs a GPU; --size tiny runs here")
    done, failed = json.loads(args.out.read_text()) if args.out.exists() else {}, []
    done["machine"] = versions() | {"time": time.strftime("%Y-%m-%d %H:%M")}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args.size, Path(scratch), args.profile)
        for part in args.part:
            lacks = part in NEEDS and not installed(NEEDS[part])
            if part in done or lacks:
                print(f"-- {part}: {f'skipped, {NEEDS[part]} is not installed' if lacks else 'is in the file already'}")
                continue
            print(f"-- {part}", flush=True)
            common.free()
            started = time.perf_counter()
            try:
                figures = PARTS[part](bench)
            except (RuntimeError, ValueError, OSError, AttributeError, TypeError, KeyError, ImportError):
                traceback.print_exc()
                failed.append(part)
                continue
            done[part] = figures | {"part_s": time.perf_counter() - started}
            common.show(done[part])
            write(args.out, json.dumps(done, indent=1))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the figures of the others are in {args.out}")
    return done


if __name__ == "__main__":
    main(sys.argv[1:])
