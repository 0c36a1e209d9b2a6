"""What a data set's row says, in the forms that data sets have: verl's, question and answer, messages, solutions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from data.rows import Row
from rewards import ground_truth_text, last_box

Chat = list[dict[str, str]]
Scalar = str | int | float | bool
PROMPTS = ("prompt", "messages", "question", "problem")
TRUTHS = ("ground_truth", "answer", "final_answer", "solution")
"""In this order, behind verl's reward_model.ground_truth; the last resort is what the assistant says in `messages`."""


def read_row(row: Row | str, system: str, columns: Sequence[str | None], graded: bool) -> tuple[Chat, str, dict]:
    """The row's chat behind the system message, its ground truth, and its other columns that hold text or a number.

    `columns` names those of prompt and ground truth; None is for one of the usual names. `graded`: the verifier grades
    the ground truth, so the answer in it is what counts. Otherwise it is text as it is, or anything else as JSON.
    ValueError with the reason where the row says no problem.
    """
    if isinstance(row, str):
        raise ValueError(row)
    prompt_key, chat = _chat(row, columns[0], system)
    truth_key, truth = _truth(row, columns[1])
    if graded:
        truth = ground_truth_text(answer_in(truth))
    elif not isinstance(truth, str):
        truth = json.dumps(truth, default=str)
    try:
        "".join([truth, *(message["content"] for message in chat)]).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate such as \\ud800)") from None
    return chat, truth, _scalars({name: value for name, value in row.items() if name not in (prompt_key, truth_key)})


def _scalars(columns: Row) -> dict[str, Scalar]:
    """Those that hold text or a number, with the ones inside nested columns.

    >>> _scalars({"level": 3, "extra_info": {"split": "train"}, "steps": [1, 2]})
    {'level': 3, 'extra_info.split': 'train'}
    """
    found = dict(columns)
    for name, column in columns.items():
        if isinstance(column, dict):
            found |= {f"{name}.{key}": value for key, value in column.items()}
    return {name: value for name, value in found.items() if isinstance(value, Scalar)}


def _value(row: Row, column: str | None, usual: Sequence[str]) -> tuple[str, Any]:
    """(name, value) of the named column, else of the first of the usual ones that holds something."""
    if column is not None and column not in row:
        raise ValueError(f"no column {column}; the row has {', '.join(map(str, row))}")
    for name in [column] if column is not None else usual:
        if row.get(name) not in (None, "", []):
            return name, row[name]
    return "", None


def _chat(row: Row, column: str | None, system: str) -> tuple[str, Chat]:
    """The prompt's column, and its chat with our system message in front; a text is one user turn.

    What the assistant answers at the end of a chat is not part of the prompt.
    """
    name, prompt = _value(row, column, PROMPTS)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt.strip()}]
    chat = prompt if isinstance(prompt, list) and all(map(_is_message, prompt)) else []
    chat = [{"role": message["role"], "content": message["content"]} for message in chat]
    while chat and chat[-1]["role"] == "assistant":
        chat.pop()
    if not chat:
        looked = column or ", ".join(PROMPTS)
        raise ValueError(f"no prompt; expected a text, or a list of messages with role and content, in {looked}")
    if any("<|im_start|>" in message["content"] for message in chat):
        raise ValueError(
            "the prompt holds <|im_start|>, so a chat template was already applied to it; store plain text"
        )
    if system and chat[0]["role"] == "system":
        raise ValueError("the row brings its own system message; use --prompt plain to keep it")
    return name, [{"role": "system", "content": system}, *chat] if system else chat


def _is_message(message: Any) -> bool:
    """Role and content, both text and not empty."""
    fields = (message.get("role"), message.get("content")) if isinstance(message, dict) else ("",)
    return all(isinstance(field, str) and field for field in fields)


def _truth(row: Row, column: str | None) -> tuple[str, Any]:
    """The column of the ground truth, and what it holds."""
    verl, chat = row.get("reward_model"), row.get("messages")
    if column is None and isinstance(verl, dict) and verl.get("ground_truth") not in (None, ""):
        return "reward_model", verl["ground_truth"]
    name, truth = _value(row, column, TRUTHS)
    if name == "final_answer" and isinstance(truth, list):  # OlympiadBench: one text, or several between dollars
        truth = [str(item).replace("$", "") for item in truth]
    if truth is None and column is None and isinstance(chat, list) and chat and _is_message(chat[-1]):
        truth = chat[-1]["content"] if chat[-1]["role"] == "assistant" else None
    if truth is None:
        raise ValueError(f"no ground truth; looked for {column or ', '.join(('reward_model.ground_truth', *TRUTHS))}")
    return name, truth


def answer_in(truth: Any) -> Any:
    r"""The answer that is to be found: behind GSM8K's ####, in the last box of a solution, 27.0 as 27.

    >>> answer_in("2 + 3 is 5. #### 5"), answer_in(r"Thus \boxed{7}."), answer_in(27.0), answer_in([1, "2"])
    ('5', '7', 27, ['1', '2'])
    """
    if isinstance(truth, str):
        truth = truth.rpartition("####")[2].strip()
        return last_box(truth) or truth
    if isinstance(truth, float) and truth.is_integer():
        return int(truth)
    return [str(answer_in(item)) for item in truth] if isinstance(truth, list) else truth
