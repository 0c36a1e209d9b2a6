"""The charts of charts.yaml, whose head explains its fields.

A metric that no chart names gets one under "Everything else", so every logged metric is drawn.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

CHARTS = Path(__file__).with_name("charts.yaml")
REST = "Everything else"
NOT_DRAWN = {"time", "time/step", "reward/std"}
"""Logged: the clock, the sum of the phases, and the spread over all groups together."""


def charts_for(metrics: Collection[str]) -> list[dict[str, Any]]:
    """The charts that have something to show, each reduced to the series that exist: (metric, label)."""
    signals = [m.removeprefix("signal/") for m in sorted(metrics) if f"{m}_group_std" in metrics]
    charts = []
    for section, entries in yaml.safe_load(CHARTS.read_text(encoding="utf-8")).items():
        for entry in entries:
            for signal in signals if "{name}" in entry["title"] else [""]:
                named = {metric.replace("{name}", signal): label for metric, label in entry["series"].items()}
                series = [(metric, label) for metric, label in named.items() if metric in metrics]
                title = entry["title"].replace("{name}", signal)
                charts.append(entry | {"section": section, "title": title, "series": series})
    drawn = NOT_DRAWN | {metric for chart in charts for metric, _ in chart["series"]}
    rest = [{"section": REST, "title": m, "series": [(m, m)]} for m in sorted(set(metrics) - drawn)]
    return [chart for chart in charts + rest if chart["series"]]
