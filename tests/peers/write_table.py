"""Writes the table of docs/measurements/peers.md: `.venv-peers/bin/python tests/peers/write_table.py`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from cells import END, PAGE, START, tables  # noqa: E402

if __name__ == "__main__":
    page = PAGE.read_text()
    before, after = page.partition(START)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n\n{tables()[1]}\n\n{END}{after}")
