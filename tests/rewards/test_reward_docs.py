"""The example table of docs/rewards.md is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rewards import MultiSignalMathReward

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"
ROWS = re.findall(r"^\| `(.*)` \| ([01]) \| ([01]) \| ([01]) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_row_of_the_page(row):
    score = MultiSignalMathReward()(row[0], "12.8")
    assert tuple(score.signals.values()) == tuple(map(float, row[1:]))


def test_the_page_has_its_table():
    assert len(ROWS) == 15
