"""Runs -> the text of one HTML page, and the page -> disk.

The page holds everything: plotly.js, style, script and data. Three walls stand between a model's text and the
browser: jinja2 escapes what is in the HTML, the data is JSON with `<`, `>`, `&` and `'` as \\u escapes (so no
`</script>` can end it), and a Content-Security-Policy runs only the scripts whose hashes it names and
connects to nothing.
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
"""Steps that "now" is the mean of."""


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
            verdicts=[(run.name, cells) for run in runs if (cells := verdict_table(run))],
            settings=[(run.name, yaml.safe_dump(run.config, sort_keys=False)) for run in runs if run.config],
            differences=config_differences(runs),
            sections=[(name, list(group)) for name, group in groupby(charts, key=lambda chart: chart["section"])],
            folded=folded,
            data={"runs": [{name: getattr(run, name) for name in IN_THE_BROWSER} for run in runs], "charts": charts},
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            recent=RECENT,
            style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            scripts=[Markup(script) for script in scripts],
            hashes=hashes(scripts),
        )
    )


def environment(folder: Path) -> Environment:
    """Templates of a folder, everything in them escaped."""
    found = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {}  # the default sorts keys; signals keep the reward's order
    return found


def hashes(scripts: Sequence[str]) -> str:
    """What the Content-Security-Policy lets run: these scripts and no other."""
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)


def constant(runs: Sequence[Run], chart: dict[str, Any]) -> str | None:
    """What a chart would show from beginning to end, where that is one value; "not measured" where there is none."""
    columns = [column for run in runs for metric, _ in chart["series"] if (column := values(run, metric))]
    if not columns:
        return "not measured"
    distinct = list(dict.fromkeys(value for column in columns for value in column))
    moves = any(len(set(column)) > 1 for column in columns)
    return None if moves or max(map(len, columns)) < 3 else ", ".join(f"{value:g}" for value in distinct)


def overview(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The table at the top: (row title, one cell a run)."""
    columns = [facts(run) for run in runs]
    titles = dict.fromkeys(title for column in columns for title in column)
    return [(title, [column.get(title, "") for column in columns]) for title in titles]


def facts(run: Run) -> dict[str, str]:
    """Row title -> what the table at the top says of this run; what was not measured is left out."""
    done, planned = max(run.steps, default=0), run.config.get("steps", "?")
    found = {"State": f"{'finished' if run.finished else 'going or stopped'}, {done} of {planned} steps"}
    if times := values(run, "time"):
        found["Last step written"] = datetime.fromtimestamp(max(times), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if steps := values(run, "time/step"):  # not the clock, whose pauses would count
        found["Time, evaluations included"] = str(timedelta(seconds=round(sum(steps))))
    if reward := values(run, "reward/mean"):
        title = f"Reward, first step → mean of last {RECENT}"
        found[title] = f"{reward[0]:.3f} → {fmean(reward[-RECENT:]):.3f}"
    for way in ("sampled", "greedy"):
        if curve := values(run, f"eval/{way}_accuracy"):
            title = f"Held-out {way} accuracy, first → best → last"
            found[title] = f"{curve[0]:.1%} → {max(curve):.1%} → {curve[-1]:.1%}"
    for name, after in run.summary["after"].items():
        before = run.summary["before"].get(name)
        title = f"Test half, {name.replace('_', ' ')}, before → after"
        found[title] = f"{'?' if before is None else f'{before:.1%}'} → {after:.1%}"
    if rates := values(run, "speed/tokens_per_second"):
        found["Tokens/s, median"] = f"{median(rates):,.0f}"
    return found


def values(run: Run, metric: str) -> list[float]:
    return [value for value in run.metrics.get(metric, []) if value is not None]


def verdict_table(run: Run) -> dict[str, str]:
    """Cell -> share over the last steps; empty where the reward gives no verdicts."""
    cells = ("right_says_correct", "right_says_wrong", "wrong_says_correct", "wrong_says_wrong", "none")
    recent = {cell: values(run, f"verdict/{cell}")[-RECENT:] for cell in cells}
    table = {cell: f"{fmean(found):.1%}" if found else "" for cell, found in recent.items()}
    return table if any(table.values()) else {}


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings in which the runs differ: (dotted name, one value a run)."""
    trees = [dotted(run.config) for run in runs]
    names = dict.fromkeys(name for tree in trees for name in tree)
    rows = [(name, [str(tree.get(name, "")) for tree in trees]) for name in names]
    return [(name, cells) for name, cells in rows if len(set(cells)) > 1]


def write(page: str, path: Path) -> None:
    """All or nothing.

    Raises:
        UserError: `path` is a folder, or cannot be written.
    """
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file, such as {path / 'report.html'}")
    with files.writing(path.parent):
        files.write(path, page)
