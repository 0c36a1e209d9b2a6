"""The benchmarks' rows as the paper's harness reads them, and the grader against their own answers."""

from __future__ import annotations

import ast
import json
import operator
from contextlib import closing

import pytest
from truths import respelled

from data import tiny_base
from grpo.chat_template import ChatTemplate
from grpo.errors import UserError
from grpo.evaluation import benchmarks
from grpo.evaluation.request import EvalRequest
from grpo.evaluation.scores import grade, new_verifier
from grpo.evaluation.session import choose_sampling
from grpo.rollout import question
from grpo.settings import Config
from grpo.types import Problem


def pairs(name: str, data_dir) -> list[tuple[str, str]]:
    return [(question(p), p.ground_truth) for p in benchmarks.load(name, None, "plain", str(data_dir))]


@pytest.mark.parametrize(
    ("name", "row", "answer", "begins"),
    [
        ("math500", 0, r"\left( 3, \frac{\pi}{2} \right)", "Convert the point"),
        ("aime24", 0, "204", "Every morning Aya"),
        ("aime24", 7, "025", "There exist real numbers"),
        ("aime25", 0, "70", "Find the sum of all integer bases"),
        ("amc23", 0, "27", "Cities $A$ and $B$"),  # 27.0 in the file
        ("minerva_math", 1, "4.5e33", "A white dwarf star"),  # the last box of the solution
        ("minerva_math", 160, "13.1", ""),
        ("olympiadbench", 1, r"\frac{1}{2 n+2}", ""),  # $...$ in the file
        ("olympiadbench", 13, "69,84", ""),  # $69$,$84$ in the file
    ],
)
def test_question_and_reference(name, row, answer, begins, data_dir):
    question, reference = pairs(name, data_dir)[row]
    assert reference == answer
    assert question.startswith(begins)


@pytest.fixture(scope="module")
def verifier():
    with closing(new_verifier(workers=1)) as verifier:
        yield verifier


MISPRINT = {("olympiadbench", 96)}  # spelled another way it is not found right; docs/evaluation.md says why
EVERY = {"minerva_math": 8, "olympiadbench": 6}  # 27 ms of algebra a row; tests/truths.py takes all of them


@pytest.mark.parametrize("name", benchmarks.SETS["all"])
def test_own_references_are_right_and_the_next_rows_are_not(name, data_dir, verifier):
    answers = [answer for _, answer in pairs(name, data_dir)]
    assert len(answers) == benchmarks.BENCHMARKS[name].size

    def graded(outputs: list[str], truths: list[str]) -> list[dict]:
        texts = [f"It is $\\boxed{{{output}}}$." for output in outputs]
        return grade([{"completion": a, "ground_truth": b} for a, b in zip(texts, truths, strict=True)], verifier)

    assert all(row["strict"] and row["flexible"] for row in graded(answers, answers))
    rows = range(0, len(answers), EVERY.get(name, 1))
    some = [answers[row] for row in rows]
    again = graded([respelled(answer) for answer in some], some)
    assert {(name, row) for row, found in zip(rows, again, strict=True) if not found["strict"]} <= MISPRINT
    following = some[1:] + some[:1]
    crossed = graded(some, following)
    equal = {(a, b) for a, b, row in zip(some, following, crossed, strict=True) if row["strict"] and a != b}
    assert equal == ({("5", "x=5")} if name == "math500" else set())


def test_the_prompt_is_rendered_once_and_the_limit_holds(data_dir):
    tokenizer = ChatTemplate(tiny_base.make_tokenizer())
    problems = benchmarks.load("aime25", tokenizer, "qwen25-math-cot", str(data_dir), limit=3)
    assert [problem.index for problem in problems] == [0, 1, 2]
    prompt = problems[0].prompt
    assert prompt.startswith("<|im_start|>system\nPlease reason step by step")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.count("<|im_start|>") == 3
    assert prompt.count("Find the sum of all integer bases") == 1
    assert len(problems[0].prompt_ids) > 50
    assert problems[0].ground_truth == "70"
    assert not benchmarks.load("aime25", tokenizer, "plain", str(data_dir), limit=1)[0].prompt.startswith(
        "<|im_start|>s"
    )


