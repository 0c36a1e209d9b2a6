"""python -m exercises [1 ... 6] [--solutions]: check the answers, and say what is wrong in words."""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from exercises.check_packing import check_packing
from exercises.check_reward import check_hacked_reward
from exercises.checks import check_advantage, check_k3, check_normaliser, check_ratio_and_clip
from exercises.judge import Wrong

EXERCISES = {
    "e1_advantage": check_advantage,
    "e2_ratio_and_clip": check_ratio_and_clip,
    "e3_normaliser": check_normaliser,
    "e4_k3": check_k3,
    "e5_packing": check_packing,
    "e6_hacked_reward": check_hacked_reward,
}


def main(argv: list[str]) -> int:
    numbers = [name[1] for name in EXERCISES]
    parser = argparse.ArgumentParser(prog="python -m exercises", description="Check the exercises.")
    parser.add_argument(
        "numbers", nargs="*", choices=[*numbers, []], metavar="N", help="which exercises (default: all)"
    )
    parser.add_argument("--solutions", action="store_true", help="check the solutions instead")
    args = parser.parse_args(argv)
    failed = 0
    for name, check in EXERCISES.items():
        if args.numbers and name[1] not in args.numbers:
            continue
        folder, start = "exercises.solutions" if args.solutions else "exercises", time.perf_counter()
        print(f"{name}.py", flush=True)
        try:
            check(importlib.import_module(f"{folder}.{name}"))
        except SyntaxError as error:
            failed += 1
            print(f"  NOT YET: Python cannot read it: {error}")
        except Wrong as wrong:
            failed += 1
            print(f"  NOT YET: {wrong}")
        else:
            print(f"  right ({time.perf_counter() - start:.1f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
