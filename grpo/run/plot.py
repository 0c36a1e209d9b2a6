"""The run as one picture: held-out accuracy, sampled and greedy, beside the training reward."""

from __future__ import annotations

from pathlib import Path

from grpo.run.rows import read_rows


def plot_run(folder: Path) -> Path:
    """Reads folder/metrics.jsonl, writes folder/plot.png and returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_rows(folder / "metrics.jsonl")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for key, label in (("eval/greedy_accuracy", "greedy"), ("eval/sampled_accuracy", "sampled")):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            left.plot(*zip(*points, strict=True), marker="o", label=label)
    left.set(title="held-out accuracy (validation)", xlabel="step", ylim=(0, 1))
    for key in ("reward/mean", *sorted({key for row in rows for key in row if key.startswith("signal/")})):
        if not key.endswith("group_std"):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            right.plot(*zip(*points, strict=True), label=key.rpartition("/")[2] if key != "reward/mean" else "reward")
    right.set(title="training completions (mean)", xlabel="step")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right" if axes is left else "best")
    path = folder / "plot.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