def test_a_benchmark_counts_all_its_rows_and_a_file_of_ones_own_may_lose_one_in_twenty(tmp_path, monkeypatch):
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "1+1=?", "answer": "2"}\n' * 19 + '{"question": "1+2=?"}\n')
    assert len(benchmarks.load(str(file), None, "plain")) == 19
    monkeypatch.setitem(benchmarks.BENCHMARKS, "toy", benchmarks.Benchmark(str(file), 20))
    with pytest.raises(UserError, match=r"toy: 1 of 20 rows cannot be used \(line 20: no ground truth"):
        benchmarks.load("toy", None, "plain")


def test_what_bench_stands_for():
    assert benchmarks.names(["all"]) == ["math500", "aime24", "aime25", "amc23", "minerva_math", "olympiadbench"]
    assert benchmarks.names(["arithmetic"]) == ["arithmetic-validation", "arithmetic-test"]
    assert benchmarks.names(["amc23"]) == ["amc23"]
    assert benchmarks.names(["my/own.parquet"]) == ["my/own.parquet"]
    assert benchmarks.label("my/own.parquet") == "own"
    with pytest.raises(UserError, match=r"'MATH500' is no benchmark"):
        benchmarks.names(["MATH500"])


def test_fresh_calculations_are_right_and_follow_from_the_seed():
    assert benchmarks.fresh(0) == benchmarks.fresh(0) != benchmarks.fresh(1)
    rows = benchmarks.fresh(0).values()
    assert len({row["question"] for row in rows}) == len(rows) == 300
    for row in rows:
        node = ast.parse(row["question"].removeprefix("What is ").removesuffix("?"), mode="eval")
        assert calculated(node.body) == int(row["answer"])


def calculated(node: ast.AST) -> int:
    if isinstance(node, ast.Constant):
        return node.value
    operation = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}[type(node.op)]
    return operation(calculated(node.left), calculated(node.right))


def test_gsm8k_is_read_as_a_dataset_and_its_answers_stand_behind_the_hashes(tmp_path, monkeypatch):
    """The dataset's own columns, from a local folder in the same form."""
    row = {"question": "2 apples and 3 more?", "answer": "2 + 3 = <<2+3=5>>5. So 5 apples.\n#### 5"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    place = benchmarks.Benchmark(f"{tmp_path}::test", 1)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "gsm8k", place)
    (problem,) = benchmarks.load("gsm8k", ChatTemplate(tiny_base.make_tokenizer()), "plain")
    assert (problem.ground_truth, "2 apples" in problem.prompt) == ("5", True)
    (plain,) = benchmarks.load("gsm8k", None, "multi-signal")
    assert benchmarks.digest([problem]) == benchmarks.digest([plain])  # of the question, not of the prompt
    assert benchmarks.label("openai/gsm8k:main:train") == "gsm8k-main-train"


def test_an_audit_shows_60_percent_of_the_tokens():
    whole = Problem(0, "", (), "4", chat=[{"role": "user", "content": "0123456789"}])
    (cut,) = benchmarks.beginnings([whole], tiny_base.make_tokenizer(), 0.6)
    assert (cut.prompt, cut.extra["rest"]) == ("012345", "6789")


@pytest.mark.parametrize(
    ("samples", "temperature", "asked", "sampling"),
    [
        (8, 1.0, {}, "avg@8 at T=1"),
        (1, 0.7, {}, "T=0.7"),
        (8, 1.0, {"samples": 4}, "avg@4 at T=0.6"),
        (8, 1.0, {"samples": 1}, "greedy"),
        (1, 0.7, {"samples": 4}, "avg@4 at T=0.6"),
        (8, 1.0, {"temperature": 0.3}, "avg@8 at T=0.3"),
        (8, 1.0, {"temperature": 0}, "greedy"),
    ],
)
def test_a_benchmark_is_sampled_as_the_table_lists_it(samples, temperature, asked, sampling, monkeypatch):
    benchmark = benchmarks.Benchmark("math500", samples=samples, temperature=temperature)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "toy", benchmark)
    assert choose_sampling("toy", EvalRequest(**asked), Config()).sampling == sampling
