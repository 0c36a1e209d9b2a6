"""The run folder: everything a run leaves behind, and what it shows while it goes.

runs/NAME/config.yaml  versions.json  metrics.jsonl  completions/step_000001.jsonl  checkpoints/  summary.json  plot.png
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from grpo.config import Config
from grpo.errors import UserError
from grpo.types import Group
from rewards import Score

PACKAGES = ("torch", "transformers", "peft", "math-verify", "sympy", "numpy", "vllm", "flash-attn", "bitsandbytes")


class Run:
    def __init__(self, config: Config, folder: Path, start_step: int = 0):
        self.config, self.folder = config, folder
        self.bar = tqdm(
            total=config.steps, initial=start_step, unit="step", disable=config.quiet or not sys.stderr.isatty()
        )

    @classmethod
    def create(cls, config: Config) -> Run:
        """A new folder. UserError if it exists: nothing of an earlier run is ever written over."""
        folder = run_folder(config)
        try:
            (folder / "completions").mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"{folder} exists; choose another --name, or continue it with --resume {folder}") from None
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))
        (folder / "versions.json").write_text(json.dumps(versions(), indent=2))
        return cls(config, folder)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def log(self, metrics: dict[str, float]) -> None:
        """One flat JSON object a step; the progress bar, or one line where there is none."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics | {"time": time.time()}) + "\n")
        line = summary_line(metrics)
        if self.bar.disable:
            print(line, flush=True)
        else:
            self.bar.set_description_str(line)
            self.bar.update(int(metrics["step"] > 0))

    def save_completions(
        self,
        step: int,
        groups: Sequence[Group],
        texts: Sequence[Sequence[str]],
        scores: Sequence[Sequence[Score]],
        advantages: torch.Tensor,
    ) -> None:
        with (self.folder / "completions" / f"step_{step:06d}.jsonl").open("w") as file:
            for g, group in enumerate(groups):
                for i, completion in enumerate(group.completions):
                    score = scores[g][i]
                    row = {
                        "step": step,
                        "group": g,
                        "sample": i,
                        "problem": group.problem.index,
                        "prompt": group.problem.prompt,
                        "completion": texts[g][i],
                        "finish_reason": completion.finish_reason,
                        "tokens": len(completion.ids),
                        "reward": score.total,
                        "signals": score.signals,
                        "answer": score.answer,
                        "verdict": score.verdict,
                        "outcome": score.outcome,
                        "ground_truth": group.problem.ground_truth,
                        "advantage": advantages[g, i].item(),
                    }
                    file.write(json.dumps(row) + "\n")

    def finish(self, summary: dict) -> None:
        self.bar.close()
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2))


def run_folder(config: Config) -> Path:
    name = config.name or f"{config.preset}-{Path(config.data).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(config.out) / name


def summary_line(metrics: dict[str, float]) -> str:
    shown = {
        "reward": "reward/mean",
        "verify": "signal/verify",
        "tokens": "completion/tokens_mean",
        "sampled": "eval/sampled_accuracy",
        "greedy": "eval/greedy_accuracy",
    }
    parts = [f"{label} {metrics[key]:.3g}" for label, key in shown.items() if key in metrics]
    return f"step {metrics['step']}: " + "  ".join(parts)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
