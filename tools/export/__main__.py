"""Exports a run: `python -m tools.export KIND ... --out DIR`.

    hub      a folder for `hf upload`: the trained model and a model card written from the run
    merged   the trained model as a plain Hugging Face folder
    verl     data, reward and settings for verl

Each kind is a module with `add_arguments`, and `write`, which fills a new folder and returns the line to print.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.cli import Parser
from grpo.errors import UserError, one_line
from tools.export import hub, merged, verl

KINDS = {"hub": hub, "merged": merged, "verl": verl}


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    """Writes to a temporary folder first, so a folder named --out is complete."""
    cli = Parser(prog="python -m tools.export", description="KIND --help has the options.")
    cli.add_argument("kind", choices=KINDS)
    kind = KINDS[cli.parse_args(argv[:1]).kind]
    cli = Parser(prog=f"python -m tools.export {argv[0]}", description=(kind.__doc__ or "").partition("\n")[0])
    kind.add_arguments(cli)
    cli.add_argument("--trust-remote-code", action="store_true", help="let the model run the Python that it brings")
    cli.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = cli.parse_args(argv[1:])
    if args.out.exists():
        raise UserError(f"{args.out} exists; choose another --out")
    unfinished = args.out.with_name(f".{args.out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        line = kind.write(args, unfinished)
        unfinished.rename(args.out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
