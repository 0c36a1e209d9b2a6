"""The transfer matrix: evaluations in, table, picture and rank correlations out."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.products import ALL
from tools import transfer


def write_evaluation(folder: Path, model: str, right: set[int], temperature: float = 1.0) -> None:
    """One completion of each of the 64 products; those whose number is in `right` are answered correctly."""
    folder.mkdir(parents=True)
    settings = {"model": model, "temperature": temperature, "samples": 1, "problems": 64}
    settings |= {"bench": "all", "data_sha256": "0", "prompt": "products"}
    (folder / "settings.json").write_text(json.dumps(settings))
    shared = {"sample": 0, "finish_reason": "stop"}
    rows = [
        {"problem": n, "completion": f"\\boxed{{{a * b + (n not in right)}}}", "ground_truth": str(a * b)} | shared
        for n, (a, b) in enumerate(ALL)
    ]
    (folder / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_spearman_of_the_docstring():
    assert doctest.testmod(transfer).failed == 0


def test_the_matrix_is_read_and_the_training_product_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture):
    """2x2 teaches itself and 21 others, 2x3 teaches itself and 42 others: row means 21/63 and 42/63."""
    write_evaluation(tmp_path / "base" / "a", "models/base", set(range(8)))
    for product, right in (("2x2", range(22)), ("2x3", range(43))):
        for way, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            folder = tmp_path / "evals" / product / way
            write_evaluation(folder, f"runs/{product}-seed0/checkpoints/step_000010", set(right), temperature)
    out = tmp_path / "transfer"
    assert transfer.main([str(tmp_path / "evals"), "--base", str(tmp_path / "base"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "base: 12.5%" in printed
    assert re.search(r"2x3 +66\.7\n2x2 +33\.3\n", printed)
    assert re.search(r"answer +1\.0 +1\.0 +1\.0\n", printed)  # 4 < 6, and 33.3% < 66.7%
    table = pd.read_csv(out.with_suffix(".csv"))
    assert list(table.columns) == ["example", "seed", "way", *transfer.ANSWERS]
    assert len(table) == 4
    assert out.with_suffix(".png").stat().st_size > 1000


def test_the_interval_holds_the_correlation_and_narrows_with_more_pairs():
    rng = np.random.default_rng(0)
    widths = []
    for count in (20, 200):
        x = rng.normal(size=count)
        y = x + rng.normal(size=count)
        low, high = transfer.bootstrap_interval(x, y)
        assert low < transfer.spearman(x, y)[0] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2  # the standard error falls with the square root of the number


def test_a_folder_without_evaluations_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert transfer.main([str(tmp_path), "--base", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "holds no evaluation" in capsys.readouterr().err
