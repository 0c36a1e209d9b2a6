"""What a data set's row says, in the forms that data sets have: verl's, question and answer, messages, solutions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from data.rows import Row
from rewards import ground_truth_text, last_box

Scalar = str | int | float | bool
PROMPTS = ("prompt", "messages", "question", "problem")
TRUTHS = ("ground_truth", "answer", "final_answer", "solution")
"""In this order, behind verl's reward_model.ground_truth; the last resort is what the assistant says in `messages`."""


class Said(NamedTuple):
    """What a row says."""

    chat: list[dict[str, str]]
    truth: str
    extra: dict[str, Scalar]
    """Its other columns that hold text or a number; those of a nested column as column.name"""


def read_row(row: Row | str, system: str, columns: tuple[str | None, str | None], graded: bool) -> Said:
    """The row's chat behind the system message, and its ground truth. ValueError with the reason where it has none.

    `columns` names those of prompt and ground truth; None is for one of the usual names. `graded`: the verifier grades
    the ground truth, so the answer in it is what counts. Otherwise it is text as it is, or anything else as JSON.
    """
    if isinstance(row, str):
        raise ValueError(row)
    prompt_key, chat = _chat(row, columns[0], system)
    truth_key, truth = _truth(row, columns[1])
    others = {name: value for name, value in row.items() if name not in (prompt_key, truth_key)}
    if graded:
        text = ground_truth_text(answer_in(truth))
    else:
        text = truth if isinstance(truth, str) else json.dumps(truth, default=str)
    for content in (text, *(message["content"] for message in chat)):
        try:
            content.encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half a character (a lone surrogate such as \\ud800)") from None
    return Said(chat, text, _scalars(others))


def _scalars(columns: Row) -> dict[str, Scalar]:
    """Those that hold text or a number, with the ones inside nested columns.

    >>> _scalars({"level": 3, "extra_info": {"split": "train"}, "steps": [1, 2]})
    {'level': 3, 'extra_info.split': 'train'}
    """
    nested = {
        f"{name}.{key}": v for name, column in columns.items() if isinstance(column, dict) for key, v in column.items()
    }
    return {name: value for name, value in (columns | nested).items() if isinstance(value, Scalar)}


def _value(row: Row, column: str | None, usual: Sequence[str]) -> tuple[str, Any]:
    """(name, value) of the named column, else of the first of the usual ones that holds something."""
    if column is not None and column not in row:
        raise ValueError(f"no column {column}; the row has {', '.join(map(str, row))}")
    names = [column] if column is not None else usual
    return next(((name, row[name]) for name in names if row.get(name) not in (None, "", [])), ("", None))


def _chat(row: Row, column: str | None, system: str) -> tuple[str, list[dict[str, str]]]:
    """The prompt's column, and its chat with our system message in front; a text is one user turn.

    What the assistant answers at the end of a chat is not part of the prompt.
    """
    name, prompt = _value(row, column, PROMPTS)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt.strip()}]
    if not isinstance(prompt, list) or not all(map(_is_message, prompt)):
        raise ValueError("no prompt; expected a list of messages with role and content, or a text")
    chat = [{"role": message["role"], "content": message["content"]} for message in prompt]
    while chat and chat[-1]["role"] == "assistant":
        chat.pop()
    if not chat:
        raise ValueError(f"no prompt; looked for {column or ', '.join(PROMPTS)}")
    if any("<|im_start|>" in message["content"] for message in chat):
        raise ValueError(
            "the prompt holds <|im_start|>, so a chat template was already applied to it; store plain text"
        )
    if not system:
        return name, chat
    if chat[0]["role"] == "system":
        raise ValueError("the row brings its own system message; use --prompt plain to keep it")
    return name, [{"role": "system", "content": system}, *chat]


def _is_message(message: Any) -> bool:
    """Role and content, both text and not empty."""
    fields = (message.get("role"), message.get("content")) if isinstance(message, dict) else ()
    return bool(fields) and all(isinstance(field, str) and field for field in fields)


def _truth(row: Row, column: str | None) -> tuple[str, Any]:
    """The column of the ground truth, and what it holds."""
    nested, chat = row.get("reward_model"), row.get("messages")
    if column is None and isinstance(nested, dict) and nested.get("ground_truth") not in (None, ""):
        return "reward_model", nested["ground_truth"]
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
