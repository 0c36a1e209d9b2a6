"""plot.png of a run folder: the curves of metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

from grpo.run import files


def plot_run(folder: Path) -> None:
    """folder/plot.png: the curves of metrics.jsonl."""
    from matplotlib.figure import Figure

    rows = files.read_rows(folder / "metrics.jsonl")
    names = {name for row in rows for name in row if name.startswith("signal/") and not name.endswith("group_std")}
    charts = {
        "held-out accuracy (validation)": ["eval/greedy_accuracy", "eval/sampled_accuracy"],
        "training completions (mean)": ["reward/mean", *sorted(names)],
    }
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for chart, (title, curves) in zip(figure.subplots(1, 2), charts.items(), strict=True):
        for name in curves:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            chart.plot([step for step, _ in points], [value for _, value in points], marker=".", label=name)
        chart.set(title=title, xlabel="step")
        chart.grid(alpha=0.3)
        chart.legend()
    figure.savefig(folder / "plot.png", dpi=120)
