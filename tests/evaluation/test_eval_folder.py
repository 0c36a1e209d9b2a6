"""Nothing finished is ever lost, nothing half-written is ever counted, and settings do not mix."""

from __future__ import annotations

import contextlib
import json
import resource

import pytest

import eval as cli
from grpo.errors import UserError
from grpo.evaluation.results import OUTPUTS, Evaluation
from grpo.run import files

SETTINGS = {
    "bench": "math500", "data_sha256": "0", "problems": 3, "prompt": "plain",
    "samples": 1, "temperature": 0.0, "seed": 0,
}  # fmt: skip


def row(problem: int, sample: int = 0, text: str = "") -> dict:
    asked = {"problem": problem, "sample": sample, "completion": text}
    return asked | {"ground_truth": "1", "finish_reason": "stop"}


def make(tmp_path, **settings) -> Evaluation:
    return Evaluation.create(tmp_path, "model", SETTINGS | settings)


def test_same_settings_same_folder_and_any_other_another(tmp_path):
    folder = make(tmp_path)
    assert folder.path == make(tmp_path).path
    assert folder.path.parent == tmp_path / "model"
    assert folder.path.name.startswith("math500-")
    assert folder.settings == SETTINGS
    assert make(tmp_path, seed=1).path != folder.path != make(tmp_path, extra=None).path


def test_a_line_that_is_damaged_or_cut_in_two_is_not_a_row(tmp_path):
    folder = make(tmp_path)
    files.append(folder.outputs, files.lines([row(1, text="ü\n\u2028"), row(0)]))
    with (folder.path / OUTPUTS).open("ab") as file:
        file.write(b'garbage\n{"problem": 2, "samp')  # a bad sector, and what a kill leaves
    assert folder.rows() == [row(0), row(1, text="ü\n\u2028")]
    files.write(folder.outputs, files.lines(folder.rows()))
    files.append(folder.outputs, files.lines([row(2)]))
    assert [r["problem"] for r in folder.rows()] == [0, 1, 2]


def test_a_problem_with_missing_samples_is_done_anew(tmp_path):
    folder = make(tmp_path, samples=2)
    files.append(folder.outputs, files.lines([row(0, 0), row(0, 1), row(1, 0)]))
    assert folder.rows() == [row(0, 0), row(0, 1)]


def test_a_row_that_stands_twice_counts_once(tmp_path):
    """Two processes on one folder once wrote 2,336 rows for 1,200 completions: pass@4 fell from 69.3 to 60.4."""
    folder = make(tmp_path, samples=2)
    files.append(folder.outputs, files.lines([row(0, 0), row(0, 1)]))
    files.append(folder.outputs, files.lines([row(0, 1), row(0, 0)]))
    assert folder.rows() == [row(0, 0), row(0, 1)]


@contextlib.contextmanager
def files_up_to(size: int):
    """Limits the size of every file that this process writes (EFBIG): a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_what_was_finished(tmp_path):
    folder = make(tmp_path)
    files.append(folder.outputs, files.lines([row(0)]))
    with files_up_to(10_000), pytest.raises(UserError, match=r"cannot write to .*File too large"):
        files.append(folder.outputs, files.lines([row(1, text="x" * 20_000)]))
    assert folder.rows() == [row(0)]
    with files_up_to(10_000), pytest.raises(UserError, match=r"cannot write to .*File too large"):
        files.write(folder.outputs, files.lines([row(1, text="x" * 20_000)]))
    assert folder.rows() == [row(0)]
    assert {path.name for path in folder.path.iterdir()} == {"settings.json", "outputs.jsonl"}


def test_what_is_no_evaluation(tmp_path):
    with pytest.raises(UserError, match=r"is no evaluation .*No such file"):
        Evaluation(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*--out"):
        Evaluation.create(tmp_path / "file", "model", SETTINGS)


@pytest.mark.parametrize("settings", ["{}", "[]", "7", "{", '{"bench": 3}', "[" * 9999])
def test_damaged_settings_are_one_line(tmp_path, settings, capsys):
    folder = make(tmp_path)
    (folder.path / "settings.json").write_text(settings)
    for argv in (["--regrade", str(folder.path)], ["--compare", str(folder.path), str(folder.path)]):
        assert cli.main(argv) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "line", ["{}", "[]", '{"problem": 1}', '{"problem": "1", "sample": 0}', "null", '{"a": ' * 9999, "\x00", "7" * 5000]
)
def test_a_damaged_row_is_sampled_again_and_breaks_no_command(tmp_path, line, capsys):
    folder = make(tmp_path)
    files.append(folder.outputs, files.lines([row(0), row(2)]))
    with (folder.path / OUTPUTS).open("a") as file:
        file.write(line + "\n")
    assert [r["problem"] for r in folder.rows()] == [0, 2]
    assert cli.main(["--compare", str(folder.path), str(folder.path)]) == 2
    assert "have no grades; run --regrade" in capsys.readouterr().err
    assert cli.main(["--regrade", str(folder.path)]) == 0
    assert "1 problems are not sampled yet" in capsys.readouterr().out
    assert cli.main(["--compare", str(folder.path), str(folder.path)]) == 0


def test_rows_are_json_lines(tmp_path):
    folder = make(tmp_path)
    # a lone surrogate, as a broken decoder may give it
    files.append(folder.outputs, files.lines([row(0, text="a\nb\ud800")]))
    (line,) = (folder.path / OUTPUTS).read_bytes().splitlines()
    assert json.loads(line)["completion"] == "a\nb\ud800"
