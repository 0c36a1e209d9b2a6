"""python -m grpo.plan --preset h100 --gpu h100: the plan for a card that is not in this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from grpo.cli import parse_args
from grpo.errors import UserError, one_line
from grpo.plan import decide, describe
from grpo.plan.preflight import misfit
from grpo.plan.time import card_named, this_card
from grpo.settings import short


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    """[--gpu NAME] and any option of train.py. Returns 2 where the run does not fit."""
    own = argparse.ArgumentParser(prog="python -m grpo.plan", add_help=False, allow_abbrev=False)
    own.add_argument("--gpu")
    given, rest = own.parse_known_args(argv)
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = card_named(given.gpu) if given.gpu else this_card(here)
    plan, notes = decide(parse_args(rest, "l4").config, card)
    print("\n".join([short(plan.config), describe(plan), *notes]))
    if line := misfit(plan):
        raise UserError(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
