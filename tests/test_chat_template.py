"""The prompt that a model reads: rendered as its family renders it, pinned, and reported where it surprises."""

from __future__ import annotations

import json
import re

import pytest
from byte_tokenizer import CHATML, make_byte_tokenizer
from transformers import GenerationConfig

import prompts
from grpo.chat_template import ChatTemplate, describe_prompt, stop_ids, surprises
from grpo.errors import UserError
from grpo.problems import training_problems
from grpo.settings import build

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n"
    "{% else %}<|im_start|>system\nPlease reason step by step.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # Qwen2.5-Math and SmolLM2
STUBBORN = DEFAULT_SYSTEM.replace("== 'system' %}", "== 'system' and messages[0]['content'] %}", 1)
NO_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "<|im_start|>system\nToday: {{ date_string }}<|im_end|>\n" + CHATML
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set s = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set s = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for m in loop_messages %}{% if m.role == 'user' %}<s>[INST] {{ s if loop.first else '' }}{{ m.content }}"
    " [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
GEMMA = (
    "<bos>{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ first if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
THINKS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
SWITCH = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)  # Qwen3


def chat(content: str = "1+1=?", system: str | None = None) -> list[dict[str, str]]:
    user = {"role": "user", "content": content}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def reports(tmp_path, tokenizer, prompt: str = "plain", generation: GenerationConfig | None = None, **settings):
    """The lines about the first prompt of a data set of one problem, and that prompt."""
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "1+1=?", "answer": "2"}) + "\n")
    config = build("cpu", {"data": str(data), "prompt": prompt, "rollout.max_prompt_tokens": 2000} | settings)
    (problem,), _ = training_problems(config, tokenizer)
    template = ChatTemplate.of_run(config, tokenizer)
    return list(surprises(problem, template, generation)), problem.prompt


@pytest.mark.parametrize("prompt", ["plain", "multi-signal"])
@pytest.mark.parametrize(
    ("template", "special", "eos", "bos"),
    [
        (CHATML, ["<|im_start|>"], "<|im_end|>", None),
        (SWITCH, ["<|im_start|>"], "<|im_end|>", None),
        (LLAMA2, [], "</s>", "<s>"),
        (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>"], "<|eot_id|>", "<|begin_of_text|>"),
        (GEMMA, ["<start_of_turn>"], "<end_of_turn>", "<bos>"),
    ],
    ids=["chatml", "qwen3", "llama 2", "llama 3", "gemma"],
)
def test_templates_without_a_surprise_have_no_report(tmp_path, template, special, eos, bos, prompt):
    found, rendered = reports(tmp_path, make_byte_tokenizer(template, special, eos, bos), prompt)
    assert found == []
    assert prompts.load(prompt) in rendered


SURPRISES = {
    "our system message is dropped": (NO_SYSTEM, "multi-signal", "our system message is missing"),
    "a system message is added": (DEFAULT_SYSTEM, "plain", "'Please reason step by step.', is replaced by an empty"),
    "it cannot be switched off": (STUBBORN, "plain", "a text of its own, 'Please reason step by step.', and no"),
    "the clock": (DATED, "plain", "writes the date: pinned to template_date 2026-11-29"),
    "a thought is open": (THINKS, "plain", "opens <think>"),
    "text ends a turn": (CHATML.replace("<|im_end|>", "END"), "plain", "the end of turn 'END' is not a single token"),
    "no template": (None, "plain", "no chat template"),
}


@pytest.mark.parametrize("case", SURPRISES)
def test_a_surprise_is_reported_in_one_line(tmp_path, case):
    template, prompt, line = SURPRISES[case]
    found, _ = reports(tmp_path, make_byte_tokenizer(template), prompt, template_date="2026-11-29")
    (matching,) = [text for text in found if line in text]
    assert "\n" not in matching
    assert len(found) == (2 if case == "the clock" else 1)  # the date is a text of the template's own, too


def test_plain_adds_nothing_to_a_template_with_a_default(tmp_path):
    """An empty system turn takes the default's place; with a message of ours nothing changes."""
    tokenizer = make_byte_tokenizer(DEFAULT_SYSTEM)
    _, plain = reports(tmp_path, tokenizer)
    assert plain == "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
    found, ours = reports(tmp_path, tokenizer, "qwen25-math-cot")
    assert found == []
    assert ours.count("system") == 1


def test_the_date_is_pinned_and_another_day_is_another_prompt():
    tokenizer = make_byte_tokenizer(DATED)
    days = [ChatTemplate(tokenizer, day=day).render(chat()) for day in ("2026-11-29", "2026-11-29", "2026-11-30")]
    assert days[0] == days[1] != days[2]
    assert "Today: 29 Nov 2026" in days[0]
    assert ChatTemplate(tokenizer).is_dated(chat())
    assert not ChatTemplate(make_byte_tokenizer()).is_dated(chat())


def test_template_args_reach_the_template_and_a_wrong_name_is_refused(tmp_path):
    tokenizer = make_byte_tokenizer(SWITCH)
    _, quiet = reports(tmp_path, tokenizer, template_args="enable_thinking=false")
    assert quiet.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    _, thinking = reports(tmp_path, tokenizer, template_args={"enable_thinking": True})
    assert thinking.endswith("<|im_start|>assistant\n")
    with pytest.raises(UserError, match="template_args has enable_thikning, which the model's chat template does not"):
        reports(tmp_path, tokenizer, template_args="enable_thikning=false")
    with pytest.raises(UserError, match=r"template_args is 'enable_thinking'.*NAME=VALUE"):
        build("cpu", {"template_args": "enable_thinking"})
    with pytest.raises(UserError, match=r"template_date is 'today'.*2026-11-29"):
        build("cpu", {"template_date": "today"})


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("", "drops the question and writes ''"),
        ("hello", "drops the question and writes 'hello'"),
        ("{{ messages[0]['content'] }}", "drops the question"),
    ],
)
def test_a_template_that_ignores_the_question_is_an_error(tmp_path, template, line):
    with pytest.raises(UserError, match=line):
        reports(tmp_path, make_byte_tokenizer(template), "multi-signal")


