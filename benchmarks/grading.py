"""How long grading takes, and whether the grader knows the benchmarks' own answers.

    python -m benchmarks.grading [--data-dir DIR] [--workers 2]

Every reference answer of the six benchmarks is put in a box and graded against itself, six times over; the same text is
the fast path. Then it is spelled another way (4.5e33 as 4.5 \\times 10^{33}, an expression with a factor of 1, \\frac
as \\dfrac), which must still be right and, for expressions, needs the algebra; and it is graded against the
*next* row's reference, which must be wrong unless the two are equal. Whatever disagrees is listed by name. A reference
that the grader cannot read as mathematics is listed as well: no other spelling of it will be found right.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from contextlib import closing

from grpo.errors import UserError
from grpo.evaluation.benchmarks import PAPER_PROTOCOL, file_of, read_benchmark
from grpo.evaluation.scores import Grade, grade, new_verifier
from rewards import Verifier, check_ground_truth

COPIES = 6
NOT_ONE_EXPRESSION = re.compile(
    r"[,=<>%$\[]|\\(?:text|mbox|circ|in|begin|cup|leq?|geq?|geqslant|angle)(?![a-z])|\d_|_\{?\d"
)
"""Words, units, lists, intervals, relations, matrices, bases: a factor of 1 would not be the same answer"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-dir", help="folder with the benchmark files [$GRPO_DATA_DIR, else downloaded once]")
    parser.add_argument("--workers", type=int, default=2, help="verifier processes [2]")
    args = parser.parse_args(argv)
    try:
        measure(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace) -> None:
    print(f"{os.cpu_count()} cores, {args.workers} workers, {COPIES} x all rows")
    print(f"{'benchmark':14} rows   6 x same    strict  flexible   respelled, wall    next row equal")
    exceptions = []
    with closing(new_verifier(args.workers)) as verifier:
        verifier.check_batch([(r"\sqrt{2}+x", r"x+\sqrt{2}")])  # starts the workers
        for name in PAPER_PROTOCOL:
            answers = [answer for _, answer in read_benchmark(file_of(name, args.data_dir))]
            begun = time.process_time()
            _, grades = timed(answers * COPIES, answers * COPIES, verifier)
            same_s = time.process_time() - begun  # no worker is asked, so this process's CPU time is the cost
            strict, flexible = (sum(getattr(one, c) for one in grades[: len(answers)]) for c in ("strict", "flexible"))
            other_s, other = timed([respelled(answer) for answer in answers], answers, verifier)
            following = answers[1:] + answers[:1]
            _, crossed = timed(answers, following, verifier)
            equal = [pair for *pair, one in zip(answers, following, crossed, strict=True) if one.strict]
            print(
                f"{name:14} {len(answers):4} {same_s:8.3f} s {strict:5}/{len(answers)} {flexible:5}/{len(answers)} "
                f"{sum(one.strict for one in other):5}/{len(answers)} {other_s:6.2f} s {len(equal):9}"
            )
            for row, answer in enumerate(answers):
                if not grades[row].strict:
                    exceptions.append(f"{name} row {row}: {grades[row].outcome}: {answer}")
                if not other[row].strict:
                    exceptions.append(f"{name} row {row}: {other[row].outcome}: {respelled(answer)} for {answer}")
                elif unreadable(answer):
                    exceptions.append(f"{name} row {row}: unreadable, only the same text is right: {answer}")
            exceptions += [f"{name}: {a} counts as {b}" for a, b in equal if a != b]
    print("\n".join(["exceptions:", *exceptions] if exceptions else ["no exceptions"]))


def respelled(answer: str) -> str:
    """The same value in other characters: what a model may well write."""
    if match := re.fullmatch(r"(-?[\d.]+)e([+-]?\d+)", answer):
        return rf"{match[1]} \times 10^{{{int(match[2])}}}"
    if re.fullmatch(r"-?\d+", answer):
        return f"{answer}.0"
    if re.fullmatch(r"-?\d*\.\d+", answer):
        return f"{answer}00"
    if NOT_ONE_EXPRESSION.search(answer):
        return r"\displaystyle " + answer.replace(r"\frac", r"\dfrac")
    return rf"1 \cdot \left({answer}\right)"


def unreadable(answer: str) -> bool:
    try:
        check_ground_truth(answer)
    except ValueError:
        return True
    return False


def timed(answers: list[str], truths: list[str], verifier: Verifier) -> tuple[float, list[Grade]]:
    texts = [f"The answer is $\\boxed{{{answer}}}$." for answer in answers]
    started = time.perf_counter()
    grades = grade(texts, truths, verifier)
    return time.perf_counter() - started, grades


if __name__ == "__main__":
    sys.exit(main())
