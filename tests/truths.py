"""Is the grader right about the ground truths of dsr_sub and the six benchmarks?

    python tests/truths.py [--data-dir DIR]

Each must be gradable, must be right when it is spelled another way, and must be wrong after a mutation: one digit or
letter changed anywhere, two parts or letters exchanged, another unit, a word that changes the value, or "and" for "or".
Disagreements are listed. The test suite tries a sample.
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
    """Other answers that look like the truth."""
    return list(dict.fromkeys([*_digits(truth), *_letters(truth), *_orders(truth), *_words(truth)]))


def _digits(truth: str) -> list[str]:
    return [
        truth[:place] + str((int(truth[place]) + step) % 10) + truth[place + 1 :]
        for place in (match.start() for match in re.finditer("[0-9]", truth))
        for step in (1, 5)
    ]


def _letters(truth: str) -> list[str]:
    """One letter of a name, a word or a unit changed. The x of f(x)= may be any letter."""
    skipped = r"\\(?:begin|end)\{[a-z]*\}|\\[A-Za-z]+|(?<=^[a-zA-Z]\()[a-z](?=\)=)"
    names = re.sub(skipped, lambda match: " " * len(match[0]), truth)
    letters = [(match.start(), match[0]) for match in re.finditer("[A-Za-z]", names)]
    changed = []
    for place, letter in letters:
        new = next(other for other in "qwzvj" if other not in truth)
        present = next((other for _, other in letters if other.lower() != letter.lower()), new)
        changed += [truth[:place] + other + truth[place + 1 :] for other in (new, present)]
    return changed


def _orders(truth: str) -> list[str]:
    """Two neighbouring letters of a word, or two parts of a tuple, a range or a ratio, exchanged."""
    changed = []
    pairs = r"(?<=[(\[])([^(),\[\]{}]+)(,\s*)([^(),\[\]{}]+)(?=[,)\]])|^([0-9]+)(\s*[-:]\s*)([0-9]+)(?=$|[-:])"
    for match in re.finditer(pairs, truth):
        first, mark, second = (part for part in match.groups() if part)
        if first.strip() != second.strip():
            changed.append(truth[: match.start()] + second + mark + first + truth[match.end() :])
    for match in re.finditer(r"(?<![\\A-Za-z{])[A-Za-z]{2,}(?![A-Za-z{])|(?<=\\text\{)[A-Za-z]+(?=\})", truth):
        word = match[0]
        if word[0].lower() != word[1].lower() and word in (truth, truth[6:-1]):
            changed.append(truth[: match.start()] + word[1] + word[0] + word[2:] + truth[match.end() :])
    return changed


def _words(truth: str) -> list[str]:
    """Another connective, and words beside a number that change it."""
    changed = [re.sub(rf"\b{old}\b", new, truth) for old, new in (("or", "and"), ("OR", "AND"), ("and", "or"))]
    if re.fullmatch(r"-?[0-9.]+", truth) and float(truth) != 0:
        changed += [rf"{truth}\text{{ {word}}}" for word in ("million", "cents", "is wrong", "squared")]
        changed += [rf"\text{{{word} }}{truth}" for word in ("negative", "not", "at least", "about")] + [f"{truth}+0"]
    if match := re.fullmatch(r"(-?[0-9.]+) ?\\(?:text|mbox|mathrm) ?\{[^{}]*\}(?:\^\{?[0-9]\}?)?", truth):
        changed += [rf"{match[1]}\text{{ {unit}}}" for unit in ("lb", "eV", "apples", "km^3")]
    return [text for text in changed if text != truth]


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
