"""Inputs of public bug reports, as they were given; never committed (--reports-dir DIR)."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from byte_tokenizer import make_byte_tokenizer
from small_runs import MODEL, arguments

import prompts
import train
from grpo.chat_template import ChatTemplate, surprises
from grpo.errors import UserError
from grpo.evaluation.scores import grade, new_verifier
from grpo.problems import training_problems
from grpo.settings import build


def load(path: Path, **settings):
    limits = {"prompt": "plain", "rollout.max_prompt_tokens": 500, "bad_rows.limit": 0.9}
    return training_problems(build("cpu", {"data": str(path)} | limits | settings), make_byte_tokenizer())


@pytest.mark.parametrize(
    ("name", "question", "truth"),
    [
        ("bytes.parquet", "a?", "7"),
        ("empty_system.jsonl", "What is 3 plus 4?", "7"),
        ("prompt_as_json_text.jsonl", "What is 3 plus 4?", "7"),
        ("verl_numpy.parquet", "What is 3 plus 4?", "7"),
    ],
)
def test_rows_of_other_forms_are_read(reports_dir, name, question, truth):
    (problem, *_), bad = load(reports_dir / name)
    assert problem.chat == [{"role": "user", "content": question}]
    assert problem.ground_truth == truth
    assert not bad


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "prompt_with_template_llama.jsonl",
            r"5 of 5 rows cannot be used .*<\|begin_of_text\|>.*\[INST\].*<start_of_t",
        ),
        ("question_and_prompt.jsonl", "prompt and question hold different texts; name the columns"),
    ],
)
def test_rows_that_would_train_on_another_prompt_are_refused(reports_dir, name, reason):
    with pytest.raises(UserError, match=reason):
        load(reports_dir / name)
    if name.startswith("question"):
        (problem,), _ = load(reports_dir / name, data_columns="question,answer")
        assert problem.chat[0]["content"] == "What is 3 plus 4?"


def test_plain_is_plain_on_a_template_with_a_default_system_message(reports_dir):
    source = (reports_dir / "default_system_template" / "chat_template.jinja").read_text()
    template = ChatTemplate(make_byte_tokenizer(source))
    chat = [{"role": "user", "content": "1+1=?"}]
    ours = {"role": "system", "content": prompts.load("qwen25-math-cot")}
    assert "Please reason step by step" not in template.render(chat)
    assert "Please reason step by step" in template.render([ours, *chat])


def test_a_run_with_a_dated_template_resumes_the_next_day(reports_dir, tmp_path):
    """The run starts on a day of its own; a resume without any option has the same prompts, on whatever day it is."""
    model = tmp_path / "dated"
    shutil.copytree(MODEL, model)
    shutil.copy(reports_dir / "dated_template" / "chat_template.jinja", model)
    settings = {"model": str(model), "rollout__max_prompt_tokens": "99", "template_date": "2001-02-03"}
    assert train.main(arguments(tmp_path, steps="1", **settings)) == 0
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "2"]) == 0
    prompts = {row["prompt"] for row in map(json.loads, (tmp_path / "run" / "problems.jsonl").read_text().splitlines())}
    assert all("Today: 03 Feb 2001" in prompt for prompt in prompts)
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "3", "--template_date", "2001-02-04"]) == 2


def test_answers_are_read_as_the_report_expects(reports_dir):
    rows = [json.loads(line) for line in (reports_dir / "tag_and_minerva.jsonl").read_text().splitlines()]
    with closing(new_verifier(workers=1)) as verifier:
        for row in rows:
            answer_from = "answer_tag" if "<answer>" in row["completion"] else "box"
            (graded,) = grade([{"completion": row["completion"], "ground_truth": row["truth"]}], verifier, answer_from)
            assert graded["flexible"]
            assert graded["strict"] == (answer_from == "answer_tag")


def test_a_dated_template_is_reported(reports_dir):
    source = (reports_dir / "dated_template" / "chat_template.jinja").read_text()
    tokenizer = make_byte_tokenizer(source)
    (problem, *_), _ = training_problems(build("cpu", {"rollout.max_prompt_tokens": 500}), tokenizer)
    assert any("pinned to template_date" in line for line in surprises(problem, ChatTemplate(tokenizer), None))
