"""python -m grpo.plan --preset h100 --gpu h100: the plan for a GPU that is not in this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from grpo.cli import parse_args
from grpo.engines.base import choose_device
from grpo.errors import UserError, one_line
from grpo.plan.hardware import hardware_named, this_hardware
from grpo.plan.planner import decide, describe
from grpo.plan.preflight import fit_error
from grpo.settings import short


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    """[--gpu NAME] and any option of train.py. Returns 2 if the run does not fit."""
    cli = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    cli.add_argument("--gpu")
    args, options = cli.parse_known_args(argv)
    config = parse_args(options, "l4").config
    plan = decide(config, hardware_named(args.gpu) if args.gpu else this_hardware(choose_device(config.device)))
    print(short(plan.config), *describe(plan), sep="\n")
    if line := fit_error(plan):
        raise UserError(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
