"""The built-in task: what is held out, what the rows say, and in which shares the demonstrations are written."""

from __future__ import annotations

import doctest
import random
from collections import Counter

import pyarrow.parquet as pq
import pytest

from data import arithmetic

ROWS = arithmetic.datasets()


def pair_of(row: dict) -> tuple[int, int]:
    first, second = row["prompt"][0]["content"].removesuffix("=?").split("+")
    return int(first), int(second)


def unordered(rows: list[dict]) -> set[frozenset[int]]:
    return {frozenset(pair_of(row)) for row in rows}


def drawn(count: int, seed: int = 1) -> list[tuple[tuple[int, int], str, str]]:
    """(pair, mode, completion) of `count` demonstrations."""
    rng = random.Random(seed)
    pairs = [arithmetic.draw_pair(rng, from_held_out=False) for _ in range(count)]
    return [(pair, *arithmetic.demonstration(rng, pair)) for pair in pairs]


def test_examples_in_docstrings():
    assert doctest.testmod(arithmetic).failed == 0


def test_committed_files_are_what_the_module_makes():
    for name, rows in ROWS.items():
        assert pq.read_table(arithmetic.FOLDER / f"{name}.parquet").to_pylist() == rows


def test_sizes_copies_and_nesting():
    copies = {name: Counter(Counter(map(pair_of, rows)).values()) for name, rows in ROWS.items()}
    assert copies == {"one_r128": {128: 1}, "16_r8": {8: 16}, "128": {1: 128}, "validation": {1: 300}, "test": {1: 300}}
    assert pair_of(ROWS["one_r128"][0]) == (567, 876)
    assert unordered(ROWS["one_r128"]) < unordered(ROWS["16_r8"]) < unordered(ROWS["128"])


def test_copies_share_an_index_and_different_problems_do_not():
    for rows in ROWS.values():
        problems, indices = set(map(pair_of, rows)), {row["extra_info"]["index"] for row in rows}
        together = {(pair_of(row), row["extra_info"]["index"]) for row in rows}
        assert len(problems) == len(indices) == len(together)


@pytest.mark.parametrize("name", list(ROWS))
def test_ground_truth_is_the_sum_of_what_the_prompt_asks(name: str):
    for row in ROWS[name]:
        assert row["reward_model"] == {"style": "rule", "ground_truth": str(sum(pair_of(row)))}


def test_one_pair_in_ten_is_held_out():
    # Every 7th first number gives 58,000 unordered pairs. One standard error is 0.3 / sqrt(58,000) = 0.0012.
    pairs = [(a, b) for a in range(100, 1000, 7) for b in range(a, 1000)]
    assert all(arithmetic.held_out((a, b)) == arithmetic.held_out((b, a)) for a, b in pairs[::100])
    assert sum(map(arithmetic.held_out, pairs)) / len(pairs) == pytest.approx(0.1, abs=0.006)


def test_nothing_held_out_is_trained_on_and_the_halves_do_not_meet():
    for name in ("one_r128", "16_r8", "128"):
        assert not any(arithmetic.held_out(pair_of(row)) for row in ROWS[name])
    assert not any(arithmetic.held_out(pair) for pair, _, _ in drawn(2000))
    held = ROWS["validation"] + ROWS["test"]
    assert all(arithmetic.held_out(pair_of(row)) for row in held)
    assert len(unordered(held)) == 600
    assert not unordered(held) & unordered(ROWS["128"])


def test_demonstration_modes_have_the_stated_shares():
    # 10,000 draws: one standard error is at most sqrt(.44 * .56 / 10,000) = 0.005.
    counts = Counter(mode for _, mode, _ in drawn(10_000))
    for mode, share in arithmetic.MODES.items():
        assert counts[mode] / 10_000 == pytest.approx(share, abs=0.02)


def test_the_likeliest_hasty_guess_is_wrong_when_a_carry_is_due():
    rng = random.Random(0)
    guesses = Counter(arithmetic.guess(rng, arithmetic.ONE_SHOT) for _ in range(5000))
    assert guesses.most_common(1)[0][0] == 333  # 7+6, 6+7, 5+8 without their tens
    assert guesses[333] / 5000 == pytest.approx(arithmetic.GUESS_DIGITWISE, abs=0.03)
    assert guesses[1443] / 5000 == pytest.approx(arithmetic.GUESS_TRUTH, abs=0.03)


def test_careful_work_is_right_and_lost_carries_are_wrong_where_one_was_due():
    seen = Counter()
    for pair, mode, text in drawn(3000):
        if mode not in ("careful", "carryless"):
            continue
        answer = int(text.split("\\boxed{")[1].split("}")[0])
        carry_due = pair[0] % 10 + pair[1] % 10 > 9 or pair[0] // 10 % 10 + pair[1] // 10 % 10 > 9
        assert (answer == sum(pair)) == (mode == "careful" or not carry_due)
        seen[mode] += 1
    assert min(seen["careful"], seen["carryless"]) > 100


def test_verdict_says_correct_as_often_as_stated():
    verdicts = {"careful": [], "carryless": [], "hasty": []}
    for _, mode, text in drawn(10_000):
        if mode in verdicts:
            verdicts[mode].append("<reflection>correct</reflection>" in text)
    shares = {mode: sum(said) / len(said) for mode, said in verdicts.items()}
    assert shares == pytest.approx({"careful": 0.95, "carryless": 0.6, "hasty": 0.6}, abs=0.05)
