"""Speed of the grader.

python -m benchmarks.grading speed        completions a second, beside math-verify
python -m benchmarks.grading truths       seconds to check 8,000 ground truths of science, first and again
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Literal

import math_verify
import tyro
import yaml

from rewards import check_ground_truths, make_reward

Case = tuple[str, str]  # completion, ground truth
PAIRS = Path(__file__).resolve().parent.parent / "tests" / "rewards" / "pairs.jsonl"
SCIENCE: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())


def math_verify_alone(cases: list[Case]) -> list[bool]:
    """math-verify as its README uses it."""
    return [math_verify.verify(math_verify.parse(f"${truth}$"), math_verify.parse(text)) for text, truth in cases]


def speed(workers: int) -> None:
    """Completions a second: with the answers of all pairs, and with those to pi1 as rollouts repeat them."""
    rng = random.Random(1)
    pairs = [(row["answer"], row["truth"]) for row in map(json.loads, PAIRS.read_text(encoding="utf-8").splitlines())]
    repeated = rng.choices(pairs[:20], [1 / (rank + 1) for rank in range(20)], k=len(pairs))
    with closing(make_reward("multi_signal", workers=workers)) as reward:

        def ours(cases: list[Case]) -> list[bool]:
            return [score.verify == 1 for score in reward.score_batch(*zip(*cases, strict=True))]

        for _ in range(2):  # the server still warms up after the first
            ours([(r"\boxed{\sqrt{2}}", r"\sqrt{3}")])
        for title, answers in (("20 answers", repeated), ("all distinct", pairs)):
            cases = [(completion(rng, answer), truth) for answer, truth in answers]
            for grade in (math_verify_alone, ours):
                started = time.perf_counter()
                right = sum(grade(cases))
                rate = len(cases) / (time.perf_counter() - started)
                print(f"{title}, {grade.__name__}: {rate:,.0f} completions/s, {right} right", flush=True)


def completion(rng: random.Random, answer: str) -> str:
    """About 600 characters in the layout that the reward asks for; every completion is a text of its own."""
    steps = " ".join(f"Step {i}: we get {rng.randint(2, 999)} and go on." for i in range(14))
    return f"<think>{steps}</think>\nThe answer is $\\boxed{{{answer}}}$.\n<reflection>It is correct.</reflection>"


def truths(workers: int) -> None:
    """Seconds to check 8,000 different ground truths for the first time, and again from the cache.

    Processor time counts this process and the workers.
    """
    rng = random.Random(1)
    texts: dict[str, None] = {}
    while len(texts) < 8000:
        n = rng.randint(1, 10**5)
        values = {"n": n, "tenths": n / 10, "larger": n + 7, "digit": n % 8 + 2, "exponent": n % 40 - 20}
        words = {kind: rng.choice(choices) for kind, choices in SCIENCE.items()}
        texts[words["truth"].format(**values, **words)] = None
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for title in ("first", "again"):
            start, used = time.perf_counter(), sum(os.times()[:4])
            bad = sum(reason is not None for reason in check_ground_truths(list(texts), workers))
            seconds, used = time.perf_counter() - start, sum(os.times()[:4]) - used
            print(f"{title}: {seconds:.1f} s by the clock, {used:.1f} s of processor time", flush=True)
            print(f"{bad} of {len(texts)} cannot be graded")


def main(
    part: tyro.conf.Positional[Literal["speed", "truths"]],
    workers: int = 2,
) -> None:
    speed(workers) if part == "speed" else truths(workers)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
