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
PLAIN = {"caption": "", "kind": "lines", "unit": "", "log": False, "markers": False}


def charts_for(metrics: Collection[str]) -> list[dict[str, Any]]:
    """The charts that have something to show, by section, each reduced to the series that exist: (metric, label)."""
    sections = yaml.safe_load(CHARTS.read_text(encoding="utf-8"))
    signals = sorted(
        m.removeprefix("signal/") for m in metrics if m.startswith("signal/") and not m.endswith("_group_std")
    )
    charts = []
    named = set(NOT_DRAWN)
    for section, entries in sections.items():
        for entry in entries:
            for name in signals if "{name}" in entry["title"] else [""]:
                title = entry["title"].replace("{name}", name)
                series = [(metric.replace("{name}", name), label) for metric, label in entry["series"].items()]
                series = [(metric, label) for metric, label in series if metric in metrics]
                named |= {metric for metric, _ in series}
                if series:
                    charts.append(PLAIN | entry | {"section": section, "title": title, "series": series})
    rest = [{"section": REST, "title": m, "series": [(m, m)]} for m in sorted(set(metrics) - named)]
    return charts + [PLAIN | chart for chart in rest]
