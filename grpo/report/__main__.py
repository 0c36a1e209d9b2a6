"""The command line of the report: `python -m grpo.report runs/A [runs/B ...] [--out FILE]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.errors import UserError, one_line
from grpo.report.page import render, write
from grpo.report.read import distinct_names, read_run


@one_line
def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m grpo.report", description="Run folders -> one self-contained HTML page."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder, such as runs/NAME; several are overlaid"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default: report.html in the run's folder; of several runs, beside the first",
    )
    parser.add_argument(
        "--completions",
        type=int,
        default=1024,
        metavar="N",
        help="completions kept of each run, newest step first (%(default)s)",
    )
    options = parser.parse_args(argv)
    if options.completions < 1:
        raise UserError(f"--completions {options.completions} must be at least 1")
    folders = list({folder.resolve(): folder for folder in options.runs}.values())
    runs = [read_run(folder, options.completions) for folder in folders]
    distinct_names(runs)
    out = options.out or (folders[0] if len(folders) == 1 else folders[0].resolve().parent) / "report.html"
    write(render(runs), out)
    print(f"{out} ({out.stat().st_size / 2**20:.1f} MiB): open it in a browser, no network is needed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
