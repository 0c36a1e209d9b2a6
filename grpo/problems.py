"""Data sets -> Problems: parquet or jsonl in verl's schema, rendered with the model's chat template and tokenised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from transformers import PreTrainedTokenizerBase

import prompts
from data import sources
from grpo.errors import UserError
from grpo.types import Problem
from rewards import check_ground_truth


def load_problems(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_prompt_tokens: int,
    data_dir: str | None = None,
) -> list[Problem]:
    """Every row of the file. UserError names the row that has no prompt, no readable truth, or too long a prompt."""
    system = prompt_text(template)
    problems = []
    for index, row in enumerate(read_data(locate(path, data_dir))):
        where = f"{path}, row {index}"
        messages = _messages(row, system, where)
        prompt = render(tokenizer, messages)
        ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if len(ids) > max_prompt_tokens:
            raise UserError(
                f"{where}: the prompt has {len(ids)} tokens, more than rollout.max_prompt_tokens {max_prompt_tokens}; "
                "raise the limit or remove the row"
            )
        problems.append(Problem(index, prompt, ids, ground_truth(row, where), str(row.get("data_source", ""))))
    if not problems:
        raise UserError(f"{path} has no rows; training needs at least one problem")
    return problems


def draw(problems: list[Problem], count: int, seed: int, step: int) -> list[Problem]:
    """The problems of step 1, 2, ...: a function of (seed, step) alone, so a resumed run continues where it stopped.

    Each pass over the data is a new permutation; the rows that do not fill a whole step wait for the next one.
    """
    if count > len(problems):
        raise UserError(
            f"rollout.problems is {count} but the data has {len(problems)} rows; lower it, or repeat the rows"
        )
    per_epoch = len(problems) // count
    epoch, place = divmod(step - 1, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(len(problems))
    return [problems[i] for i in order[place * count : (place + 1) * count]]


def locate(path: str | Path, data_dir: str | None = None) -> Path:
    """A file as given, or a published data set by its bare name (downloaded once, checksum verified)."""
    if Path(path).is_file():
        return Path(path)
    if len(Path(path).parts) > 1:
        raise UserError(f"no data file at {path}")
    try:
        return sources.obtain(str(path), data_dir)
    except ValueError as error:
        raise UserError(str(error)) from error


def read_data(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path).to_pylist()
        if path.suffix == ".jsonl":
            return list(map(_json_row, filter(str.strip, path.read_text(encoding="utf-8").split("\n"))))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    raise UserError(f"{path}: data files are .parquet or .jsonl")


def _json_row(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"a row is a JSON object with named fields, not {line[:80]}")
    return row


def prompt_text(template: str) -> str:
    try:
        return prompts.load(template)
    except ValueError as error:
        raise UserError(str(error)) from error


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """The prompt as the model sees it: its own chat template, applied once; without one, the texts and a blank line."""
    if tokenizer.chat_template is None:
        return "".join(f"{message['content']}\n\n" for message in messages)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _messages(row: dict[str, Any], system: str, where: str) -> list[dict[str, str]]:
    """The row's chat with our system message in front; a text prompt is one user turn."""
    prompt = row.get("prompt") or row.get("problem") or row.get("question")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt or not all(map(_is_message, prompt)):
        raise UserError(f"{where} has no prompt; expected a list of messages with role and content, or a text")
    messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
    if any("<|im_start|>" in m["content"] for m in messages):
        raise UserError(
            f"{where}: the prompt holds <|im_start|>, so a chat template was already applied to it; store plain text"
        )
    if not system:
        return messages
    if messages[0]["role"] == "system":
        raise UserError(f"{where} brings its own system message; use --prompt plain to keep it")
    return [{"role": "system", "content": system}, *messages]


def _is_message(message: Any) -> bool:
    """Role and content, both text and not empty."""
    fields = (message.get("role"), message.get("content")) if isinstance(message, dict) else ()
    return bool(fields) and all(isinstance(field, str) and field for field in fields)


def ground_truth(row: dict[str, Any], where: str) -> str:
    """The row's ground truth as one string; UserError that names the row where there is none that can be read."""
    nested = row.get("reward_model")
    truth = row.get("ground_truth", row.get("answer"))
    if isinstance(nested, dict):
        truth = nested.get("ground_truth", truth)
    if truth is None or truth == "":
        raise UserError(f"{where} has no ground truth; expected reward_model.ground_truth, ground_truth or answer")
    try:
        return check_ground_truth(truth)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
