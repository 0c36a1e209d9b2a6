"""Rows in, problems out: what is wrong is said with the row, and what a step draws follows from its number."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import prompts
from grpo.errors import UserError
from grpo.problems import draw, load_problems, render
from grpo.types import Problem

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Every byte is a token, as in GPT-2's alphabet, and the chat's marks are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    found.chat_template = TEMPLATE
    return found


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
        assert render(tokenizer, [{"role": "user", "content": "a"}]) == "a\n\n"
    finally:
        tokenizer.chat_template = template


def test_the_real_one_shot_data(data_dir, tokenizer):
    found = load_problems(data_dir / "pi1_r128.parquet", tokenizer, "multi-signal", 2000)
    assert len(found) == 128
    assert {p.ground_truth for p in found} == {"12.8"}  # the label as published; exact is the cube root of 2048
    assert len({p.prompt_ids for p in found}) == 1
    assert [p.index for p in found] == list(range(128))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), {"reward_model": {"ground_truth": "2"}}], r"row 1 has no prompt"),
        ([row(), row(content="")], r"row 1 has no prompt"),
        ([row(), {"prompt": "1+1=?"}], r"row 1 has no ground truth"),
        ([row(truth="")], r"row 0 has no ground truth"),
        ([{"prompt": "1+1=?", "reward_model": "2"}], r"row 0 has no ground truth"),
        ([{"prompt": 7, "answer": "2"}], r"row 0 has no prompt"),
        ([{"prompt": [{"role": "user", "content": ["1+1=?"]}], "answer": "2"}], r"row 0 has no prompt"),
        ([row(truth="\\frac{1}{")], r"row 0"),
        ([row(), row("long " * 99)], r"row 1: the prompt has \d+ tokens, more than rollout.max_prompt_tokens 150"),
        ([row("<|im_start|>user\nhi")], r"row 0: the prompt holds <\|im_start\|>"),
        ([], r"no rows"),
    ],
)
def test_a_bad_row_is_named(tmp_path, tokenizer, rows, message):
    with pytest.raises(UserError, match=message):
        load_problems(write(tmp_path, rows), tokenizer, "plain", 150)


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
        ("a.jsonl", b"{broken", "cannot read"),
        ("a.jsonl", b"\xff\xfe", "cannot read"),
        ("a.jsonl", b"[1, 2]", "a row is a JSON object"),
        ("a.csv", b"a,b", r"\.parquet or \.jsonl"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_problems(tmp_path / name, tokenizer, "plain", 99)
    with pytest.raises(UserError, match="no data file at"):
        load_problems(tmp_path / "missing.parquet", tokenizer, "plain", 99)
    with pytest.raises(UserError, match="no prompt called 'none-such'"):
        load_problems(write(tmp_path, [row()]), tokenizer, "none-such", 99)


PROBLEMS = [Problem(i, "", (1,), "1") for i in range(10)]


def test_a_step_draws_without_repeating_and_an_epoch_covers_the_data():
    for step in range(1, 30):
        drawn = [p.index for p in draw(PROBLEMS, 5, seed=0, step=step)]
        assert len(set(drawn)) == 5
    epoch = [p.index for step in (1, 2) for p in draw(PROBLEMS, 5, seed=0, step=step)]
    assert Counter(epoch) == Counter(range(10))


def test_what_a_step_draws_follows_from_seed_and_step_alone():
    def order(seed, step):
        return [p.index for p in draw(PROBLEMS, 10, seed, step)]

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(2, 3)
    assert order(1, 3) != order(1, 4)


def test_more_problems_than_rows_is_an_error():
    with pytest.raises(UserError, match=r"rollout.problems is 11 but the data has 10 rows"):
        draw(PROBLEMS, 11, seed=0, step=1)
