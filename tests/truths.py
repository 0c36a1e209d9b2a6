"""Is the grader right about the ground truths of dsr_sub and the six benchmarks?

    python tests/truths.py [--data-dir DIR]

Each must be readable, must be right when it is spelled another way, and must be wrong after a mutation: one digit
changed anywhere, or one letter of a name that stands there more than once (a name changed throughout may be the same
answer). Whatever disagrees is listed. The test suite tries a sample.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyarrow.parquet

from grpo.evaluation.benchmarks import SETS, load
from rewards import Verifier, check_ground_truths

NOT_ONE_EXPRESSION = re.compile(
    r"[,=<>%$:\[]|\\(?:text|mbox|mathrm|circ|in|begin|cup|leq?|geq?|neq?|geqslant|angle)(?![a-z])|\d_|_\{?\d"
)
"""Words, units, lists, intervals, relations, matrices, bases: a factor of 1 would not be the same answer"""


def truths(workers: int, data_dir: str | None) -> None:
    print("| pool | truths | unreadable | right when respelled | mutations | right by mistake | time-outs |")
    print("|---|---|---|---|---|---|---|")
    exceptions = []
    with closing(Verifier(workers, timeout_s=30)) as verifier:
        for name, answers in pools(data_dir):
            reasons = check_ground_truths(answers, timeout_s=30)
            exceptions += [f"{name}: {reason}" for reason in reasons if reason]
            graded = [answer for answer, reason in zip(answers, reasons, strict=True) if not reason]
            again = [(respelled(answer), answer) for answer in graded]
            missed = [pair for pair, o in zip(again, verifier.check_batch(again), strict=True) if o != "correct"]
            mutants = [(mutant, answer) for answer in graded for mutant in mutations(answer)]
            outcomes = verifier.check_batch(mutants)
            taken = [pair for pair, outcome in zip(mutants, outcomes, strict=True) if outcome == "correct"]
            respelt = f"{len(graded) - len(missed)}/{len(graded)}"
            counts = [len(answers), len(answers) - len(graded), respelt, len(mutants), len(taken)]
            print(f"| {name} | {' | '.join(map(str, counts))} | {outcomes.count('timeout')} |", flush=True)
            exceptions += [f"{name}: refused {answer} for {truth}" for answer, truth in missed]
            exceptions += [f"{name}: {answer} counts as {truth}" for answer, truth in taken]
    print("\n".join(["exceptions:", *exceptions] if exceptions else ["no exceptions"]))


def pools(data_dir: str | None) -> Iterator[tuple[str, list[str]]]:
    """Each pool's different ground truths."""
    for name in SETS["all"]:
        yield name, list(dict.fromkeys(problem.ground_truth for problem in load(name, None, "plain", data_dir)))
    if data_dir and (path := Path(data_dir) / "dsr_sub.parquet").is_file():
        rows = pyarrow.parquet.read_table(path, columns=["reward_model"]).to_pylist()
        yield "dsr_sub", list(dict.fromkeys(row["reward_model"]["ground_truth"] for row in rows))


def mutations(truth: str) -> list[str]:
    """The truth with one digit changed, or one letter of a name that stands in it more than once."""
    changed = [
        truth[:place] + str((int(truth[place]) + step) % 10) + truth[place + 1 :]
        for place in (match.start() for match in re.finditer("[0-9]", truth))
        for step in (1, 5)
    ]
    names = re.sub(r"\\[A-Za-z]+|(?<=text\{)[^}]*|[A-Za-z]{3,}", lambda match: " " * len(match[0]), truth)
    letters = [(match.start(), match[0]) for match in re.finditer("[A-Za-z]", names)]
    for place, letter in letters:
        if names.count(letter) > 1:
            new = next(other for other in "qwmz" if other not in truth)
            present = next((other for _, other in letters if other != letter), new)
            changed += [truth[:place] + other + truth[place + 1 :] for other in (new, present)]
    return list(dict.fromkeys(changed))


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


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data-dir", help="folder with the data files [$GRPO_DATA_DIR, else downloaded once]")
    cli.add_argument("--workers", type=int, default=2, help="verifier processes [2]")
    given = cli.parse_args()
    truths(given.workers, given.data_dir)
