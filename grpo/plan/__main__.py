"""python -m grpo.plan --preset h100 --gpu h100: the plan for a card that is not in this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from grpo.arguments import parse_args
from grpo.errors import one_line
from grpo.plan import check_fits, decide
from grpo.plan.duration import card_named, this_card
from grpo.plan.text import describe


@one_line
def main(argv: Sequence[str]) -> int:
    """[--gpu NAME] and any option of train.py. Returns 2 where the run does not fit."""
    own = argparse.ArgumentParser(prog="python -m grpo.plan", add_help=False, allow_abbrev=False)
    own.add_argument("--gpu")
    given, rest = own.parse_known_args(argv)
    config = parse_args(rest, "l4").config
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    card = card_named(given.gpu) if given.gpu else this_card(device)
    plan, notes = decide(config, card)
    print("\n".join([describe(plan), *notes]))
    check_fits(plan)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
