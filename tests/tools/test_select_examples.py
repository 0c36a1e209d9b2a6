"""The paper's ranking gives the paper's examples; filters read columns and evaluate nothing."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tools import select_examples


def test_the_ranks_of_the_paper_are_its_examples(data_dir, tmp_path):
    """pi1, pi2, pi13 and pi1209 were published as files of their own."""
    words = [str(data_dir / "acc_step_500.json"), "--data", str(data_dir / "dsr_sub.parquet")]
    out = tmp_path / "four.parquet"
    assert select_examples.main([*words, "--rank", "1,2,13,1209", "--out", str(out)]) == 0
    for row, name in zip(pq.read_table(out).to_pylist(), ("pi1", "pi2", "pi13", "pi1209"), strict=True):
        assert row == pq.read_table(data_dir / f"{name}_r128.parquet").slice(0, 1).to_pylist()[0]


@pytest.fixture
def data(tmp_path):
    rows = [
        {"question": str(i), "level": level, "info": {"kind": "ab"[i % 2]}} for i, level in enumerate((5, "2", 3, 1))
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tmp_path, *lines) -> str:
    """A run's folder: row 2 goes 0, 1 (deviation 1/2), row 0 goes 0, 1/2 (1/4), row 1 stays at 1 (0)."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"data: {tmp_path / 'rows.jsonl'}\n")
    (folder / "accuracy.jsonl").write_text("".join(json.dumps({"step": 1, "accuracy": line}) + "\n" for line in lines))
    return str(folder)


def chosen(tmp_path, *words) -> list[str]:
    assert select_examples.main([*words, "--out", str(tmp_path / "out.jsonl")]) == 0
    return [json.loads(line)["question"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_the_accuracies_of_a_run(tmp_path, data):
    folder = run(tmp_path, {"0": 0, "1": 1, "2": 0}, {"0": 0.5, "1": 1, "2": 1})
    assert chosen(tmp_path, folder, "--rank", "1,2,3") == ["2", "0", "1"]
    assert chosen(tmp_path, folder, "--rank", "1,2,3", "--where", "level < 5") == ["2", "1"]


def test_the_rows_are_the_run_s_own_from_any_folder(tmp_path, data, monkeypatch, capsys):
    """A file that the run named from its start, and a published set in the run's data_dir."""
    folder = run(tmp_path, {"0": 0, "1": 1, "2": 0}, {"0": 0.5, "1": 1, "2": 1})
    config = Path(folder) / "config.yaml"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config.write_text("data: rows.jsonl\n")
    assert chosen(tmp_path, folder, "--rank", "1") == ["2"]
    config.write_text("data: dsr_sub\ndata_dir: sets\n")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "dsr_sub.parquet").write_text("not that set")
    assert select_examples.main([folder, "--rank", "1", "--out", str(tmp_path / "one.parquet")]) == 2
    assert f"{tmp_path}/sets/dsr_sub.parquet is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("level <= 2", "13"),
        ("level != 3 and info.kind == 'b'", "13"),
        ("info.kind == a", "02"),
        ("question > 1.5", "23"),
    ],
)
def test_conditions(tmp_path, data, where, rows):
    assert chosen(tmp_path, "--data", str(data), "--where", where) == list(rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--where", "level"], "write column <= value"),
        (["--where", "__import__('os') == 1"], "write column <= value"),
        (["--where", "colour == red"], "no column colour; a row has question, level, info"),
        (["--where", "level > 9"], "no row of"),
        (["RUN", "--rank", "4"], "numbers from 1 to 3"),
        (["RUN", "--rank", "one"], "numbers from 1 to 3"),
        (["--rank", "1"], "--rank goes with accuracies"),
        (["OTHER", "--rank", "1"], "is about other data: it has row 7"),
        (["BROKEN", "--rank", "1"], "holds no accuracies"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(tmp_path, data, capsys, words, message):
    (tmp_path / "other.json").write_text('{"7": [0, 1]}')
    (tmp_path / "broken.json").write_text("[1]")
    names = {"OTHER": str(tmp_path / "other.json"), "BROKEN": str(tmp_path / "broken.json")}
    names["RUN"] = run(tmp_path, {"0": 0, "1": 1, "2": 0})
    out = tmp_path / "out.jsonl"
    words = [names.get(word, word) for word in words]
    assert select_examples.main([*words, "--data", str(data), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_examples_in_docstrings():
    assert doctest.testmod(select_examples).failed == 0
