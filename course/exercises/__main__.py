"""python -m course.exercises [1 ... 7] [--solutions]: checks the answers and reports mistakes in words."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from types import ModuleType

from course.exercises.check_packing import check_packing
from course.exercises.check_reward import check_hacked_reward
from course.exercises.checks import (
    check_advantage,
    check_k3,
    check_normaliser,
    check_ratio_and_clip,
    check_sequence_ratio,
)
from course.exercises.judge import Wrong

EXERCISES = {
    "e1_advantage": check_advantage,
    "e2_ratio_and_clip": check_ratio_and_clip,
    "e3_normaliser": check_normaliser,
    "e4_k3": check_k3,
    "e5_packing": check_packing,
    "e6_hacked_reward": check_hacked_reward,
    "e7_sequence_ratio": check_sequence_ratio,
}
FUNCTIONS = {
    "e1_advantage": ("group_advantages",),
    "e2_ratio_and_clip": ("policy_loss",),
    "e3_normaliser": ("step_loss",),
    "e4_k3": ("k3",),
    "e5_packing": ("pack",),
    "e6_hacked_reward": ("cheap", "repaired"),
    "e7_sequence_ratio": ("sequence_ratio",),
}


def load(folder: str, name: str) -> ModuleType:
    """The student's module. Raises Wrong where Python cannot run it, or where a function is not there any more."""
    try:
        module = importlib.import_module(f"{folder}.{name}")
    except Exception as error:
        raise Wrong(f"Python cannot import {name}.py: {type(error).__name__}: {error}") from error
    for function in FUNCTIONS[name]:
        if not callable(getattr(module, function, None)):
            raise Wrong(f"{name}.py has no function {function}: bring its `def` line back")
    return module


def main(argv: list[str]) -> int:
    numbers = [name[1] for name in EXERCISES]
    parser = argparse.ArgumentParser(prog="python -m course.exercises", description="Check the exercises.")
    parser.add_argument("numbers", nargs="*", metavar="N", help="which exercises (default: all)")
    parser.add_argument("--solutions", action="store_true", help="check the solutions instead")
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.numbers) - set(numbers)):
        parser.error(f"there is no exercise {', '.join(unknown)}; they are numbered {numbers[0]} to {numbers[-1]}")
    folder = "course.exercises.solutions" if args.solutions else "course.exercises"
    failed = 0
    for name, check in EXERCISES.items():
        if args.numbers and name[1] not in args.numbers:
            continue
        print(f"{name}.py", flush=True)
        start = time.perf_counter()
        try:
            check(load(folder, name))
        except Wrong as wrong:
            failed += 1
            print(f"  NOT YET: {wrong}")
        else:
            print(f"  right ({time.perf_counter() - start:.1f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
