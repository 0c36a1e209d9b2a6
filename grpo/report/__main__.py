"""The command line of the report: `python -m grpo.report runs/A [runs/B ...] [--out FILE]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.cli import Parser, check_ranges
from grpo.errors import UserError, one_line
from grpo.report.page import render
from grpo.report.read import Run
from grpo.run import files
from grpo.terminal import notify


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    cli = Parser(prog="python -m grpo.report", description="Run folders -> one offline HTML page.")
    cli.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder, such as runs/NAME; several are overlaid"
    )
    cli.add_argument("--out", type=Path, help="[report.html in the run's folder; of several, beside the first]")
    cli.add_argument("--completions", type=int, default=1024, help="of each run, newest step first [%(default)s]")
    args = cli.parse_args(argv)
    check_ranges(args, {"completions": (1, 1e9)})
    folders = list({folder.resolve(): folder for folder in args.runs}.values())
    runs = []
    for folder in folders:
        try:
            runs.append(Run(folder, args.completions))
        except UserError as error:  # runs/* also names what lies beside runs, such as a start that was killed
            if not folder.exists() or (folder is folders[-1] and not runs):
                raise
            notify(f"skipped: {error}")
    names = [run.name for run in runs]
    for run in runs:  # runs/A and other/A are called by their paths
        run.name = str(run.folder) if names.count(run.name) > 1 else run.name
    out = args.out or (folders[0] if len(folders) == 1 else folders[0].resolve().parent) / "report.html"
    files.write(out, render(runs))
    print(f"{out} ({out.stat().st_size / 2**20:.1f} MiB): open it in a browser, no network is needed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
