"""plot.png of a run folder: the curves of metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from grpo.run import files
from grpo.run.display import SMOKE_NOTE, signal_means, star
from grpo.settings import dotted, read_yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD_OUT = ("eval/greedy_accuracy", "eval/sampled_accuracy")


def plot_run(folder: Path) -> None:
    """folder/plot.png: the curves of metrics.jsonl."""
    draw(folder).savefig(folder / "plot.png", dpi=120)


def draw(folder: Path) -> Figure:
    """The curves of metrics.jsonl: held-out accuracy on the left, the training completions on the right."""
    from matplotlib.figure import Figure

    rows = files.read_rows(folder / "metrics.jsonl")
    signals = signal_means({name for row in rows for name in row})
    tested = any(row.get(name) is not None for row in rows for name in HELD_OUT)
    limit = dotted(read_yaml(folder / "config.yaml")).get("eval.limit") if tested else None
    charts = {
        f"held-out accuracy{star(limit)} (validation)": HELD_OUT,
        "training completions (mean)": ("reward/mean", *sorted(signals)),
    }
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for chart, (title, curves) in zip(figure.subplots(1, 2), charts.items(), strict=True):
        for name in curves:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            chart.plot([step for step, _ in points], [value for _, value in points], marker=".", label=name)
        chart.set(title=title, xlabel="step")
        chart.grid(alpha=0.3)
        chart.legend()
    if limit:
        figure.supxlabel(SMOKE_NOTE.format(limit), fontsize="small")
    return figure
