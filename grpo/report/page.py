"""Renders runs as one HTML page.

The page holds plotly.js, style, scripts and data, so it needs no network. Three walls stand between a model's text and
the browser. jinja2 escapes the HTML. The data is JSON with `<`, `>`, `&` and `'` as \\u escapes, so no `</script>` can
end it. A Content-Security-Policy runs only the scripts with this page's random nonce, and forbids every connection.

The charts are drawn in the browser, because a reader switches runs on and off and changes the colour scheme there, and
because each metric then lies in the page once.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from grpo.report.charts import charts_for
from grpo.report.read import Run
from grpo.run.display import as_text, star

HERE = Path(__file__).resolve().parent
IN_THE_BROWSER = ("name", "steps", "metrics", "prompts", "completions")
RECENT = 10
"""Number of last steps whose mean reward the table shows."""


def render(runs: Sequence[Run]) -> str:
    charts: list[dict[str, Any]] = []
    constant = {}
    for chart in charts_for({metric for run in runs for metric in run.metrics}):
        if of_smoke_figures(chart, runs):
            chart["title"] += "*"
        columns = [run.metrics.get(metric, []) for run in runs for metric, _ in chart["series"]]
        values = {value for column in columns for value in column} - {None}
        if len(values) == 1 and max(map(len, columns)) > 2:
            constant[chart["title"]] = f"{values.pop():g}"
        else:
            charts.append({"id": f"chart-{len(charts)}"} | chart)
    settings = table([run.config for run in runs])
    return (
        environment(HERE)
        .get_template("page.html.j2")
        .render(
            runs=runs,
            charts=charts,
            constant=constant,
            overview=table([facts(run) for run in runs]),
            settings=settings,
            differences=[(name, cells) for name, cells in settings if len(set(cells)) > 1],
            data={"runs": [{name: getattr(run, name) for name in IN_THE_BROWSER} for run in runs], "charts": charts},
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            plotly=Markup(get_plotlyjs()),
        )
    )


def of_smoke_figures(chart: Mapping[str, Any], runs: Sequence[Run]) -> bool:
    """True if the chart shows held-out figures of a run with eval.limit."""
    held_out = {metric for metric, _ in chart["series"] if metric.startswith("eval/")}
    return any(run.limit and held_out & run.metrics.keys() for run in runs)


def environment(folder: Path) -> Environment:
    """Returns a jinja2 environment for the templates of a folder and this one. It escapes everything."""
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # the default sorts keys; signals keep the reward's order
    environment.globals["nonce"] = secrets.token_hex(16)
    return environment


def table(columns: Sequence[Mapping[str, object]]) -> list[tuple[str, list[str]]]:
    """Returns rows of (title, a cell for each column); the cell is empty where a column lacks the title."""
    titles = dict.fromkeys(title for column in columns for title in column)
    return [(title, [str(column.get(title, "")) for column in columns]) for title in titles]


def facts(run: Run) -> dict[str, str]:
    """Row title -> this run's cell in the table at the top. Rows that were not measured are missing."""
    columns = {name: [value for value in column if value is not None] for name, column in run.metrics.items()}
    state = "finished" if run.finished else "running or stopped"
    cells = {"State": f"{state}, {max(run.steps, default=0)} of {run.config.get('steps', '?')} steps"}
    if seconds := columns.get("time/step"):  # not the clock, whose pauses would count
        cells["Time, evaluations included"] = str(timedelta(seconds=round(sum(seconds))))
    if reward := columns.get("reward/mean"):
        cells[f"Reward, first step → mean of last {RECENT}"] = f"{reward[0]:.3f} → {fmean(reward[-RECENT:]):.3f}"
    for way in ("sampled", "greedy"):
        if curve := columns.get(f"eval/{way}_accuracy"):
            best = f"{curve[0]:.1%} → {max(curve):.1%} → {curve[-1]:.1%}"
            cells[f"Held-out {way} accuracy, first → best → last"] = best + star(run.limit)
    for name, after in run.summary.get("after", {}).items():
        before = run.summary["before"][name]
        figures = f"{as_text(name, before)} → {as_text(name, after)}{star(run.limit)}"
        cells[f"Test problems, {name.replace('_', ' ')}, before → after"] = figures
    return cells
