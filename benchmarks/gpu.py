"""Measures the presets on this GPU in parts: speed, memory, exactness. Needs no network.

    python benchmarks/gpu.py --out gpu.json --minutes 15     # the most telling parts first, each in its own process
    python benchmarks/gpu.py --out gpu.json --part vllm train
    python benchmarks/gpu.py --out tiny.json --size tiny     # the same code on a CPU

Writes the figures of a part to the file as soon as the part ends and skips parts that are in the file, so the same
command continues after a time-out. With --minutes, a part that cannot end in time is skipped or stopped. The weights
are random and have Qwen2.5-Math-1.5B's shape, except in `train`. The parts, the most telling first:

vllm       start-up, sync with its check (wakes the engine), a rollout beside bare vLLM, sleep (needs vllm)
step-l4    train.py's second step at 8 x 16 x 700 tokens: every phase, memory, log-probability difference, the plan
step-h100  the same with all weights
train      the laptop preset on a real model (needs --model, SmolLM2's folder): held-out accuracy before and after
proof      the packed pass, the sampler and the model's own pass: differences in log-probabilities and gradient
step-nf4   step-l4 with its base in NF4 (needs bitsandbytes)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import tyro

import train
from benchmarks import common
from benchmarks.common import DEVICE, GIB, PROBLEMS, stopwatch
from grpo.engines.base import SamplingParams, make_engine
from grpo.environment import installed, versions
from grpo.errors import UserError
from grpo.model_check import prove
from grpo.plan.hardware import this_hardware
from grpo.plan.planner import Plan, decide
from grpo.plan.time import learning_flops
from grpo.policy import Policy
from grpo.rollout import rollout
from grpo.run.checkpoint import Checkpoints
from grpo.run.files import read_rows, write
from grpo.settings import Config, build
from grpo.types import Problem

SMALL = {"rollout.max_prompt_tokens": 64, "rollout.max_new_tokens": 48, "learner.logit_chunk": 64}


@dataclass
class Options:
    out: Path = Path("gpu.json")
    """figures, by part"""
    part: tuple[str, ...] = ()
    """only these parts"""
    size: Literal["tiny", "1.5b"] = "1.5b"
    model: Path | None = None
    """folder of a real model, for the part train"""
    minutes: float | None = None
    """end within this time"""


@dataclass(frozen=True)
class Bench:
    """The size of the parts, and a folder for their files."""

    size: str
    scratch: Path
    model: Path | None = None

    def or_small(self, full: Any, small: Any) -> Any:
        """The value at the presets' size, or at a smaller one."""
        return full if self.size == "1.5b" else small

    def plan(self, preset: str, options: dict[str, object]) -> Plan:
        """The preset's plan for a model folder with a config.json alone, which is all that vLLM needs."""
        common.make_config(self.size).save_pretrained(self.scratch / "shape")
        fixed = {"model": str(self.scratch / "shape"), "policy.quant": "none", "rollout.engine": "torch"}
        small = self.or_small({}, SMALL | {"learner.microbatch_tokens": 256})
        return decide(build(preset, fixed | small | options), this_hardware(DEVICE))

    def policy(self, config: Config) -> Policy:
        return common.make_policy(common.make_config(self.size), config)

    def train(self, name: str, settings: dict[str, object]) -> Path:
        """Runs train.py. Returns the run folder."""
        settings = {"out": self.scratch, "name": name} | settings
        if train.main([f"--{key}={value}" for key, value in settings.items()]):
            raise UserError(f"train.py failed with {settings}")
        return self.scratch / name


def proof(bench: Bench) -> dict[str, str]:
    """The proof at load (grpo/model_check.py) in this device's precision."""
    config = bench.plan("h100", {}).config
    return {"differences": prove(bench.policy(config), config.rollout.longest_sequence)}


def step(bench: Bench, preset: str, quant: str = "none") -> dict[str, Any]:
    """The second step of a run beside its plan. The reward is a coin, because random weights are never right."""
    model = bench.scratch / "model"
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    common.save_model(common.make_config(bench.size), model, dtype)
    problems, group, tokens = bench.or_small((8, 16, 700), (2, 8, 8))
    settings = {
        "model": str(model),
        "data": PROBLEMS,
        "prompt": "plain",
        "steps": 2,
        "policy.quant": quant,
        "eval.every": 0,
        "reward.name": "random",
        "rollout.prompts_per_step": problems,
        "rollout.group_size": group,
        "rollout.max_prompt_tokens": 64,
        "rollout.max_new_tokens": tokens,
        "rollout.engine": "auto" if DEVICE.type == "cuda" else "torch",
    }
    plan = decide(build(preset, settings), this_hardware(DEVICE))
    with patch.object(Checkpoints, "save"):  # 20 GiB for all weights
        row = read_rows(bench.train("step", {"preset": preset} | settings) / "metrics.jsonl")[-1]
    mean = row["completion/length_mean"]
    planned = {f"planned/{phase}": value for phase, value in plan.seconds(mean).items()}
    planned |= {"engine": plan.engine.name, "planned/peak_gib": max(plan.totals.values()) / GIB}
    operations_per_s = learning_flops(plan, mean) / row["time/learn"]
    return planned | row | {"utilisation": operations_per_s / plan.hardware.flops}


