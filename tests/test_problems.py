"""Rows in, problems out: errors name the row, and the problems of a step follow from its number."""

from __future__ import annotations

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from byte_tokenizer import make_byte_tokenizer

import grpo.chat_template
import prompts
from grpo.chat_template import ChatTemplate
from grpo.engines.base import SamplingParams
from grpo.errors import EndlessTemplate, UserError
from grpo.problems import training_problems
from grpo.rollout import draw, request_seed, rollout
from grpo.settings import build
from grpo.types import Problem


@pytest.fixture(scope="module")
def tokenizer():
    return make_byte_tokenizer()


def row(content="1+1=?", truth="2", **extra):
    return {"prompt": [{"role": "user", "content": content}], "reward_model": {"ground_truth": truth}} | extra


def write(tmp_path, rows, kind="jsonl"):
    path = tmp_path / f"data.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_become_problems(tmp_path, tokenizer, kind):
    path = write(tmp_path, [row(), row("2+2=?\u2028", "4")], kind)  # a line separator, but not the end of a row
    first, second = load_problems(path, tokenizer, "qwen25-math-cot", 200)
    assert first.prompt == (
        f"<|im_start|>system\n{prompts.load('qwen25-math-cot')}<|im_end|>\n"
        "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(first.prompt_ids) == first.prompt
    assert (second.index, second.ground_truth) == (1, "4")


def test_the_template_is_rendered_once(tmp_path, tokenizer):
    (problem,) = load_problems(write(tmp_path, [row()]), tokenizer, "plain", 99)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert problem.prompt_ids.count(start) == 2  # user and assistant
    assert problem.prompt.count("<|im_start|>") == 2


def test_a_prompt_that_asks_for_a_box_gets_the_system_message_all_the_same(tmp_path, tokenizer):
    (problem,) = load_problems(write(tmp_path, [row(r"x? Answer in \boxed{}.")]), tokenizer, "multi-signal", 999)
    assert prompts.load("multi-signal") in problem.prompt


def test_without_a_chat_template_the_texts_stand_by_themselves(tokenizer):
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        assert ChatTemplate(tokenizer).render([{"role": "user", "content": "a"}]) == "a\n\n"
    finally:
        tokenizer.chat_template = template


def test_the_real_one_shot_data(data_dir, tokenizer):
    found = load_problems(data_dir / "pi1_r128.parquet", tokenizer, "multi-signal", 2000)
    assert len(found) == 128
    assert {p.ground_truth for p in found} == {"12.8"}  # the label as published; exact is the cube root of 2048
    assert len({p.prompt_ids for p in found}) == 1
    assert [p.index for p in found] == list(range(128))


def read(path, tokenizer, template="plain", longest=150, **options):
    settings = {"data": str(path), "prompt": template, "rollout.max_prompt_tokens": longest, "bad_rows.limit": 0.9}
    return training_problems(build("cpu", settings | options), tokenizer)


def load_problems(*args):
    return read(*args, **{"bad_rows.limit": 0.05})[0]


def test_the_pool_of_the_paper_loses_four_rows(data_dir):
    """One has no ground truth; one is a division sign, one a list of number bases, one was cut off."""
    problems, bad = read(data_dir / "dsr_sub.parquet", None, "plain", 2000)
    assert (len(problems), len(bad)) == (1205, 4)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"reward_model": {"ground_truth": "2"}}, "no prompt"),
        (row(content=""), "no prompt"),
        ({"prompt": "1+1=?"}, "no ground truth"),
        (row(truth=""), "no ground truth"),
        ({"prompt": "1+1=?", "reward_model": "2"}, "no ground truth"),
        ({"prompt": 7, "answer": "2"}, "no prompt"),
        ({"prompt": [{"role": "user", "content": ["1+1=?"]}], "answer": "2"}, "no prompt"),
        (row(truth="\\frac{1}{"), "unreadable"),
        (row(truth={"target": 3}), "need a string or a"),
        (row("long " * 99), r"the prompt has \d+ tokens, more than rollout.max_prompt_tokens 150"),
        (row("<|im_start|>user\nhi"), r"the prompt holds <\|im_start\|>"),
        (row("[INST] 1+1=? [/INST]"), r"the prompt holds \[INST\]"),
        (row("<start_of_turn>user\n1+1=?<end_of_turn>"), "the prompt holds <start_of_turn>"),
        (row("<｜User｜>1+1=?<｜Assistant｜>"), "the prompt holds <｜User｜>"),
        (row("<|user|>\n1+1=?<|end|>"), r"the prompt holds <\|user\|>"),
        (row("<|start_of_role|>user<|end_of_role|>1+1=?"), r"<\|start_of_role\|>"),
        (row("### Instruction:\n1+1=?\n\n### Response:\n"), "### Response:, which a chat template writes"),
        (row("Is it 2?<|endoftext|>"), r"the prompt holds <\|endoftext\|>"),
        ({"prompt": "Be brief.", "question": "1+1=?", "answer": "2"}, "prompt and question hold different texts"),
        ({"prompt": "[{'role': 'user', 'content': '1+1=?'}]", "answer": "2"}, "a chat written as Python text"),
        ({"prompt": "1+1=?", "answer": "2" * 1_000_001}, "have 1000006 characters; the limit is 1000000"),
        (row("half \ud800"), "lone surrogate"),
        (row(truth="\ud800"), "lone surrogate"),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out_with_its_reason(tmp_path, tokenizer, bad, reason):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, [row(), bad, row("3+3=?", "6")])))
    problems, left = read(path, tokenizer)
    assert [(problem.index, problem.ground_truth) for problem in problems] == [(0, "2"), (2, "6")]
    assert [bad_row.place for bad_row in left] == ["line 2"]
    assert re.search(reason, left[0].reason)


