"""Speed of the grader, and its errors on tests/rewards/pairs.jsonl, beside math-verify.

python -m benchmarks.grading speed        completions a second
python -m benchmarks.grading pairs        false positives and negatives by category
python -m benchmarks.grading truths       seconds to check 8,000 ground truths of science, first and again
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import math_verify

from rewards import MultiSignalMathReward, Verifier, check_ground_truths

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
    for _ in range(2):  # the server still warms up after the first
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


UNITS = "m s kg N J W V Pa K mol Hz cm km mL days apples m/s m/s^2 kJ/mol cm^2 kg/m^3 J/(mol·K)"
WORDS = "oxidation reduction mitosis meiosis anode cathode covalent ionic convection diffusion"
SHAPES = [
    lambda rng, n: rf"{n / 10:.1f}\text{{ {rng.choice(UNITS.split())}}}",
    lambda rng, n: f"{n} {rng.choice(UNITS.split())}",
    lambda rng, n: rf"{n % 90 / 10 + 1:.2f} \times 10^{{{n % 40 - 20}}} \text{{ {rng.choice(UNITS.split())}}}",
    lambda rng, n: rf"{n}\,\mathrm{{{rng.choice(UNITS.split())}}}",
    lambda rng, n: rf"\frac{{{n} m v^2}}{{{rng.randint(2, 9)} r}}",
    lambda rng, n: rf"{n} \sqrt{{{rng.randint(2, 99)}}} \text{{ cm}}",
    lambda rng, n: rf"x = {n} e^{{-{rng.randint(2, 9)} t}}",
    lambda rng, n: f"C_{n % 40 + 2}H_{{{n}}}O_{rng.randint(2, 9)}",
    lambda rng, n: f"{rng.choice(WORDS.split())} of type {chr(65 + n % 26)}",
    lambda rng, n: f"{n}-{n + rng.randint(1, 99)}",
]
"""Ground truths as data sets of science have them; a third of them are words, texts of a kind or algebra"""


def truths(workers: int) -> None:
    """Seconds to check 8,000 different ground truths for the first time, and again from the cache.

    Processor time counts this process and the workers.
    """
    rng, texts = random.Random(1), {}
    while len(texts) < 8000:
        texts[rng.choice(SHAPES)(rng, rng.randint(1, 10**5))] = None
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for title in ("first", "again"):
            start, used = time.perf_counter(), sum(os.times()[:4])
            bad = sum(reason is not None for reason in check_ground_truths(list(texts), workers))
            seconds, used = time.perf_counter() - start, sum(os.times()[:4]) - used
            print(f"{title}: {seconds:.1f} s by the clock, {used:.1f} s of processor time", flush=True)
            print(f"{bad} of {len(texts)} cannot be graded")


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("part", choices=["speed", "pairs", "truths"])
    cli.add_argument("--workers", type=int, default=2, help="verifier processes [2]")
    given = cli.parse_args()
    {"speed": speed, "pairs": pairs, "truths": truths}[given.part](given.workers)
