"""Renders runs as one HTML page and writes it to disk.

The page holds plotly.js, style, scripts and data, so it needs no network. Three walls stand between a model's text and
the browser. jinja2 escapes the HTML. The data is JSON with `<`, `>`, `&` and `'` as \\u escapes, so no `</script>` can
end it. A Content-Security-Policy runs only the scripts whose hashes it names, and forbids every connection.

The charts are drawn in the browser, because a reader switches runs on and off and changes the colour scheme there, and
because each metric then lies in the page once.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from grpo.errors import UserError
from grpo.report.charts import charts_for
from grpo.report.read import Run
from grpo.run import files
from grpo.settings import dotted

HERE = Path(__file__).resolve().parent
SCRIPTS = ("text.js", "charts.js", "browser.js")
IN_THE_BROWSER = ("name", "steps", "metrics", "prompts", "completions")
RECENT = 10
"""Number of last steps whose mean reward the table shows."""


def render(runs: Sequence[Run]) -> str:
    planned = charts_for({metric for run in runs for metric in run.metrics})
    folded = {chart["title"]: value for chart in planned if (value := constant(runs, chart)) is not None}
    drawn = [chart for chart in planned if chart["title"] not in folded]
    charts = [{"id": f"chart-{number}"} | chart for number, chart in enumerate(drawn)]
    scripts = [get_plotlyjs(), *((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)]
    return (
        environment(HERE)
        .get_template("page.html.j2")
        .render(
            runs=runs,
            overview=overview(runs),
            settings=[(run.name, yaml.safe_dump(run.config, sort_keys=False)) for run in runs if run.config],
            differences=config_differences(runs),
            sections=[(name, list(group)) for name, group in groupby(charts, key=lambda chart: chart["section"])],
            folded=folded,
            data={"runs": [{name: getattr(run, name) for name in IN_THE_BROWSER} for run in runs], "charts": charts},
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            scripts=[Markup(script) for script in scripts],
            hashes=hashes(scripts),
        )
    )


def environment(folder: Path) -> Environment:
    """Returns a jinja2 environment for the templates of a folder. It escapes everything."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # the default sorts keys; signals keep the reward's order
    return environment


def hashes(scripts: Sequence[str]) -> str:
    """Returns the sources that let the Content-Security-Policy run these scripts and no other."""
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)


def constant(runs: Sequence[Run], chart: dict[str, Any]) -> str | None:
    """Returns the one value that a chart shows throughout, "not measured" without values, None for a curve."""
    columns = [column for run in runs for metric, _ in chart["series"] if (column := values(run, metric))]
    if not columns:
        return "not measured"
    distinct = list(dict.fromkeys(value for column in columns for value in column))
    moves = any(len(set(column)) > 1 for column in columns)
    return None if moves or max(map(len, columns)) < 3 else ", ".join(f"{value:g}" for value in distinct)


def overview(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Returns the rows of the table at the top: (title, a cell for each run)."""
    columns = [facts(run) for run in runs]
    titles = dict.fromkeys(title for column in columns for title in column)
    return [(title, [column.get(title, "") for column in columns]) for title in titles]


def facts(run: Run) -> dict[str, str]:
    """Row title -> this run's cell in the table at the top. Rows that were not measured are missing."""
    done = max(run.steps, default=0)
    planned = run.config.get("steps", "?")
    cells = {"State": f"{'finished' if run.finished else 'running or stopped'}, {done} of {planned} steps"}
    if times := values(run, "time"):
        cells["Last step written"] = datetime.fromtimestamp(max(times), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if steps := values(run, "time/step"):  # not the clock, whose pauses would count
        cells["Time, evaluations included"] = str(timedelta(seconds=round(sum(steps))))
    if reward := values(run, "reward/mean"):
        title = f"Reward, first step → mean of last {RECENT}"
        cells[title] = f"{reward[0]:.3f} → {fmean(reward[-RECENT:]):.3f}"
    for way in ("sampled", "greedy"):
        if curve := values(run, f"eval/{way}_accuracy"):
            title = f"Held-out {way} accuracy, first → best → last"
            cells[title] = f"{curve[0]:.1%} → {max(curve):.1%} → {curve[-1]:.1%}"
    for name, after in run.summary["after"].items():
        before = run.summary["before"].get(name)
        if "verdict" in name and not before and not after:
            continue  # this run's completions give no verdicts
        title = f"Test problems, {name.replace('_', ' ')}, before → after"
        cells[title] = f"{'?' if before is None else f'{before:.1%}'} → {after:.1%}"
    if rates := values(run, "speed/tokens_per_second"):
        cells["Tokens/s, median"] = f"{median(rates):,.0f}"
    return cells


def values(run: Run, metric: str) -> list[float]:
    return [value for value in run.metrics.get(metric, []) if value is not None]


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Returns the settings in which the runs differ: (dotted name, a value for each run)."""
    trees = [dotted(run.config) for run in runs]
    names = dict.fromkeys(name for tree in trees for name in tree)
    rows = [(name, [str(tree.get(name, "")) for tree in trees]) for name in names]
    return [(name, cells) for name, cells in rows if len(set(cells)) > 1]


def write(page: str, path: Path) -> None:
    """Writes the page completely or not at all.

    Raises:
        UserError: `path` is a folder, or cannot be written.
    """
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file, such as {path / 'report.html'}")
    files.write(path, page)
