"""How fast the grader is, and how often it is wrong on tests/rewards/pairs.jsonl, beside math-verify.

python -m benchmarks.grading speed        completions a second
python -m benchmarks.grading pairs        false positives and negatives by category
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import math_verify

from rewards import MultiSignalMathReward, Verifier

Case = tuple[str, str]  # completion, ground truth
PAIRS = Path(__file__).resolve().parent.parent / "tests" / "rewards" / "pairs.jsonl"


def plain(cases: list[Case]) -> list[bool]:
    """math-verify as its README uses it."""
    return [math_verify.verify(math_verify.parse(f"${truth}$"), math_verify.parse(text)) for text, truth in cases]


def labelled() -> list[dict]:
    return [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]


def speed(workers: int) -> None:
    """Completions a second: with the answers of all pairs, and with those to pi1 as rollouts repeat them."""
    rng, rows = random.Random(1), [(row["answer"], row["truth"]) for row in labelled()]
    repeated = rng.choices(rows[:20], [1 / (rank + 1) for rank in range(20)], k=len(rows))
    reward = MultiSignalMathReward(workers=workers)
    for _ in range(2):  # the server goes on warming up after the first
        reward.verifier.ask([(r"\sqrt{2}", r"\sqrt{3}")])
    contenders: dict[str, Callable[[list[Case]], list[bool]]] = {
        "math-verify": plain,
        f"ours, {workers} workers": lambda cases: [s.verify == 1 for s in reward.score_batch(*zip(*cases))],  # noqa: B905
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


def pairs(workers: int) -> None:
    """False positives and negatives, by category."""
    rows = labelled()
    with closing(Verifier(workers, timeout_s=10)) as verifier:
        ours = [o == "correct" for o in verifier.check_batch([(row["answer"], row["truth"]) for row in rows])]
    theirs = plain([(rf"\boxed{{{row['answer']}}}", row["truth"]) for row in rows])
    print("| category | pairs | math-verify: false + / - | ours: false + / - |\n|---|---|---|---|")
    for category in ["all", *dict.fromkeys(row["category"] for row in rows)]:
        chosen = [i for i, row in enumerate(rows) if category in ("all", row["category"])]
        equal = {i for i in chosen if rows[i]["equal"]}
        right = [{i for i in chosen if said[i]} for said in (theirs, ours)]
        cells = [f"{len(found - equal)} / {len(equal - found)}" for found in right]
        print(f"| {category} | {len(chosen)} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("part", choices=["speed", "pairs"])
    cli.add_argument("--workers", type=int, default=2, help="verifier processes [2]")
    given = cli.parse_args()
    {"speed": speed, "pairs": pairs}[given.part](given.workers)
