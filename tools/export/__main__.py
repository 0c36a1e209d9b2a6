"""Exports a run: `python -m tools.export verl ...` for another trainer, `merged ...` as a plain model.

Each kind is a module with `add_arguments`, and `export`, which returns the line to print.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.cli import Parser
from grpo.errors import one_line
from tools.export import merged, verl

KINDS = {"merged": merged, "verl": verl}


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    cli = Parser(prog="python -m tools.export", description="KIND --help has the options.")
    cli.add_argument("kind", choices=KINDS)
    kind = KINDS[cli.parse_args(argv[:1]).kind]
    cli = Parser(prog=f"python -m tools.export {argv[0]}", description=(kind.__doc__ or "").partition("\n")[0])
    kind.add_arguments(cli)
    cli.add_argument("--out", type=Path, required=True, metavar="DIR")
    print(kind.export(cli.parse_args(argv[1:])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
