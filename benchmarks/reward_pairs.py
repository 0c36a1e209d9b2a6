r"""Writes tests/rewards/pairs.jsonl: (answer, ground truth, equal or not), labelled without any verifier.

    python benchmarks/reward_pairs.py

Half is written by hand below, by category, with the conventions of MATH-500. The other half comes from exact
arithmetic: a number, set, matrix or polynomial is drawn with a fixed seed and written in two ways (equal) or with one
thing changed (different), so the label is known by construction.
"""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "tests" / "rewards" / "pairs.jsonl"
HAND = Path(__file__).resolve().parent / "reward_pairs.txt"
Pair = tuple[str, str, str, bool]


def by_hand() -> list[Pair]:
    """reward_pairs.txt: `# category` starts a section, `answer == truth` or `answer != truth` is a pair."""
    pairs, category = [], ""
    for line in HAND.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            category = line[2:]
        elif line.strip():
            sign = " == " if " == " in line else " != "
            answer, truth = line.split(sign)
            pairs.append((category, answer, truth, sign == " == "))
    return pairs


def decimal(value: Fraction) -> str:
    """Exact decimal of a fraction whose denominator divides a power of ten."""
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    whole = str(abs(int(value * 10**digits))).rjust(digits + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{whole[:-digits]}.{whole[-digits:]}" if digits else whole)


def numbers(rng: random.Random) -> list[Pair]:
    pairs = []
    for _ in range(12):
        value = Fraction(rng.randint(-9999, 9999) or 1, rng.choice([2, 4, 5, 8, 16, 25, 40, 125]))
        latex = f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
        pairs.append(("fraction and decimal", decimal(value), latex, True))
        pairs.append(("fraction and decimal", f"{value.numerator}/{value.denominator}", decimal(value), True))
        off = value + Fraction(1, 10 ** rng.randint(6, 25))
        pairs.append(("nearly the same number", decimal(off), latex, False))
    for _ in range(12):
        numerator, denominator = rng.randint(1, 99), rng.choice([3, 7, 9, 11, 13, 17])
        if numerator % denominator == 0:
            numerator += 1
        rounded = f"{numerator / denominator:.{rng.randint(4, 12)}f}"
        pairs.append(("rounded decimal", rounded, f"\\frac{{{numerator}}}{{{denominator}}}", False))
    for _ in range(12):
        mantissa, exponent = rng.randint(11, 99), rng.randint(6, 30)
        plain = decimal(Fraction(mantissa, 10 ** (exponent + 1)))
        scientific = f"{mantissa // 10}.{mantissa % 10}"
        pairs.append(("e-notation", f"{scientific}e-{exponent}", plain, True))
        pairs.append(("e-notation", f"{scientific} \\times 10^{{-{exponent}}}", f"{scientific}e-{exponent}", True))
        pairs.append(("e-notation", f"{scientific}e-{exponent + 1}", plain, False))
        pairs.append(("tiny numbers", f"{scientific} \\times 10^{{-{exponent}}}", f"{scientific}1e-{exponent}", False))
    for _ in range(10):
        value = rng.randint(10_000, 99_999_999)
        pairs.append(("thousands", f"{value:,}", str(value), True))
        pairs.append(("thousands", str(value), f"{value:,}".replace(",", ",\\!"), True))
        pairs.append(("thousands", f"{value + 1:,}", str(value), False))
    for _ in range(10):
        whole, top = rng.randint(1, 20), rng.randint(1, 6)
        bottom = rng.randint(top + 1, 9)
        improper = Fraction(whole) + Fraction(top, bottom)
        latex = f"\\frac{{{improper.numerator}}}{{{improper.denominator}}}"
        pairs.append(("mixed number", f"{whole}\\frac{{{top}}}{{{bottom}}}", latex, True))
        product = Fraction(whole * top, bottom)
        if product != improper:
            pairs.append(
                (
                    "mixed number",
                    f"\\frac{{{product.numerator}}}{{{product.denominator}}}",
                    f"{whole}\\frac{top}{bottom}",
                    False,
                )
            )
    return pairs


def in_base(value: int, base: int) -> str:
    digits = ""
    while value:
        digits = "0123456789ABCDEF"[value % base] + digits
        value //= base
    return digits


def numerals(rng: random.Random) -> list[Pair]:
    pairs = []
    for _ in range(12):
        value, base = rng.randint(20, 3000), rng.randint(2, 9)
        text = in_base(value, base)
        pairs.append(("base subscript", f"{text}_{{{base}}}", f"{text}_{base}", True))
        pairs.append(("base subscript", f"{text}_{{{base + 1}}}", f"{text}_{base}", False))
        pairs.append(("base subscript", f"{in_base(value + 1, base)}_{base}", f"{text}_{base}", False))
        pairs.append(("base subscript", text, f"{text}_{base}", False))
    return pairs


def collections(rng: random.Random) -> list[Pair]:
    pairs = []
    for _ in range(12):
        items = rng.sample(range(-30, 30), rng.randint(2, 4))
        turned = items[1:] + items[:1]
        text, other = ", ".join(map(str, items)), ", ".join(map(str, turned))
        changed = ", ".join(map(str, [items[0] + 100, *items[1:]]))
        pairs.append(("list and set", other, text, True))
        pairs.append(("list and set", f"\\{{{other}\\}}", f"\\{{{text}\\}}", True))
        pairs.append(("list and set", changed, text, False))
        pairs.append(("list and set", f"{text}, 77", text, False))
        pairs.append(("tuple", f"\\left({text.replace(', ', ',')}\\right)", f"({text})", True))
        pairs.append(("tuple", f"({other})", f"({text})", False))
    for _ in range(8):
        low = rng.randint(-20, 0)
        high = low + rng.randint(1, 20)
        pairs.append(("interval", f"\\left[{low}, {high}\\right)", f"[{low},{high})", True))
        pairs.append(("interval", f"{low} \\le x < {high}", f"[{low},{high})", True))
        pairs.append(("interval", f"({low},{high}]", f"[{low},{high})", False))
        pairs.append(("interval", f"[{low},{high}]", f"[{low},{high})", False))
    for _ in range(6):
        rows = [[rng.randint(-9, 9) for _ in range(2)] for _ in range(2)]
        pairs.append(("matrix", matrix(rows, "bmatrix"), matrix(rows, "pmatrix"), True))
        changed = [rows[0], [rows[1][0], rows[1][1] + 1]]
        pairs.append(("matrix", matrix(changed, "pmatrix"), matrix(rows, "pmatrix"), False))
    return pairs


def matrix(rows: list[list[int]], kind: str) -> str:
    body = " \\\\ ".join(" & ".join(map(str, row)) for row in rows)
    return f"\\begin{{{kind}}} {body} \\end{{{kind}}}"


def signed(value: int, symbol: str = "") -> str:
    coefficient = "" if symbol and abs(value) == 1 else str(abs(value))
    return f"{'-' if value < 0 else '+'} {coefficient}{symbol}"


def expressions(rng: random.Random) -> list[Pair]:
    pairs = []
    for _ in range(12):
        factor, free = rng.randint(2, 9), rng.choice([2, 3, 5, 6, 7, 10, 11])
        inside = factor * factor * free
        pairs.append(("surd", f"\\sqrt{{{inside}}}", f"{factor}\\sqrt{{{free}}}", True))
        pairs.append(("surd", f"\\sqrt{{{inside + 1}}}", f"{factor}\\sqrt{{{free}}}", False))
        pairs.append(("surd", f"\\frac{{{free}}}{{\\sqrt{{{free}}}}}", f"\\sqrt{{{free}}}", True))
        pairs.append(("surd", f"{inside**0.5:.10f}", f"{factor}\\sqrt{{{free}}}", False))
    for _ in range(12):
        a, b = (rng.choice([-9, -7, -5, -4, -3, -2, 2, 3, 4, 5, 6, 8]) for _ in range(2))
        a, b = (a, b) if a + b and a * b else (a + 1, b)
        expanded = f"x^2 {signed(a + b, 'x')} {signed(a * b)}"
        if a + b == 0 or a * b == 0:
            continue
        pairs.append(("polynomial", f"(x {signed(a)})(x {signed(b)})", expanded, True))
        pairs.append(("polynomial", f"(x {signed(a)})(x {signed(b + 1)})", expanded, False))
        pairs.append(("polynomial", f"x^2 {signed(a + b, 'x')} {signed(a * b + 1)}", expanded, False))
        pairs.append(("equation", f"y = {a}x {signed(b)}", f"y={signed(b)}{signed(a, 'x')}", True))
        pairs.append(("equation", f"y = {a}x {signed(b + 1)}", f"y = {a}x {signed(b)}", False))
    for _ in range(10):
        right = rng.randint(2, 500)
        wrong = right + rng.randint(1, 9)
        for text in (f"{right} \\text{{ or }} {wrong}", f"{right}, {wrong}", f"{right} = {wrong}"):
            pairs.append(("hedge", text, str(right), False))
    return pairs


def main() -> None:
    rng = random.Random(2026)
    pairs = by_hand() + [pair for make in (numbers, numerals, collections, expressions) for pair in make(rng)]
    unique = list(dict.fromkeys(pairs))
    labels = {(answer, truth): equal for _, answer, truth, equal in unique}
    assert all(labels[answer, truth] == equal for _, answer, truth, equal in unique), "two labels for one pair"
    rows = [dict(zip(("category", "answer", "truth", "equal"), pair, strict=True)) for pair in unique]
    TARGET.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    equal = sum(row["equal"] for row in rows)
    print(f"{len(rows)} pairs, {equal} of them equal, {len(by_hand())} by hand -> {TARGET.name}")


if __name__ == "__main__":
    main()
