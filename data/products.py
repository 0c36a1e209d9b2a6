"""The laptop preset's task: `What is 7 times 8?`, which a small real language model answers correctly now and then.

`python -m data.products` writes question and answer rows to data/products/:

    all.jsonl        the 64 products of two numbers from 2 to 9

    one.jsonl        9 times 2: one-shot RLVR (a step draws the row again and again)
    sixteen.jsonl    16 products, 9 times 2 among them
    forty.jsonl      40 products, those 16 among them
    held_out.jsonl   the other 24: no training set holds one of them, nor one with the factors swapped
    others.jsonl     every product except 9 times 2 and 2 times 9: the effect of one example elsewhere
    sums.jsonl       the same numbers added: another task

`python -m data.products --each FOLDER` writes 64 training sets of one product each, 2x2.jsonl to 9x9.jsonl, and the
same with a wrong ground truth, one more than the product: 2x2_wrong.jsonl to 9x9_wrong.jsonl.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from data.rows import write

FOLDER = Path(__file__).resolve().parent / "products"
ONE = (9, 2)
NUMBERS = range(2, 10)
ALL = [(a, b) for a in NUMBERS for b in NUMBERS]

Pair = tuple[int, int]


def split() -> tuple[list[Pair], list[Pair]]:
    """40 products to train on, ONE first, and 24 held out, cut by the unordered pair."""
    rng = random.Random(0)
    unequal = [(a, b) for a, b in ALL if a < b and (a, b) != tuple(sorted(ONE))]
    away = set(rng.sample(unequal, 12))
    train = [pair for pair in ALL if tuple(sorted(pair)) not in away and pair != ONE]
    rng.shuffle(train)
    return [ONE, *train], [pair for pair in ALL if tuple(sorted(pair)) in away]


def row(pair: Pair, word: str = "times") -> dict[str, str]:
    """
    >>> row((7, 8)), row((7, 8), "plus")["answer"]
    ({'question': 'What is 7 times 8?', 'answer': '56'}, '15')
    """
    answer = pair[0] * pair[1] if word == "times" else pair[0] + pair[1]
    return {"question": f"What is {pair[0]} {word} {pair[1]}?", "answer": str(answer)}


def datasets() -> dict[str, list[dict[str, str]]]:
    """File name (without .jsonl) -> rows."""
    train, held_out = split()
    return {
        "all": [row(pair) for pair in ALL],
        "one": [row(ONE)],
        "sixteen": [row(pair) for pair in train[:16]],
        "forty": [row(pair) for pair in train],
        "held_out": [row(pair) for pair in held_out],
        "others": [row(pair) for pair in ALL if sorted(pair) != sorted(ONE)],
        "sums": [row(pair, "plus") for pair in ALL],
    }


def single_products() -> dict[str, list[dict[str, str]]]:
    """File name (without .jsonl) -> one row: each product, with its right and with a wrong ground truth."""
    sets = {}
    for a, b in ALL:
        sets[f"{a}x{b}"] = [row((a, b))]
        sets[f"{a}x{b}_wrong"] = [row((a, b)) | {"answer": str(a * b + 1)}]
    return sets


def main() -> None:
    cli = argparse.ArgumentParser(prog="python -m data.products", description="Writes the data sets of products.")
    cli.add_argument("--each", type=Path, metavar="FOLDER", help="write a training set for each single product")
    folder = cli.parse_args().each
    sets = single_products() if folder else datasets()
    folder = folder or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        write(rows, folder / f"{name}.jsonl")


if __name__ == "__main__":
    main()
