"""The command line of the report: `python -m grpo.report runs/A [runs/B ...] [--out FILE]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.cli import Parser
from grpo.errors import UserError, one_line
from grpo.report.page import render, write
from grpo.report.read import read_run
from grpo.terminal import escape_control


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    cli = Parser(prog="python -m grpo.report", description="Run folders -> one offline HTML page.")
    cli.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder, such as runs/NAME; several are overlaid"
    )
    cli.add_argument("--out", type=Path, help="[report.html in the run's folder; of several, beside the first]")
    cli.add_argument("--completions", type=int, default=1024, help="of each run, newest step first [%(default)s]")
    args = cli.parse_args(argv)
    if args.completions < 1:
        raise UserError(f"--completions {args.completions} must be at least 1")
    folders = list({folder.resolve(): folder for folder in args.runs}.values())
    runs = []
    skipped = []
    for folder in folders:
        try:
            runs.append(read_run(folder, args.completions))
        except UserError as error:  # runs/* also names what lies beside runs, such as a start that was killed
            if not folder.exists():
                raise
            skipped.append(str(error))
    if not runs:
        raise UserError("; ".join(skipped))
    for line in skipped:
        print(f"skipped: {escape_control(line)}", file=sys.stderr)
    names = [run.name for run in runs]
    for run in runs:  # runs/A and other/A are called by their paths
        run.name = str(run.folder) if names.count(run.name) > 1 else run.name
    out = args.out or (folders[0] if len(folders) == 1 else folders[0].resolve().parent) / "report.html"
    write(render(runs), out)
    print(f"{out} ({out.stat().st_size / 2**20:.1f} MiB): open it in a browser, no network is needed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