@pytest.mark.parametrize(
    ("line", "reason"),
    [("{broken", "not JSON"), ("[1, 2]", "a row is a JSON object"), ("[" * 9999, "recursion")],
)
def test_a_line_that_is_no_row_is_named_by_the_line_of_the_file(tmp_path, tokenizer, line, reason):
    path = tmp_path / "data.jsonl"
    path.write_text(f"\ufeff{json.dumps(row())}\n\n{line}\n")  # a byte order mark, and an empty line that counts
    problems, left = read(path, tokenizer)
    assert (len(problems), left[0].place) == (1, "line 3")
    assert reason in left[0].reason


FORMS = {
    "verl": (row("1+1=?"), "2"),
    "question and answer": ({"question": "1+1=?", "answer": 2}, "2"),
    "problem and solution": ({"problem": "1+1=?", "solution": r"It is \boxed{1} or \boxed{2}."}, "2"),
    "gsm8k": ({"question": "1+1=?", "answer": "1 and 1 make 2.\n#### 2"}, "2"),
    "messages": ({"messages": [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "#### 2"}]}, "2"),
    "a number": ({"prompt": "1+1=?", "answer": 2.0}, "2"),
    "a list": ({"prompt": "1+1=?", "answer": ["2", 3]}, '["2", "3"]'),
    "a JSON list": (row("1+1=?", '["2"]'), "2"),
    "the JSON text of a chat": ({"prompt": '[{"role": "user", "content": "1+1=?"}]', "answer": "2"}, "2"),
    "an empty system message": ({"messages": [{"role": "system", "content": ""}, *row()["prompt"]], "answer": 2}, "2"),
    "reward_model as JSON": (row() | {"reward_model": '{"style": "rule", "ground_truth": "2"}'}, "2"),
    "the question twice": ({"prompt": "1+1=?", "problem": " 1+1=?\n", "answer": "2"}, "2"),
    "OlympiadBench": ({"question": "1+1=?", "final_answer": ["$2$"], "solution": ["long"]}, "2"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_that_rows_have(tmp_path, tokenizer, form):
    given, truth = FORMS[form]
    (problem,), _ = read(write(tmp_path, [given]), tokenizer)
    assert problem.prompt == "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
    assert problem.ground_truth == truth


@pytest.mark.parametrize("question", ["|x|<3, |y|>2", "1 <|2|> 3", "a<|x|>b", "Answer: 1+1=?", "[1, 2]", "{1, 2}"])
def test_mathematics_is_no_marker(tmp_path, tokenizer, question):
    (problem,) = load_problems(write(tmp_path, [row(question)]), tokenizer, "plain", 150)
    assert problem.chat[-1]["content"] == question


def test_a_table_of_text(tmp_path, tokenizer):
    (tmp_path / "data.csv").write_text('\ufeffquestion,answer\n"1+1=?, or\n2",007\n', encoding="utf-8")
    (problem,) = load_problems(tmp_path / "data.csv", tokenizer)
    assert (problem.chat[-1]["content"], problem.ground_truth) == ("1+1=?, or\n2", "007")


def test_columns_of_bytes_are_text(tmp_path, tokenizer):
    (problem,) = load_problems(write(tmp_path, [{"question": b"1+1=?", "answer": b"2"}], "parquet"), tokenizer)
    assert (problem.chat[-1]["content"], problem.ground_truth) == ("1+1=?", "2")
    _, (bad,) = read(write(tmp_path, [{"question": b"1", "answer": b"2"}, {"question": b"\xff"}], "parquet"), tokenizer)
    assert "invalid start byte" in bad.reason


def test_columns_can_be_named_and_the_others_stay_with_the_problem(tmp_path, tokenizer):
    path = write(tmp_path, [{"text": "1+1=?", "sum": 2, "answer": "no", "difficulty": 3, "data_source": "mine"}])
    (problem,), _ = read(path, tokenizer, data_columns="text, sum")
    assert (problem.ground_truth, problem.source) == ("2", "mine")
    assert problem.extra == {"answer": "no", "difficulty": 3, "data_source": "mine"}
    with pytest.raises(UserError, match="no column total; the row has text, sum, answer"):
        read(path, tokenizer, data_columns="text,total")
    with pytest.raises(UserError, match="data_columns is 'text'"):
        read(path, tokenizer, data_columns="text")


@pytest.mark.parametrize(("content", "message"), [(b"\xff", "is not UTF-8 text"), (None, "no prompt called")])
def test_a_system_message_of_ones_own(tmp_path, tokenizer, content, message):
    (tmp_path / "good.txt").write_bytes(b"\xef\xbb\xbfBe brief.\n")  # a byte order mark is not part of it
    (problem,) = load_problems(write(tmp_path, [row()]), tokenizer, str(tmp_path / "good.txt"), 99)
    assert problem.prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    if content:
        (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_problems(write(tmp_path, [row()]), tokenizer, str(tmp_path / "bad.txt"), 99)


def test_a_reward_of_ones_own_gets_the_truth_as_it_is(tmp_path, tokenizer):
    truths = [{"target": 3, "numbers": [1, 2]}, "#### no maths \\frac{1}{", ["a", 1]]
    path = str(write(tmp_path, [row(truth=truth) for truth in truths]))
    problems, bad = training_problems(build("cpu", {"data": path, "reward.name": "mine:f"}), tokenizer)
    assert not bad
    assert [p.ground_truth for p in problems] == ['{"target": 3, "numbers": [1, 2]}', truths[1], '["a", 1]']


def test_the_first_rows_only(tmp_path, tokenizer):
    problems, _ = read(write(tmp_path, [row(f"{i}?", str(i)) for i in range(9)]), tokenizer, data_limit=4)
    assert [problem.ground_truth for problem in problems] == ["0", "1", "2", "3"]


def test_more_bad_rows_than_allowed_are_an_error(tmp_path, tokenizer, capsys):
    """1 of 20 is 5%."""
    path = str(write(tmp_path, [*[row()] * 19, row(truth="")]))

    def load(**overrides):
        return training_problems(build("cpu", {"data": path} | overrides), tokenizer)

    problems, bad = load()
    assert (len(problems), len(bad)) == (19, 1)
    assert "1 of 20 rows cannot be used (line 20: no ground truth" in capsys.readouterr().err
    for strict in ("0.049", "error"):
        with pytest.raises(UserError, match=r"1 of 20 rows cannot be used \(line 20: .*bad_rows.limit"):
            load(**{"bad_rows.limit": strict})
    with pytest.raises(UserError, match="1 of 1 rows cannot be used"):
        training_problems(build("cpu", {"data": str(write(tmp_path, [row(truth="")])), "bad_rows.limit": "0.9"}), None)
    with pytest.raises(UserError, match="no rows"):
        load_problems(write(tmp_path, []), tokenizer, "plain", 150)


def test_a_row_with_its_own_system_message_is_not_given_a_second(tmp_path, tokenizer):
    own = row()
    own["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    path = write(tmp_path, [own])
    with pytest.raises(UserError, match="--prompt plain"):
        load_problems(path, tokenizer, "multi-signal", 999)
    assert "Be brief." in load_problems(path, tokenizer, "plain", 999)[0].prompt


def test_unreadable_files(tmp_path, tokenizer):
    for name, content, message in (
        ("a.parquet", b"not parquet", "cannot read"),
        ("a.jsonl", b"\xff\xfe", "not JSON"),
        ("a.json", b"{}", "no list of rows"),
        ("a.txt", b"a,b", r"data files are \.parquet, \.jsonl, \.json, \.csv"),
        ("a.csv", b"question,answer\n\xff,7", "cannot read"),
        ("b.csv", b"question,answer\n" + b"7" * 200_000 + b",7", "field larger than field limit"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_problems(tmp_path / name, tokenizer, "plain", 99)
    with pytest.raises(UserError, match="no data file at"):
        load_problems(tmp_path / "missing.parquet", tokenizer, "plain", 99)
    with pytest.raises(UserError, match="no prompt called 'none-such'"):
        load_problems(write(tmp_path, [row()]), tokenizer, "none-such", 99)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A folder as a Hugging Face dataset has it: one configuration, two splits, named in its card."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "gsm"
    folder.mkdir()
    splits = "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in ("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{splits}---\n")
    for name, answer in (("train", "#### 2"), ("test", "#### 3")):
        (folder / f"{name}.jsonl").write_text(json.dumps({"question": "?", "answer": answer}) + "\n")
    return folder


@pytest.mark.parametrize(("part", "truth"), [("", "2"), (":main", "2"), (":main:test", "3"), ("::test", "3")])
def test_a_hugging_face_dataset(dataset, tokenizer, part, truth):
    (problem,) = load_problems(f"{dataset}{part}", tokenizer, "plain", 150)
    assert problem.ground_truth == truth


@pytest.mark.parametrize("part", [":main:none-such", ":none-such", ":a:b:c"])
def test_a_dataset_that_has_no_such_part(dataset, tokenizer, part):
    with pytest.raises(UserError, match="owner/name::split") as raised:
        load_problems(f"{dataset}{part}", tokenizer, "plain", 150)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for %}", "cannot write this prompt"),
        ("{{ raise_exception('no system message') }}", "no system message"),
        ("{{ 1 / 0 }}", "division"),
    ],
)
def test_a_chat_template_that_fails_is_one_line(tmp_path, tokenizer, monkeypatch, template, reason):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(UserError, match=reason):
        load_problems(write(tmp_path, [row()]), tokenizer, "plain", 150)
    with pytest.raises(UserError, match=reason):
        ChatTemplate(tokenizer).render([{"role": "user", "content": "?"}])


def test_a_chat_template_that_never_ends_is_stopped(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(grpo.chat_template, "TIME_LIMIT_S", 0.2)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", loops)
    with pytest.raises(EndlessTemplate, match=r"took more than 0.2 s for one prompt"):
        load_problems(write(tmp_path, [row()]), tokenizer)


def test_rows_are_read_in_any_thread(tmp_path, tokenizer):
    """A template is stopped by a signal, which only the main thread can ask for."""
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(load_problems, write(tmp_path, [row()]), tokenizer).result()) == 1


PROBLEMS = [Problem(i, "", (1,), "1") for i in range(10)]


def test_a_step_draws_without_repeating_and_an_epoch_covers_the_data():
    for step in range(1, 30):
        drawn = [p.index for p in draw(PROBLEMS, 5, seed=0, step=step)]
        assert len(set(drawn)) == 5
    epoch = [p.index for step in (1, 2) for p in draw(PROBLEMS, 5, seed=0, step=step)]
    assert Counter(epoch) == Counter(p.index for p in draw(PROBLEMS, 10, seed=0, step=1)) == Counter(range(10))


def test_what_a_step_draws_follows_from_seed_and_step_alone():
    def order(seed, step):
        return [p.index for p in draw(PROBLEMS, 10, seed, step)]

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(2, 3)
    assert order(1, 3) != order(1, 4)


def test_fewer_rows_than_a_step_asks_for_go_round():
    """10 rows repeated 3 times hold 25 problems: each is drawn 2 or 3 times, one epoch is one step."""
    drawn = Counter(p.index for p in draw(PROBLEMS, 25, seed=0, step=1))
    assert sorted(set(drawn.values())) == [2, 3]
    assert draw(PROBLEMS[:1], 4, seed=0, step=7) == PROBLEMS[:1] * 4


def test_a_problem_drawn_twice_is_sampled_twice():
    """Its first place has the seed that it always had; the second place has another."""
    asked = []
    engine = SimpleNamespace(generate=lambda requests, sampling: asked.extend(requests) or [()] * len(requests))
    rollout(engine, [PROBLEMS[3], PROBLEMS[4], PROBLEMS[3], PROBLEMS[3]], 2, SamplingParams(1), 5, 6)
    seeds = [request.seed for request in asked]
    assert seeds[:2] == [request_seed(5, 6, 3), request_seed(5, 6, 4)]
    assert len(set(seeds)) == 4
