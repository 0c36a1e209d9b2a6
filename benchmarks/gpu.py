"""Measures the presets on this GPU in parts: speed and memory. Needs no network.

    python benchmarks/gpu.py --out gpu.json --minutes 15     # the most telling parts first
    python benchmarks/gpu.py --out gpu.json --part vllm train
    python benchmarks/gpu.py --out tiny.json --size tiny     # the same code on a CPU

Every part is a command of gpu.yaml in a process of its own. What it prints goes to the file as soon as it ends. Parts
in the file are skipped, so the same command continues after a time-out. With --minutes, a part that cannot end in time
is skipped or stopped. The weights are random and have Qwen2.5-Math-1.5B's shape, except in `train`. The parts:

vllm       start-up, sync (wakes the engine), a rollout beside bare vLLM, sleep (needs vllm)
step-l4    two steps of train.py at 8 x 16 x 700 tokens: each phase, memory and utilisation, planned and measured
step-h100  the same with all weights
train      the laptop preset on a real model (needs --model, SmolLM2's folder): held-out accuracy before and after
step-nf4   step-l4 with its base in NF4 (needs bitsandbytes)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import tyro
import yaml

from benchmarks.common import DEVICE, ROOT, make_config, save_model
from grpo.environment import installed, versions
from grpo.run.files import write

PARTS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())


@dataclass
class Options:
    out: Path = Path("gpu.json")
    """the file of results: part -> the lines that it printed"""
    part: tuple[str, ...] = ()
    """only these parts"""
    size: Literal["tiny", "1.5b"] = "1.5b"
    model: Path | None = None
    """folder of a real model, for the part train"""
    minutes: float | None = None
    """end within this time"""


def command(part: str, options: Options, folder: str) -> list[str]:
    """The part's command. `folder` has random weights and takes the files of the part."""
    model = options.model.resolve() if PARTS[part].get("needs") == "model" else folder
    settings = PARTS[part]["options"] | {"model": model}
    if options.size == "tiny":
        settings |= PARTS[part]["tiny"]
    if PARTS[part]["script"] == "train.py":
        settings |= {"out": f"{folder}/runs", "device": DEVICE.type}
    return [sys.executable, PARTS[part]["script"], *(f"--{name}={value}" for name, value in settings.items())]


def reason_to_skip(part: str, options: Options, left: float) -> str:
    if part in read_figures(options.out):
        return "it is in the file already"
    package = PARTS[part].get("needs")
    if package == "model":
        return "" if options.model else "it needs --model"
    if package and not installed(package):
        return f"{package} is not installed"
    needs_s = PARTS[part]["seconds"] if options.size == "1.5b" else 1
    return f"{left:.0f} s are left and it may take {needs_s}" if left < needs_s else ""


def run(words: list[str], limit: float) -> tuple[str, list[str]]:
    """Runs a command. Returns why it failed, and the lines that it printed."""
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=limit, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return "stopped, the time is up", []
    return f"failed with code {done.returncode}" if done.returncode else "", done.stdout.splitlines()


def read_figures(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def main(argv: list[str]) -> int:
    """Exit code 1 where a part failed, after the other parts have run."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if unknown := set(options.part) - set(PARTS):
        sys.exit(f"--part: {', '.join(unknown)} not in {', '.join(PARTS)}")
    if options.size == "1.5b" and DEVICE.type == "cpu":
        sys.exit("needs a GPU; --size tiny runs here")
    end = time.monotonic() + 60 * (options.minutes or 10**4)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
        save_model(make_config(options.size), Path(folder), dtype)
        for part in options.part or PARTS:
            left = end - time.monotonic()
            if reason := reason_to_skip(part, options, left):
                print(f"-- {part}: skipped, {reason}", flush=True)
                continue
            print(f"-- {part}", flush=True)
            problem, lines = run(command(part, options, folder), left)
            print("\n".join(lines), flush=True)
            if problem:
                print(f"-- {part}: {problem}", flush=True)
                failed = True
                continue
            machine = versions() | {"time": time.strftime("%Y-%m-%d %H:%M")}
            write(options.out, json.dumps(read_figures(options.out) | {"machine": machine, part: lines}, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
