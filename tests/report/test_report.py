"""The report: what it reads from a run folder, in whatever state that is, and what the command writes."""

from __future__ import annotations

import doctest
import json
import math
import re
import resource
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_runs import EVIL, append, edit_completion, report, write_run

from grpo.report import read
from grpo.report.__main__ import main
from grpo.report.charts import REST, charts_for
from grpo.report.plot import draw

REPO = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """The scripts of a page as an HTML parser sees them, and the text outside them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.text = ""
        self._inside = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "script":
            self.scripts.append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = False if tag == "script" else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.scripts[0], parse_constant=refuse)


# ---- what is read ----


def test_a_finished_run_is_all_there(tmp_path: Path) -> None:
    page = Page(report(write_run(tmp_path / "A")))
    run = page.data["runs"][0]
    assert run["name"] == "A"
    assert run["steps"] == list(range(13))  # 12 steps and the evaluation before the first
    assert len(run["completions"]) == 12 * 2 * 4
    assert len(run["prompts"]) == 1  # every completion has the same prompt: kept once
    assert "finished, 12 of 12 steps" in page.text
    assert "10.0% → 71.0%" in page.text  # summary.json, before → after
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page.text)


def test_figures_of_a_few_problems_are_marked(tmp_path: Path) -> None:
    """In the table, in the titles of the charts, and in a note; figures of another run are not."""
    few, every = write_run(tmp_path / "few", seed=1), write_run(tmp_path / "all")
    append(few / "config.yaml", "eval:\n  limit: 8\n")
    note = "*: smoke figures, of at most the first 8 problems of each file (eval.limit)"
    page = Page(report(few, every, out=tmp_path / "both.html"))
    assert page.text.count("10.0% → 71.0%*") == 1
    assert page.text.count("10.0% → 71.0%") == 2
    assert page.text.count(note) == 1
    titles = {chart["title"] for chart in page.data["charts"]}
    assert {"Held-out accuracy*", "Held-out format and verdict*", "Reward"} <= titles
    page = Page(report(every))
    assert "Held-out accuracy" in {chart["title"] for chart in page.data["charts"]}
    assert "smoke" not in page.text


def test_the_plot_of_a_few_problems_is_marked(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "A")

    def texts() -> tuple[str, str]:
        figure = draw(folder)
        return figure.axes[0].get_title(), figure.get_supxlabel()

    assert texts() == ("held-out accuracy (validation)", "")
    append(folder / "config.yaml", "eval:\n  limit: 8\n")
    note = "*: smoke figures, of at most the first 8 problems of each file (eval.limit)"
    assert texts() == ("held-out accuracy* (validation)", note)
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 1.0}\n')
    assert texts() == ("held-out accuracy (validation)", "")


def test_a_run_still_going_with_cut_last_lines(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "A", steps=5, finished=False)
    append(folder / "metrics.jsonl", '{"step": 6, "reward/me')
    path = folder / "completions" / "step_000005.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])
    page = Page(report(folder))
    assert page.data["runs"][0]["steps"] == [0, 1, 2, 3, 4, 5]
    assert len(page.data["runs"][0]["completions"]) == 4 * 8
    assert "running or stopped, 5 of 5 steps" in page.text
    assert "step_000005.jsonl.gz is damaged" in page.text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    folder = tmp_path / "A"
    folder.mkdir()
    (folder / "config.yaml").write_text("steps: 5\n")
    page = Page(report(folder))
    assert page.data["runs"][0]["steps"] == []
    assert "No step is finished yet" in page.text


def test_damage_in_the_middle_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "A", steps=5)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[3] = lines[3][:40]  # step 3
    (folder / "metrics.jsonl").write_bytes("\n".join([*lines, "[1, 2]", ""]).encode() + b"\xff\xfe\n")
    (folder / "config.yaml").write_text("steps: [1\n")
    (folder / "summary.json").write_text("{")
    page = Page(report(folder))
    assert page.data["runs"][0]["steps"] == [0, 1, 2, 4, 5]
    assert "metrics.jsonl: 3 unreadable lines were skipped" in page.text
    assert "config.yaml is not readable" in page.text
    assert "summary.json is not readable" in page.text


def test_a_repeated_step_counts_once_and_the_later_value_wins(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "A", steps=3)
    append(folder / "metrics.jsonl", '{"step": 2, "reward/mean": 9.0}\n')
    run = read.Run(folder, 10)
    assert run.steps == [0, 1, 2, 3]
    assert run.metrics["reward/mean"][2] == 9.0
    assert run.metrics["reward/mean"][0] is None  # step 0 is only an evaluation


def test_nan_is_a_gap(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "A", steps=3)
    append(
        folder / "metrics.jsonl", json.dumps({"step": 4, "policy/grad_norm": math.nan, "loss/total": math.inf}) + "\n"
    )
    page = Page(report(folder))
    assert page.data["runs"][0]["metrics"]["policy/grad_norm"][-1] is None


def test_a_long_run_is_thinned_but_keeps_its_held_out_figures(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "A", steps=1)
    rows = (
        {"step": n, "reward/mean": n / 9} | ({"eval/greedy_accuracy": 0.5} if n == 7 else {}) for n in range(10_000)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read.Run(folder, 10)
    assert len(run.steps) == 2000 + 1  # 10,000 rows, at most 2,000: one in five (0, 5, 10, ...), and step 7
    assert 7 in run.steps
    assert any("one row in 5 is shown" in note for note in run.notes)


def test_a_figure_that_never_moves_is_a_line_and_no_chart(tmp_path: Path) -> None:
    page = Page(report(write_run(tmp_path / "A")))
    assert "Skipped updates: 0" in page.text
    assert "Skipped updates" not in [chart["title"] for chart in page.data["charts"]]


def test_every_metric_is_drawn_once(tmp_path: Path) -> None:
    metrics = read.Run(write_run(tmp_path / "A"), 1).metrics
    charts = charts_for([*metrics, "somebody/new"])
    drawn = [metric for chart in charts for metric, _ in chart["series"]]
    assert len(drawn) == len(set(drawn))
    assert set(metrics) - set(drawn) == {"time", "time/step", "reward/std"}
    assert [chart["title"] for chart in charts if chart["section"] == REST] == ["somebody/new"]
    assert all(chart["caption"] for chart in charts if chart["section"] != REST)


# ---- which completions ----


def test_completions_within_the_limit_are_all_kept(tmp_path: Path) -> None:
    run = read.Run(write_run(tmp_path / "A", steps=10), 80)
    assert len(run.completions) == 80
    assert run.notes == []


def test_the_limit_keeps_the_newest_and_spreads_the_rest(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "A", steps=33)
    run = read.Run(folder, 40)  # an eighth, 5 rows, of each of 8 steps
    steps = sorted({row["step"] for row in run.completions})
    assert len(run.completions) == 40
    # Newest and first; the middle; the quarters; of the eighths the first three.
    assert steps == [1, 5, 9, 13, 17, 21, 25, 33]
    assert "holds 40 completions of the run" in run.notes[0]
    assert {row["step"] for row in read.Run(folder, 1).completions} == {33}


def test_steps_shown_in_part_are_said_where_every_step_is_shown(tmp_path: Path) -> None:
    """Two steps of 8 completions; a limit of 10 has room for 5 of each."""
    run = read.Run(write_run(tmp_path / "A", steps=2), 10)
    assert len(run.completions) == 10
    assert "holds 10 completions of the run" in run.notes[0]


def test_every_step_comes_up_once() -> None:
    for count in range(70):
        assert sorted(read.newest_first_then_spread(count)) == list(range(count))
    assert doctest.testmod(read).failed == 0


def test_a_very_long_text_keeps_its_ends(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "A", steps=1)
    edit_completion(folder, 1, 0, completion="a" * 1_000_000 + "z")
    text = read.Run(folder, 10).completions[0]["text"]
    assert text.startswith("aaa")
    assert text.endswith("az")
    assert "980001 characters" in text  # of 1,000,001
    assert len(text) < 20_100


# ---- nothing a model writes is HTML ----


def test_no_completion_can_end_the_data(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "A", steps=1)
    edit_completion(folder, 1, 0, completion=EVIL, answer=EVIL, prompt=EVIL)
    page = Page(report(folder))
    assert len(page.scripts) == 5  # the data, plotly.js and the three of ours
    row = page.data["runs"][0]["completions"][0]
    assert row["text"] == EVIL
    assert row["answer"] == EVIL


def test_names_and_settings_are_escaped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "<script>alert(1)<b>", steps=1)
    (folder / "config.yaml").write_text("model: '</pre><script>alert(2)</script>'\n")
    page = Page(report(folder))
    assert len(page.scripts) == 5
    assert "<script>alert(1)<b>" in page.text
    assert "</pre><script>alert(2)</script>" in page.text


# ---- the command ----


def test_a_wrong_folder_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "A", steps=1)
    for arguments, words in (
        (["gone"], "does not exist"),
        (["empty"], "not a run folder"),
        (["A", "gone"], "does not exist"),
        (["A", "--completions", "0"], "it must be from 1"),
        (["A", "--out", "empty"], "Is a directory"),
        (["A", "--out", "gone/report.html"], "cannot write"),
        (["A", "--out", "A/config.yaml/report.html"], "cannot write"),
    ):
        here = [str(tmp_path / word) if word[0] != "-" and not word.isdigit() else word for word in arguments]
        assert main(here) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


def test_what_lies_beside_the_runs_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A start killed at once left `empty`; the report of a call before lies in the same folder."""
    write_run(tmp_path / "A", steps=1)
    write_run(tmp_path / "B", steps=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "report.html").touch()
    assert main([str(path) for path in sorted(tmp_path.iterdir())]) == 0
    assert [run["name"] for run in Page(tmp_path / "report.html").data["runs"]] == ["A", "B"]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" has neither")[0] for line in said] == [
        f"skipped: not a run folder: {tmp_path / name}" for name in ("empty", "report.html")
    ]


def test_a_failed_write_leaves_the_old_page(tmp_path: Path) -> None:
    """The kernel refuses files over 16 KiB, as a full disk would."""
    folder = write_run(tmp_path / "A", steps=1)
    (folder / "report.html").write_text("old")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))

    command = [sys.executable, "-B", "-m", "grpo.report", str(folder)]
    done = subprocess.run(command, cwd=REPO, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "report.html").read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == [
        "completions", "config.yaml", "metrics.jsonl", "report.html", "summary.json",
    ]  # fmt: skip


def test_one_run_named_twice_is_one_and_equal_names_are_told_apart(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "x" / "A", steps=1), write_run(tmp_path / "y" / "A", steps=1)
    assert [run["name"] for run in Page(report(first, first / ".." / "A")).data["runs"]] == ["A"]
    assert main([str(first), str(second)]) == 0  # without --out: beside the first run
    assert [run["name"] for run in Page(tmp_path / "x" / "report.html").data["runs"]] == [str(first), str(second)]
