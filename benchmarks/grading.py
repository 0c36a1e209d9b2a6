"""How fast the grader is, and how often it is wrong.

    python -m benchmarks.grading speed [--count 4096]         completions a second, beside math-verify
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
from grpo.evaluation.benchmarks import PAPER_PROTOCOL, load
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
    parser.add_argument("--count", type=int, default=4096, help="speed: completions in each list")
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


# ---- speed


def speed(args: argparse.Namespace) -> None:
    """Each contender scores each list once; start-up is not counted."""
    reward = MultiSignalMathReward(workers=args.workers)
    for _ in range(2):  # the server goes on warming up after the first
        reward.verifier.pool.run([(r"\sqrt{2}", r"\sqrt{3}")])
    contenders: dict[str, Callable[[list[Case]], list[bool]]] = {
        "math-verify": plain,
        f"ours, {args.workers} workers": lambda cases: [s.verify == 1 for s in reward.score_batch(*zip(*cases))],  # noqa: B905
    }
    print("| list | contender | completions/s | found right |\n|---|---|---|---|")
    with closing(reward):
        for title, cases in (("20 answers", few_answers(args.count)), ("all distinct", distinct_answers(args.count))):
            for name, score in contenders.items():
                started = time.perf_counter()
                right = sum(score(cases))
                print(
                    f"| {title} | {name} | {len(cases) / (time.perf_counter() - started):,.0f} | {right} |", flush=True
                )


def completion(rng: random.Random, answer: str) -> str:
    """About 600 characters in the layout that the reward asks for; every completion is a text of its own."""
    steps = " ".join(f"Step {i}: we get {rng.randint(2, 999)} and go on." for i in range(14))
    return f"<think>{steps}</think>\nThe answer is $\\boxed{{{answer}}}$.\n<reflection>It is correct.</reflection>"


def few_answers(count: int) -> list[Case]:
    """20 distinct answers to the one-shot example, spread as a group of rollouts spreads them."""
    rng = random.Random(1)
    answers = [
        "12.8", "12.80", r"\frac{64}{5}", "64/5", r"12\frac{4}{5}", "12.8 \\text{ pounds}", "12.7", "12.79", "12.69",
        r"\sqrt[3]{2048}", r"8\sqrt[3]{4}", "13", "12", "16", "-12.8", "6.4", "25.6", r"\frac{32}{5}", r"2^{3.5}",
        "10.24",
    ]  # fmt: skip
    weights = [1 / (rank + 1) for rank in range(20)]
    return [(completion(rng, answer), "12.8") for answer in rng.choices(answers, weights, k=count)]


def distinct_answers(count: int) -> list[Case]:
    """Surds, polynomials, multiples of pi, tuples and intervals, no two alike; half of them right."""
    rng = random.Random(2)
    cases: dict[str, str] = {}
    while len(cases) < count:
        a, b, c = rng.randint(2, 99), rng.choice([2, 3, 5, 6, 7, 10, 11, 13]), rng.randint(2, 99)
        off = rng.choice([0, 1])
        answer, truth = rng.choice(
            [
                (rf"\frac{{{a}\sqrt{{{b}}}}}{{{c}}}", rf"\frac{{{a + off}}}{{{c}}}\sqrt{{{b}}}"),
                (f"(x+{a})(x-{c})", f"x^2+{a - c + off}x-{a * c}".replace("+-", "-")),
                (rf"\left({a}, \frac{{{b}\pi}}{{{c}}}\right)", rf"({a + off}, \frac{{{b}}}{{{c}}}\pi)"),
                (rf"[{-a}, {c}\sqrt{{{b}}})", rf"[{-a - off}, \sqrt{{{c * c * b}}})"),
            ]
        )
        cases.setdefault(answer, truth)
    return [(completion(rng, answer), truth) for answer, truth in cases.items()]


# ---- labelled pairs


def pairs(args: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    with closing(Verifier(args.workers, timeout_s=10)) as verifier:
        ours = [o == "correct" for o in verifier.check_batch([(row["answer"], row["truth"]) for row in rows])]
    said = {"math-verify": plain([(rf"\boxed{{{row['answer']}}}", row["truth"]) for row in rows]), "ours": ours}
    print("| category | pairs | math-verify: false + / - | ours: false + / - |\n|---|---|---|---|")
    for category in ["all", *dict.fromkeys(row["category"] for row in rows)]:
        chosen = [i for i, row in enumerate(rows) if category in ("all", row["category"])]
        equal = {i for i in chosen if rows[i]["equal"]}
        right = {name: {i for i in chosen if verdicts[i]} for name, verdicts in said.items()}
        cells = [f"{len(found - equal)} / {len(equal - found)}" for found in right.values()]
        print(f"| {category} | {len(chosen)} | {cells[0]} | {cells[1]} |")


# ---- ground truths of the data sets


def truths(args: argparse.Namespace) -> None:
    print("pool           truths unreadable   respelled right   mutations   right by mistake   time-outs")
    exceptions, every = [], [0, 0, 0]
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
            counts = [len(mutants), len(taken), outcomes.count("timeout")]
            every = [a + b for a, b in zip(every, counts, strict=True)]
            again_right = f"{len(graded) - len(missed)}/{len(graded)}"
            print(
                f"{name:14} {len(answers):6} {len(answers) - len(graded):10} {again_right:>17} {counts[0]:11} "
                f"{counts[1]:18} {counts[2]:11}",
                flush=True,
            )
            exceptions += [f"{name}: refused {answer} for {truth}" for answer, truth in missed]
            exceptions += [f"{name}: {answer} counts as {truth}" for answer, truth in taken]
    print(f"mutations {every[0]}, right by mistake {every[1]}, time-outs {every[2]}")
    print("\n".join(["exceptions:", *exceptions] if exceptions else ["no exceptions"]))


def pools(data_dir: str | None) -> Iterator[tuple[str, list[str]]]:
    """Each pool's different ground truths."""
    for name in PAPER_PROTOCOL:
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
