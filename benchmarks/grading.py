"""How fast the grader is, and how often it is wrong.

    python -m benchmarks.grading speed                        completions a second, beside math-verify
    python -m benchmarks.grading pairs                        tests/rewards/pairs.jsonl, beside math-verify
    python -m benchmarks.grading truths [--data-dir DIR]      the ground truths of dsr_sub and the six benchmarks

`truths`: each ground truth must be readable, must be right when it is spelled another way, and must be wrong after a
mutation: one digit changed anywhere, or one letter of a name that stands there more than once (a name changed
throughout may be the same answer). Whatever disagrees is listed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import math_verify
import pyarrow.parquet

from grpo.errors import UserError
from grpo.evaluation.benchmarks import SETS, load
from rewards import MultiSignalMathReward, Verifier

Case = tuple[str, str]  # completion, ground truth
PAIRS = Path(__file__).resolve().parent.parent / "tests" / "rewards" / "pairs.jsonl"
NOT_ONE_EXPRESSION = re.compile(
    r"[,=<>%$:\[]|\\(?:text|mbox|mathrm|circ|in|begin|cup|leq?|geq?|neq?|geqslant|angle)(?![a-z])|\d_|_\{?\d"
)
"""Words, units, lists, intervals, relations, matrices, bases: a factor of 1 would not be the same answer"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "pairs", "truths"])
    parser.add_argument("--data-dir", help="truths: folder with the data files [$GRPO_DATA_DIR, else downloaded once]")
    parser.add_argument("--workers", type=int, default=2, help="verifier processes [2]")
    args = parser.parse_args(argv)
    try:
        {"speed": speed, "pairs": pairs, "truths": truths}[args.part](args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def plain(cases: list[Case]) -> list[bool]:
    """math-verify as its README uses it."""
    return [math_verify.verify(math_verify.parse(f"${truth}$"), math_verify.parse(text)) for text, truth in cases]


# ---- labelled pairs


def labelled() -> list[dict]:
    return [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]


def speed(args: argparse.Namespace) -> None:
    """Completions a second: with the answers of all pairs, and with those to pi1 as rollouts repeat them."""
    rng, rows = random.Random(1), [(row["answer"], row["truth"]) for row in labelled()]
    repeated = rng.choices(rows[:20], [1 / (rank + 1) for rank in range(20)], k=len(rows))
    reward = MultiSignalMathReward(workers=args.workers)
    for _ in range(2):  # the server goes on warming up after the first
        reward.verifier.ask([(r"\sqrt{2}", r"\sqrt{3}")])
    contenders: dict[str, Callable[[list[Case]], list[bool]]] = {
        "math-verify": plain,
        f"ours, {args.workers} workers": lambda cases: [s.verify == 1 for s in reward.score_batch(*zip(*cases))],  # noqa: B905
    }
    print("| list | contender | completions/s | found right |\n|---|---|---|---|")
    with closing(reward):
        for title, answers in (("20 answers", repeated), ("all distinct", rows)):
            cases = [(completion(rng, answer), truth) for answer, truth in answers]
            for name, score in contenders.items():
                started = time.perf_counter()
                right = sum(score(cases))
                rate = len(cases) / (time.perf_counter() - started)
                print(f"| {title} | {name} | {rate:,.0f} | {right} |", flush=True)


def completion(rng: random.Random, answer: str) -> str:
    """About 600 characters in the layout that the reward asks for; every completion is a text of its own."""
    steps = " ".join(f"Step {i}: we get {rng.randint(2, 999)} and go on." for i in range(14))
    return f"<think>{steps}</think>\nThe answer is $\\boxed{{{answer}}}$.\n<reflection>It is correct.</reflection>"


def pairs(args: argparse.Namespace) -> None:
    """False positives and negatives, by category."""
    rows = labelled()
    with closing(Verifier(args.workers, timeout_s=10)) as verifier:
        ours = [o == "correct" for o in verifier.check_batch([(row["answer"], row["truth"]) for row in rows])]
    theirs = plain([(rf"\boxed{{{row['answer']}}}", row["truth"]) for row in rows])
    print("| category | pairs | math-verify: false + / - | ours: false + / - |\n|---|---|---|---|")
    for category in ["all", *dict.fromkeys(row["category"] for row in rows)]:
        chosen = [i for i, row in enumerate(rows) if category in ("all", row["category"])]
        equal = {i for i in chosen if rows[i]["equal"]}
        right = [{i for i in chosen if said[i]} for said in (theirs, ours)]
        cells = [f"{len(found - equal)} / {len(equal - found)}" for found in right]
        print(f"| {category} | {len(chosen)} | {cells[0]} | {cells[1]} |")


# ---- ground truths of the data sets


def truths(args: argparse.Namespace) -> None:
    print("| pool | truths | unreadable | right when respelled | mutations | right by mistake | time-outs |")
    print("|---|---|---|---|---|---|---|")
    exceptions = []
    with closing(Verifier(args.workers, timeout_s=30)) as verifier:
        for name, answers in pools(args.data_dir):
            reasons = verifier.why_ungradable(answers)
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
    sys.exit(main())