def train_real(bench: Bench) -> dict[str, Any]:
    """The laptop preset on this device: seconds, and accuracy on the test problems before and after."""
    small = bench.or_small({}, {"steps": 1, "eval.limit": 2, "rollout.prompts_per_step": 2})
    settings = {"preset": "laptop", "model": bench.model, "device": DEVICE.type, "quiet": "true"}
    summary = json.loads((bench.train("train", settings | small) / "summary.json").read_text())
    return {"device": DEVICE.type, "seconds": summary["seconds"]} | {
        f"{when}/{name}": value for when in ("before", "after") for name, value in summary[when].items()
    }


def vllm(bench: Bench) -> dict[str, float]:
    """The engine beside bare vLLM: the same engine object without seeds and log-probabilities, in turns."""
    from vllm import SamplingParams as BareParams

    count, group, tokens = bench.or_small((128, 8, 512), (2, 2, 8))
    sizes = {"rollout.prompts_per_step": count, "rollout.group_size": group, "rollout.max_new_tokens": tokens}
    plan = bench.plan("l4", sizes | {"rollout.engine": "vllm", "rollout.max_prompt_tokens": 256})
    policy = bench.policy(plan.config)
    prompts = [policy.tokenizer(f"{a}+{a + 1}=?")["input_ids"] for a in range(count)]
    problems = [Problem(index, "", tuple(ids), "0") for index, ids in enumerate(prompts)]
    bare_prompts = [{"prompt_token_ids": ids} for ids in prompts]
    params = BareParams(n=group, max_tokens=tokens, ignore_eos=True, detokenize=False)
    sampling = SamplingParams(tokens, 0.6, ignore_eos=True)
    started = time.perf_counter()
    engine = make_engine(plan.engine_config, DEVICE)
    figures = {"start_s": time.perf_counter() - started}
    for turn in range(3):  # the first turn warms up, the last is kept
        for name, work in {
            "sync_s": lambda: engine.sync(policy),
            "rollout_s": lambda turn=turn: rollout(engine, problems, group, sampling, 0, turn),
            "bare_rollout_s": lambda: engine._llm.generate(bare_prompts, params, use_tqdm=False),
            "sleep_s": engine.sleep,
        }.items():
            figures[name] = stopwatch(work)["seconds"]
    engine.close()
    return figures | {"completion_tokens": count * group * tokens}


PARTS = {
    "vllm": (240, vllm),
    "step-l4": (240, partial(step, preset="l4")),
    "step-h100": (240, partial(step, preset="h100")),
    "train": (180, train_real),
    "proof": (30, proof),
    "step-nf4": (240, partial(step, preset="l4", quant="nf4")),
}
"""Part -> (seconds it may take on an H100 at the presets' size, estimated; the function)"""
NEEDS = {"step-nf4": "bitsandbytes", "vllm": "vllm"}


def main(argv: list[str]) -> dict[str, Any]:
    """Returns the content of the file. Exits with code 1 where a part failed, after the other parts have run."""
    started = time.monotonic()
    options = tyro.cli(Options, args=argv, description=__doc__)
    if unknown := set(options.part) - set(PARTS):
        sys.exit(f"--part: {', '.join(unknown)} not in {', '.join(PARTS)}")
    if options.size == "1.5b" and DEVICE.type == "cpu":
        sys.exit("needs a GPU; --size tiny runs here")
    failed = []
    for part in options.part or PARTS:
        left = 60 * options.minutes - (time.monotonic() - started) if options.minutes else None
        if reason := reason_to_skip(part, options, left):
            print(f"-- {part}: skipped, {reason}", flush=True)
            continue
        print(f"-- {part}", flush=True)
        if not (run_part(part, options) if left is None else run_apart(part, options, left)):
            failed.append(part)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the figures of the others are in {options.out}")
    return read_figures(options.out)


def reason_to_skip(part: str, options: Options, left: float | None) -> str:
    if part in read_figures(options.out):
        return "it is in the file already"
    if part in NEEDS and not installed(NEEDS[part]):
        return f"{NEEDS[part]} is not installed"
    if part == "train" and not options.model:
        return "it needs --model"
    needs_s = PARTS[part][0] if options.size == "1.5b" else 1
    return f"{left:.0f} s are left and it may take {needs_s}" if left is not None and left < needs_s else ""


def run_part(part: str, options: Options) -> bool:
    """Runs the part in this process and adds its figures to the file. Returns False where it failed."""
    common.free()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            figures = PARTS[part][1](Bench(options.size, Path(scratch), options.model))
        except Exception:  # noqa: BLE001 - the other parts run all the same
            traceback.print_exc()
            return False
    figures |= {"part_s": time.perf_counter() - started}
    print(json.dumps(figures, indent=1))
    machine = versions() | {"time": time.strftime("%Y-%m-%d %H:%M")}
    write(options.out, json.dumps(read_figures(options.out) | {"machine": machine, part: figures}, indent=1))
    return True


def run_apart(part: str, options: Options, seconds: float) -> bool:
    """Runs the part in a process of its own and ends it when the time is up."""
    command = [sys.executable, __file__, "--out", str(options.out), "--size", options.size, "--part", part]
    command += ["--model", str(options.model)] if options.model else []
    try:
        return subprocess.run(command, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{part}: stopped, the time is up", flush=True)
        return False


def read_figures(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main(sys.argv[1:])