def test_a_base_tokenizer_gets_its_bos_and_a_template_without_it_is_reported(tmp_path):
    _, prompt = reports(tmp_path, make_byte_tokenizer(None, bos="<s>"))
    assert prompt == "<s>1+1=?\n\n"
    found, _ = reports(tmp_path, make_byte_tokenizer(CHATML, bos="<s>"))
    assert found == ["the tokenizer begins every text with <s>, and the chat template does not write it"]


def test_the_end_of_turn_stops_a_completion(tmp_path):
    """The template ends turns with a token that neither the tokenizer's EOS nor the generation config names."""
    tokenizer = make_byte_tokenizer(LLAMA3.replace("<|eot_id|>", "<|end|>"), ["<|end|>"], "</s>")
    end, eos = tokenizer.convert_tokens_to_ids(["<|end|>", "</s>"])
    assert stop_ids(tokenizer, None) == tuple(sorted((end, eos)))
    found, _ = reports(tmp_path, tokenizer)
    (line,) = found
    assert line.startswith("the end of turn <|end|> is not a stop token in the model's files")
    assert reports(tmp_path, tokenizer, generation=GenerationConfig(eos_token_id=[end]))[0] == []


def test_the_first_prompt_is_shown_with_its_special_tokens(tmp_path):
    tokenizer = make_byte_tokenizer()
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "x" * 2000, "answer": "2"}) + "\n")
    config = build("cpu", {"data": str(data), "rollout.max_prompt_tokens": 3000})
    (problem,), _ = training_problems(config, tokenizer)
    first, *lines = describe_prompt(problem, config, tokenizer, None)
    # 2,000 + user, newline, newline, assistant, newline: 2,016 bytes; and 3 special tokens
    assert first.startswith("first prompt, 2019 tokens; a completion ends at <|im_end|>")
    assert lines[0] == "    <|im_start|>user"
    assert re.fullmatch(r"    x{700,} \.\.\. \[\d+ characters\] \.\.\. x{700,}<\|im_end\|>", lines[1])
    assert lines[2] == "    <|im_start|>assistant"
    assert list(describe_prompt(problem, build("cpu", {"quiet": True}), tokenizer, None)) == []


@pytest.mark.parametrize("name", ["<|im_end|>", "</s>"])
def test_a_special_token_of_the_model_inside_a_question_is_a_bad_row(tmp_path, name):
    tokenizer = make_byte_tokenizer(CHATML, ["<|im_start|>", "</s>"])
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"What is {text}?", "answer": "2"} for text in ("1+1", name)]
    data.write_text("\n".join(map(json.dumps, rows)))
    config = build("cpu", {"data": str(data), "rollout.max_prompt_tokens": 200, "bad_rows.limit": 0.5})
    problems, (bad,) = training_problems(config, tokenizer)
    assert len(problems) == 1
    assert name in bad.reason
