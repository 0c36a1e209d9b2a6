"""Which signal teaches what, and how many examples it takes: the cpu preset over a grid, as one table.

    python -m benchmarks.experiments --only seeds            # the README's table
    python -m benchmarks.experiments                         # everything in docs/experiments.md
    python -m benchmarks.experiments --only overfitting --plot docs/images/overfitting.png

Each row is one run of train.py in runs/experiments; a finished run is not repeated, so the grid can be stopped and
continued. Figures are those of the test half: 300 problems, so one standard error is at most 2.9 points.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
OUT = Path("runs") / "experiments"
SIXTEEN, MANY = "data/arithmetic/16_r8.parquet", "data/arithmetic/128.parquet"
FAST = ("--learner.lr", "3e-4")
COLUMNS = ("sampled_accuracy", "greedy_accuracy", "format_rate", "verdict_accuracy", "wrong_verdict_rate")

GRID: dict[str, dict[str, tuple[str, ...]]] = {
    "seeds": {f"seed {seed}": ("--seed", str(seed)) for seed in range(3)},
    "rewards": {
        f"{name}, seed {seed}": ("--reward.name", name, "--seed", str(seed))
        for name in ("verify_only", "format_only", "random")
        for seed in range(2)
    },
    "examples": {
        f"{label} examples, seed {seed}": ("--data", path, "--seed", str(seed))
        for label, path in (("16", SIXTEEN), ("128", MANY))
        for seed in range(2)
    },
    "overfitting": {
        "1 example, 3 x the rate": FAST,
        "16 examples, 3 x the rate": (*FAST, "--data", SIXTEEN),
        "128 examples, 3 x the rate": (*FAST, "--data", MANY),
        "1 example, 3 x the rate, KL 0.05": (
            *FAST,
            "--learner.kl_coef",
            "0.05",
            "--learner.skip_zero_variance",
            "false",
        ),
    },
    "longer": {"1 example, 140 steps": ("--steps", "140")},
    "variants": {
        "no_std": ("--learner.advantage", "no_std"),
        "per_signal": ("--learner.advantage", "per_signal"),
        "two updates a rollout": ("--learner.minibatches_per_rollout", "2"),
        "sequence mean": ("--learner.aggregation", "sequence"),
    },
}


def folder(part: str, label: str) -> Path:
    return REPO / OUT / f"{part}-{label}".replace(" ", "-").replace(",", "")


def run(part: str, label: str, options: tuple[str, ...]) -> dict:
    """The summary of one run, trained unless it is there already."""
    summary = folder(part, label) / "summary.json"
    if not summary.is_file():
        command = [sys.executable, "train.py", "--preset", "cpu", "--quiet", "--out", str(OUT)]
        command += ["--name", summary.parent.name, *options]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(summary.read_text())


def plot(part: str, path: Path) -> None:
    """Training reward and sampled held-out accuracy over the steps, a colour for each run of the part."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    shown = ("signal/verify", "eval/sampled_accuracy", "eval/greedy_accuracy")
    for label in GRID[part]:
        rows = [json.loads(line) for line in (folder(part, label) / "metrics.jsonl").read_text().splitlines()]
        for axes, key in zip(panels, shown, strict=True):
            axes.plot(*zip(*((row["step"], row[key]) for row in rows if key in row), strict=True), label=label)
    for axes, title in zip(panels, ("training accuracy", "held out, sampled", "held out, greedy"), strict=True):
        axes.set(title=title, xlabel="step", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The cpu preset over a grid, as a table.")
    parser.add_argument("--only", choices=GRID, action="append", help="a part of the grid; may be given more than once")
    parser.add_argument("--plot", type=Path, help="also draw the curves of the (first) part to this file")
    arguments = parser.parse_args()
    parts = arguments.only or list(GRID)
    print(f"| run | {' | '.join(name.replace('_', ' ') for name in COLUMNS)} | steps | seconds |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    shown_before = False
    for part in parts:
        for label, options in GRID[part].items():
            summary = run(part, label, options)
            if not shown_before:
                print(f"| before | {' | '.join(percent(summary['before'][name]) for name in COLUMNS)} | 0 | |")
                shown_before = True
            figures = " | ".join(percent(summary["after"][name]) for name in COLUMNS)
            print(f"| {label} | {figures} | {summary['steps']} | {summary['seconds']:.0f} |", flush=True)
    if arguments.plot:
        plot(parts[0], arguments.plot)


if __name__ == "__main__":
    main()
