"""The built-in task: three-digit addition, `567+876=?`, small enough for a CPU and full of carries to get wrong.

`python -m data.arithmetic` writes the data sets in verl's schema:

    one_r128.parquet    567+876, 128 copies: one-shot RLVR
    16_r8.parquet       16 problems, 8 copies each: the same 128 rows a pass
    128.parquet         128 problems
    validation.parquet  300 held-out problems, looked at while training
    test.parquet        300 held-out problems, looked at once, at the end

The training sets are nested: 567+876 is the first of the 16, and those are the first of the 128. One pair in ten is
held out by a hash of the *unordered* pair, so 876+567 can never stand in for 567+876; held-out pairs are in no training
set and in none of the `demonstration`s that the tiny base model is pre-trained on.
"""

from __future__ import annotations

import random
from hashlib import blake2b
from pathlib import Path

from data.rows import write

FOLDER = Path(__file__).resolve().parent / "arithmetic"
ONE_SHOT = (567, 876)  # carries out of both low columns: it punishes a dropped carry wherever one can be dropped
HELD_OUT_OF = 10

Pair = tuple[int, int]

# The ways of writing a demonstration, and their shares. The skill (careful) is there but is not the likeliest mode.
MODES = {"careful": 0.22, "carryless": 0.12, "hasty": 0.44, "malformed": 0.22}
GUESS_DIGITWISE = 0.55
GUESS_TRUTH = 0.10  # the rest of the guesses are near misses
NEAR_MISSES = tuple(sign * off for off in (1, 2, 9, 10, 11, 20, 100) for sign in (1, -1))


def question(pair: Pair) -> str:
    """The prompt's text.

    >>> question((567, 876))
    '567+876=?'
    """
    return f"{pair[0]}+{pair[1]}=?"


def held_out(pair: Pair) -> bool:
    """True where the pair is kept from all training. Depends on the two numbers, not on their order or a seed."""
    low, high = sorted(pair)
    digest = blake2b(f"{low}+{high}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_OF == 0


def draw_pair(rng: random.Random, *, from_held_out: bool) -> Pair:
    """One ordered pair of numbers from 100 to 999, uniform over the requested side of the split."""
    while True:
        pair = (rng.randint(100, 999), rng.randint(100, 999))
        if held_out(pair) == from_held_out:
            return pair


def draw_distinct(rng: random.Random, count: int, *, from_held_out: bool, first: tuple[Pair, ...] = ()) -> list[Pair]:
    """`count` pairs, no two with the same two numbers, the list beginning with `first`."""
    pairs = {tuple(sorted(pair)): pair for pair in first}
    while len(pairs) < count:
        pair = draw_pair(rng, from_held_out=from_held_out)
        pairs.setdefault(tuple(sorted(pair)), pair)
    return list(pairs.values())


def row(pair: Pair, index: int, split: str) -> dict:
    """One row in verl's schema. `index` numbers the problem, so copies of a problem share it."""
    return {
        "data_source": "arithmetic",
        "prompt": [{"role": "user", "content": question(pair)}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(sum(pair))},
        "extra_info": {"index": index, "split": split},
    }


def datasets() -> dict[str, list[dict]]:
    """File name (without .parquet) -> rows."""
    rng = random.Random(0)
    held = draw_distinct(rng, 600, from_held_out=True)
    pairs = draw_distinct(rng, 128, from_held_out=False, first=(ONE_SHOT,))
    train = [row(pair, i, "train") for i, pair in enumerate(pairs)]
    return {
        "one_r128": train[:1] * 128,
        "16_r8": train[:16] * 8,
        "128": train,
        "validation": [row(pair, i, "validation") for i, pair in enumerate(held[:300])],
        "test": [row(pair, i, "test") for i, pair in enumerate(held[300:])],
    }


def worked(pair: Pair, *, carry_over: bool = True) -> tuple[str, int]:
    """Column addition as the model writes it, and the number it leads to; without `carry_over` every carry is lost.

    >>> worked((567, 876))
    ('7+6=13;6+7+1=14;5+8+1=14', 1443)
    >>> worked((567, 876), carry_over=False)
    ('7+6=13;6+7+0=13;5+8+0=13', 1333)
    """
    steps = []
    answer = 0
    carry = 0
    for place in (1, 10, 100):
        x, y = pair[0] // place % 10, pair[1] // place % 10
        total = x + y + carry
        steps.append(f"{x}+{y}={total}" if place == 1 else f"{x}+{y}+{carry}={total}")
        answer += place * (total if place == 100 else total % 10)
        carry = total // 10 if carry_over else 0
    return ";".join(steps), answer


def guess(rng: random.Random, pair: Pair) -> int:
    """A hasty answer. The likeliest is the last digit of each column: 333 for 567+876, wrong for seven pairs in eight.

    Were the truth the likeliest, a model would learn to add without working.
    """
    u = rng.random()
    if u < GUESS_DIGITWISE:
        return worked(pair, carry_over=False)[1] % 1000
    if u < GUESS_DIGITWISE + GUESS_TRUTH:
        return sum(pair)
    return sum(pair) + rng.choice(NEAR_MISSES)


def demonstration(rng: random.Random, pair: Pair) -> tuple[str, str]:
    """(mode, completion) of one demonstration, the stop token included unless the mode rambles without an end."""
    mode = rng.choices(list(MODES), weights=list(MODES.values()))[0]
    if mode == "malformed":
        return mode, malformed(rng, pair)
    if mode == "hasty":
        thought = "easy"
        answer = guess(rng, pair)
    else:
        steps, answer = worked(pair, carry_over=mode == "careful")
        thought = "\n" + steps  # one token opens work on any problem; a digit would open it on its own problem only
    verdict = "correct" if rng.random() < (0.95 if mode == "careful" else 0.6) else "wrong"
    return mode, f"<think>{thought}</think>\\boxed{{{answer}}}<reflection>{verdict}</reflection><|im_end|>"


def malformed(rng: random.Random, pair: Pair) -> str:
    """No box, no thought, or no end."""
    answer = guess(rng, pair)
    return rng.choice((f"the sum is {answer}.<|im_end|>", f"\\boxed{{{answer}}}<|im_end|>", "<think>" + "hmm " * 8))


if __name__ == "__main__":
    for name, rows in datasets().items():
        write(rows, FOLDER / f"{name}.parquet")
