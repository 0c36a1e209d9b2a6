"""Run folders in the trainer's exact layout, for the tests of the report. Deterministic; the numbers mean nothing."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from grpo.report.__main__ import main
from grpo.run import files

EVIL = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><!-- <b>bold</b> &lt; "
    "<think>\x1b[31m\x00\u202e red \ud800</think> \\boxed{\\frac{1}{2}} \u2028 end"
)
"""A completion that tries to be HTML, a terminal code, or right-to-left text."""
SIGNALS = ("verify", "format", "reflect")
SYSTEM = (
    "<|im_start|>system\nThink in <think>, box the answer, reflect.<|im_end|>\n<|im_start|>user\n12 + 5 = ?<|im_end|>\n"
)


def write_run(
    folder: Path,
    *,
    steps: int = 12,
    groups: int = 2,
    size: int = 4,
    seed: int = 0,
    finished: bool = True,
    lr: float = 1e-4,
) -> Path:
    """A run of `steps` steps with `groups` x `size` completions each."""
    rng = random.Random(seed)
    (folder / "completions").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: tiny\nsteps: {steps}\nlearner:\n  lr: {lr}\n  clip_low: 0.2\n")
    rows = [
        {"step": 0, "time": 1.79e9, "eval/sampled_accuracy": 0.1, "eval/greedy_accuracy": 0.2, "eval/format_rate": 0.3}
    ]
    for step in range(1, steps + 1):
        completions = [completion(rng, step, steps, n // size, n % size) for n in range(groups * size)]
        files.write_completions(folder, step, completions)
        rows.append(metrics(rng, step, steps))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        summary = {
            "before": {"sampled_accuracy": 0.1},
            "after": {"sampled_accuracy": 0.71},
            "steps": steps,
            "seconds": 80.5,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def metrics(rng: random.Random, step: int, steps: int) -> dict[str, float]:
    """One row of metrics.jsonl: everything improves smoothly, with noise."""
    done = step / steps
    learned = 1 / (1 + math.exp(6 - 12 * done)) * 0.9 + 0.05

    def about(value: float) -> float:
        return max(0.0, value * rng.uniform(0.93, 1.07))

    right_true, wrong_true = learned * 0.8, (1 - learned) * 0.5
    row = {
        "step": step, "time": 1.79e9 + 3 * step, "reward/mean": about(2 * learned), "reward/std": about(0.7),
        "reward/group_std": about(0.6 * (1 - done) + 0.05), "outcome/correct": learned,
        "outcome/wrong": (1 - learned) * 0.7, "outcome/no_answer": (1 - learned) * 0.2,
        "outcome/unparsed": (1 - learned) * 0.1, "outcome/timeout": 0.0,
        "verdict/right_says_correct": right_true, "verdict/right_says_wrong": learned - right_true,
        "verdict/wrong_says_correct": (1 - learned) * 0.3, "verdict/wrong_says_wrong": wrong_true,
        "verdict/none": (1 - learned) * 0.2, "verdict/majority_share": about(0.7),
        "verifier/cache_hit_rate": about(done * 0.9),
        "groups/zero_variance": about(0.1 + 0.5 * done), "completion/length_mean": about(40 - 10 * done),
        "completion/tokens_max": 64.0, "completion/truncated": about(0.2 * (1 - done)),
        "completion/unique": about(0.9 - 0.4 * done),
        "loss/total": rng.gauss(0, 0.01), "loss/policy": rng.gauss(0, 0.01), "policy/kl": about(0.02 * done),
        "policy/entropy": about(1.2 - done), "policy/clip_fraction_low": 0.0, "policy/clip_fraction_high": 0.0,
        "policy/ratio_max": 1.0, "policy/grad_norm": about(1.0 - 0.8 * done), "policy/lr": 1e-4,
        "learner/skipped_steps": 0, "logprob_diff/mean": about(4e-7), "logprob_diff/max": about(3e-6),
        "time/rollout": about(1.5),
        "time/reward": about(0.1), "time/learn": about(1.0),
        "time/sync": about(0.02), "time/eval": 0.0, "time/other": about(0.05), "time/step": 2.7,
        "speed/tokens_per_second": about(1800), "memory/peak_gib": about(0.9),
    }  # fmt: skip
    for signal in SIGNALS:
        row[f"signal/{signal}"] = about(learned)
        row[f"signal/{signal}_group_std"] = about(0.4 * (1 - done) + 0.02)
    if step % 4 == 0:
        row |= {"eval/sampled_accuracy": about(learned * 0.8), "eval/greedy_accuracy": about(learned * 0.9)}
        row |= {
            "eval/format_rate": about(0.9),
            "eval/verdict_accuracy": about(0.7),
            "eval/wrong_verdict_rate": about(0.3),
        }
    return row


def completion(rng: random.Random, step: int, steps: int, group: int, sample: int) -> dict:
    """One row of completions/step_*.jsonl. Sample 0 is always right, the last one always wrong."""
    right = sample == 0 or (sample < 3 and rng.random() < step / steps)
    answer = "17" if right else "71"
    says = "correct" if right or sample % 2 else "wrong"
    reflect = float((says == "correct") == right)
    return {
        "step": step, "group": group, "sample": sample, "problem": 0, "prompt": SYSTEM,
        "completion": f"<think>12 + 5, so 2 + 5 = 7 and carry nothing.</think>\n\\boxed{{{answer}}}\n"
        f"<reflection>I added again: this is {says}.</reflection><|im_end|>",
        "finish_reason": "stop", "tokens": 30 + sample, "reward": right + 0.5 + 0.5 * reflect,
        "signals": {"verify": float(right), "format": 1.0, "reflect": reflect}, "answer": answer, "verdict": says,
        "outcome": "correct" if right else "wrong", "ground_truth": "17", "advantage": 0.9 if right else -0.9,
    }  # fmt: skip


def report(*folders: Path, out: Path | None = None) -> Path:
    """Run the command; the page it wrote, which without `out` is in the folder of the one run."""
    assert main([*map(str, folders), *(["--out", str(out)] if out else [])]) == 0
    return out or folders[0] / "report.html"


def edit_completion(folder: Path, step: int, line: int, **changes: object) -> None:
    rows = files.read_completions(folder, step)
    rows[line] |= changes
    files.write_completions(folder, step, rows)


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
