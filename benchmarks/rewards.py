"""Speed and accuracy of the verifier beside plain math-verify, on the same lists in the same run.

    python benchmarks/rewards.py [--count 4096] [--repeat 3] [--timeout 2]

Speed: completions scored per second on (a) completions with 20 distinct answers, as group rollouts have them, and
(b) completions whose LaTeX answers are all distinct. Every contender scores each list `repeat` times, taking turns;
caches are emptied in between, start-up is not counted, and the median counts. Accuracy: tests/rewards/pairs.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import math_verify  # noqa: E402

from rewards import MultiSignalMathReward, Verifier, signals  # noqa: E402
from rewards.equivalence.grammar import expression  # noqa: E402
from rewards.equivalence.judge import judge, read  # noqa: E402

Case = tuple[str, str]  # completion, ground truth


def completion(rng: random.Random, answer: str) -> str:
    """About 600 characters in the layout that the reward asks for; every completion is a text of its own."""
    steps = " ".join(f"Step {i}: we get {rng.randint(2, 999)} and go on." for i in range(14))
    return f"<think>{steps}</think>\nThe answer is $\\boxed{{{answer}}}$.\n<reflection>It is correct.</reflection>"


def few_answers(count: int) -> list[Case]:
    """(a) 20 distinct answers to the one-shot example, spread as a group of rollouts spreads them."""
    rng = random.Random(1)
    answers = [
        "12.8", "12.80", r"\frac{64}{5}", "64/5", r"12\frac{4}{5}", "12.8 \\text{ pounds}", "12.7", "12.79", "12.69",
        r"\sqrt[3]{2048}", r"8\sqrt[3]{4}", "13", "12", "16", "-12.8", "6.4", "25.6", r"\frac{32}{5}", r"2^{3.5}",
        "10.24",
    ]  # fmt: skip
    weights = [1 / (rank + 1) for rank in range(20)]
    return [(completion(rng, answer), "12.8") for answer in rng.choices(answers, weights, k=count)]


def distinct_answers(count: int) -> list[Case]:
    """(b) surds, polynomials, multiples of pi, tuples, intervals and fractions; half of them right."""
    rng = random.Random(2)
    cases: dict[str, str] = {}
    while len(cases) < count:
        a, b, c = rng.randint(2, 99), rng.choice([2, 3, 5, 6, 7, 10, 11, 13]), rng.randint(2, 99)
        off = rng.choice([0, 1])
        answer, truth = rng.choice(
            [
                (rf"\frac{{{a}\sqrt{{{b}}}}}{{{c}}}", rf"\frac{{{a + off}}}{{{c}}}\sqrt{{{b}}}"),
                (rf"\sqrt{{{a * a * b}}}+{c}", rf"{c + off}+{a}\sqrt{{{b}}}"),
                (f"(x+{a})(x-{c})", f"x^2+{a - c + off}x-{a * c}".replace("+-", "-")),
                (rf"\frac{{{a}\pi}}{{{c}}}", rf"\frac{{{a + off}}}{{{c}}}\pi"),
                (rf"\left({a}, \frac{{{b}\pi}}{{{c}}}\right)", rf"({a + off}, \frac{{{b}}}{{{c}}}\pi)"),
                (rf"[{-a}, {c}\sqrt{{{b}}})", rf"[{-a - off}, \sqrt{{{c * c * b}}})"),
                (rf"\frac{{{a * c}}}{{{b * c}}}", rf"\frac{{{a + off}}}{{{b}}}"),
            ]
        )
        cases.setdefault(answer, truth)
    return [(completion(rng, answer), truth) for answer, truth in cases.items()]


def plain(cases: list[Case]) -> list[bool]:
    """math-verify as its README uses it."""
    return [math_verify.verify(math_verify.parse(f"${truth}$"), math_verify.parse(text)) for text, truth in cases]


def in_process(cases: list[Case]) -> list[bool]:
    """Ours without workers and without the cache of outcomes."""
    return [judge(signals.read(text).answer or "", truth) == "correct" for text, truth in cases]


def forget() -> None:
    read.cache_clear()
    expression.cache_clear()


def with_workers(workers: int, timeout_s: float) -> Callable[[list[Case]], list[bool]]:
    reward = MultiSignalMathReward(workers=workers, timeout_s=timeout_s)

    def score(cases: list[Case]) -> list[bool]:
        return [s.verify == 1.0 for s in reward.score_batch([case[0] for case in cases], [case[1] for case in cases])]

    def restart() -> None:
        reward.close()
        reward.verifier._cache.clear()
        reward.verifier.pool.run([(r"\sqrt{2}", r"\sqrt{3}")])

    score.restart, score.close = restart, reward.close
    return score


def speed(count: int, repeat: int, timeout_s: float) -> None:
    contenders = {"math-verify, one process": plain, "ours, one process": in_process}
    contenders |= {f"ours, {n} worker{'s' * (n > 1)}": with_workers(n, timeout_s) for n in (1, 2)}
    plain(few_answers(4)), in_process(few_answers(4))
    print("| list | contender | completions/s | beside math-verify | found right |\n|---|---|---|---|---|")
    for title, cases in (("(a) 20 answers", few_answers(count)), ("(b) all distinct", distinct_answers(count))):
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        right = {}
        for _ in range(repeat):
            for name, score in contenders.items():
                forget()
                getattr(score, "restart", lambda: None)()
                started = time.perf_counter()
                right[name] = sum(score(cases))
                seconds[name].append(time.perf_counter() - started)
        base = median(seconds["math-verify, one process"])
        for name, times in seconds.items():
            print(f"| {title} | {name} | {count / median(times):,.0f} | {base / median(times):.1f}x | {right[name]} |")
    for score in contenders.values():
        getattr(score, "close", lambda: None)()


def accuracy(timeout_s: float) -> None:
    rows = [json.loads(line) for line in (REPO / "tests" / "rewards" / "pairs.jsonl").read_text().splitlines()]
    truth = [row["equal"] for row in rows]
    boxed = [(rf"\boxed{{{row['answer']}}}", row["truth"]) for row in rows]
    verifier = Verifier(workers=2, timeout_s=max(timeout_s, 10))
    ours = [o == "correct" for o in verifier.check_batch([(row["answer"], row["truth"]) for row in rows])]
    verifier.close()
    said = {"math-verify": plain(boxed), "ours": ours}
    print(f"\n| {len(rows)} labelled pairs, {sum(truth)} equal | accuracy | false positives | false negatives |")
    print("|---|---|---|---|")
    for name, verdicts in said.items():
        positives = sum(v and not t for v, t in zip(verdicts, truth, strict=True))
        negatives = sum(t and not v for v, t in zip(verdicts, truth, strict=True))
        print(f"| {name} | {1 - (positives + negatives) / len(rows):.1%} | {positives} | {negatives} |")
    print("\n| category | pairs | math-verify: false + / - | ours: false + / - |\n|---|---|---|---|")
    for category in dict.fromkeys(row["category"] for row in rows):
        chosen = [i for i, row in enumerate(rows) if row["category"] == category]
        cells = [
            f"{sum(v[i] and not truth[i] for i in chosen)} / {sum(truth[i] and not v[i] for i in chosen)}"
            for v in said.values()
        ]
        print(f"| {category} | {len(chosen)} | {cells[0]} | {cells[1]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4096, help="completions in each list")
    parser.add_argument("--repeat", type=int, default=3, help="turns for every contender")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds an answer may take in a worker")
    arguments = parser.parse_args()
    speed(arguments.count, arguments.repeat, arguments.timeout)
    accuracy(arguments.timeout)


if __name__ == "__main__":
    main()
