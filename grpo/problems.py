"""Data sets -> Problems: reads each row, renders it with the model's chat template, tokenises and checks it.

A row that cannot be used becomes a BadRow with the reason. data/rows.py reads the files, chat_template.py renders.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import prompts
from data import rows, tasks
from grpo import hub
from grpo.chat_template import EMPTY_SYSTEM, Chat, ChatTemplate, contains
from grpo.errors import UserError
from grpo.settings import Config
from grpo.terminal import notify
from grpo.types import Problem
from rewards import check_ground_truths, ground_truth_text, last_box

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Scalar = str | int | float | bool
PROMPTS = ("prompt", "messages", "question", "problem")
TRUTHS = ("reward_model.ground_truth", "ground_truth", "answer", "final_answer", "solution")
"""Columns in the order of preference, verl's first; the assistant's last message in `messages` comes after them"""
EMPTY_MESSAGES = (EMPTY_SYSTEM, EMPTY_SYSTEM | {"content": None})
MAX_CHARACTERS = 1_000_000
"""Characters of a row's texts; the tokenizer fails on hundreds of millions"""
SHOWN_ROWS = 3
"""Bad rows named on the terminal; bad_rows.jsonl in the run folder holds all of them"""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was skipped."""

    place: str
    reason: str
    row: rows.Row


def training_problems(config: Config, tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[Problem], list[BadRow]]:
    """The run's problems and the skipped rows. Raises UserError if more rows are skipped than bad_rows.limit allows.

    The verifier must be able to grade each ground truth, unless the reward or a task's scorer grades.
    """
    graded = ":" not in config.reward.name and not config.data.startswith(tasks.PREFIX)  # a task has a scorer
    placed = read_data(config.data, config.data_dir, config.data_limit)
    template = ChatTemplate.of_run(config, tokenizer) if tokenizer else None
    longest = config.rollout.max_prompt_tokens
    problems, bad = make_problems(placed, template, config.prompt, longest, config.data_columns, graded)
    reasons = _ungradable([problem.ground_truth for problem in problems.values()]) if graded else {}
    for place, problem in list(problems.items()):
        if reason := reasons.get(problem.ground_truth):
            row = {"prompt": problem.prompt, "ground_truth": problem.ground_truth} | problem.extra
            bad.append(BadRow(place, reason, row))
            del problems[place]
    check_share(config.data, len(problems), bad, config.bad_rows.limit)
    return list(problems.values()), bad


def make_problems(
    placed: Iterable[rows.Placed],
    template: ChatTemplate | None,
    prompt: str,
    longest: int | None = None,
    columns: str | None = None,
    graded: bool = True,
) -> tuple[dict[str, Problem], list[BadRow]]:
    """Returns place of a row -> its problem, and the rows that hold no problem.

    prompt: the system message, by name or path. longest: the longest prompt, in tokens. columns: "question,answer".
    graded: read the answer inside the row's ground truth (after ####, in a box); nothing here checks that it can be
    graded. Without a template the prompts are neither rendered nor measured.
    """
    system = prompt_text(prompt)
    names = _column_names(columns)
    problems: dict[str, Problem] = {}
    bad: list[BadRow] = []
    shared: dict[int, int] = {}  # one integer object per token id keeps a million prompts small
    for index, (place, row) in enumerate(placed):
        try:
            chat, truth, extra = read_row(row, system, names, graded)
            text, ids = template.encode(chat) if template else ("", [])
            if longest is not None and len(ids) > longest:
                raise ValueError(f"the prompt has {len(ids)} tokens, more than rollout.max_prompt_tokens {longest}")
        except (ValueError, RecursionError) as error:
            bad.append(BadRow(place, str(error), row if isinstance(row, dict) else {}))
            continue
        prompt_ids = tuple(shared.setdefault(token, token) for token in ids)
        problems[place] = Problem(index, text, prompt_ids, truth, str(extra.get("data_source") or ""), extra, chat)
    return problems, bad


def _ungradable(truths: Sequence[str]) -> dict[str, str | None]:
    """Ground truth -> the reason why it cannot be graded, else None. Worker processes with a time limit try it."""
    truths = list(dict.fromkeys(truths))
    with tqdm(total=len(truths), desc="ground truths", delay=5, mininterval=2, leave=False) as bar:
        reasons = check_ground_truths(truths, progress=lambda done, _: bar.update(done - bar.n))
    return dict(zip(truths, reasons, strict=True))


def check_share(name: str, good: int, bad: Sequence[BadRow], allowed: float) -> None:
    """Reports the number of skipped rows and the first reasons. Raises UserError if they are too many, or all."""
    total = good + len(bad)
    if not total:
        raise UserError(f"{name} has no rows; training needs at least one problem")
    first = "; ".join(f"{row.place}: {row.reason}" for row in bad[:SHOWN_ROWS])
    if len(bad) > SHOWN_ROWS:
        first += "; ..."
    line = f"{name}: {len(bad)} of {total} rows cannot be used ({first})"
    if not good or len(bad) > allowed * total:
        raise UserError(f"{line}. At most {allowed:.0%} may be skipped (training data: bad_rows.limit); fix these rows")
    if bad:
        notify(f"{line}; they are skipped")


# ---- one row


def read_row(row: rows.Row | str, system: str, columns: Sequence[str | None], graded: bool) -> tuple[Chat, str, dict]:
    """The row's chat after the system message, its ground truth, and its other columns that hold text or a number.

    columns: the names of prompt and ground truth, None for the usual ones. A ground truth that is not `graded` is kept
    unchanged; anything but text is written as JSON. Raises ValueError with the reason if the row holds no problem.
    """
    if isinstance(row, str):
        raise ValueError(row)
    cells = _cells(row)
    prompt_key, chat = _chat(cells, columns[0], system)
    truth_key, truth = _truth(cells, columns[1])
    if graded:
        truth = ground_truth_text(answer_in(truth))
    elif not isinstance(truth, str):
        truth = json.dumps(truth, default=str)
    text = "".join([truth, *(message["content"] for message in chat)])
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"its prompt and ground truth have {len(text)} characters; the limit is {MAX_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate such as \\ud800)") from None
    scalars = {name: cell for name, cell in cells.items() if isinstance(cell, Scalar)}
    return chat, truth, {name: cell for name, cell in scalars.items() if name not in (prompt_key, truth_key)}


def _cells(row: rows.Row) -> rows.Row:
    """Column -> value, with bytes as text; the columns inside a column also by dotted names.

    >>> _cells({"level": b"3", "reward_model": '{"ground_truth": "7"}'})
    {'level': '3', 'reward_model': {'ground_truth': '7'}, 'reward_model.ground_truth': '7'}
    """
    cells = _decoded(row)
    if isinstance(cells.get("reward_model"), str):
        with contextlib.suppress(ValueError, RecursionError):
            cells["reward_model"] = json.loads(cells["reward_model"])
    for name, cell in list(cells.items()):
        if isinstance(cell, dict):
            cells |= {f"{name}.{key}": value for key, value in cell.items()}
    return cells


def _value(row: rows.Row, column: str | None, usual: Sequence[str]) -> tuple[str, Any]:
    """(name, value) of the named column, else of the first usual one that is not empty."""
    if column is not None and column not in row:
        raise ValueError(f"no column {column}; the row has {', '.join(map(str, row))}")
    for name in [column] if column is not None else usual:
        if row.get(name) not in (None, "", []):
            return name, row[name]
    return "", None


def _decoded(value: Any) -> Any:
    """The value with all UTF-8 bytes in it decoded. Raises ValueError for other bytes."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value


def _chat(row: rows.Row, column: str | None, system: str) -> tuple[str, Chat]:
    """(column, chat) of the prompt, with the system message first."""
    name, value = _value(row, column, PROMPTS)
    chat = _messages(value)
    if not chat:
        columns = column or ", ".join(PROMPTS)
        raise ValueError(f"no prompt; expected a text, or a list of messages with role and content, in {columns}")
    if column is None:
        _refuse_second_prompt(row, name, chat)
    if system and chat[0]["role"] == "system":
        raise ValueError("the row brings its own system message; use --prompt plain to keep it")
    return name, [{"role": "system", "content": system}, *chat] if system else chat


def _messages(prompt: Any) -> Chat:
    """The chat of a prompt's value; empty if it has none. A text is one user turn, unless it is the JSON of a chat.

    An empty system message and the assistant's turns at the end are not part of the prompt.
    """
    if isinstance(prompt, str) and prompt.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError, RecursionError):
            parsed = json.loads(prompt)
            parsed = [parsed] if isinstance(parsed, dict) else parsed
            if parsed and all(isinstance(message, dict) and "role" in message for message in parsed):
                return _messages(parsed)
        if re.match(r"\s*\[?\s*\{\s*'(role|content)'", prompt):
            raise ValueError("the prompt is a chat written as Python text; store a list of messages, or its JSON")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt.strip()}]
    if not isinstance(prompt, list):
        return []
    chat = [message for message in prompt if message not in EMPTY_MESSAGES]
    if not all(map(_is_message, chat)):
        return []
    while chat and chat[-1]["role"] == "assistant":
        chat.pop()
    return [{"role": message["role"], "content": message["content"]} for message in chat]


def _refuse_second_prompt(row: rows.Row, name: str, chat: Chat) -> None:
    """Raises ValueError if another usual column holds a text that is not in the prompt."""
    for other in PROMPTS:
        second = _messages(row.get(other)) if other != name else []
        texts = [" ".join(message["content"] for message in messages) for messages in (chat, second)]
        if second and not (contains(*texts) or contains(*reversed(texts))):
            raise ValueError(
                f"{name} and {other} hold different texts; name the columns, as in --data_columns {other},answer"
            )


def _is_message(message: Any) -> bool:
    """Role and content, both text and not empty."""
    fields = (message.get("role"), message.get("content")) if isinstance(message, dict) else ("",)
    return all(isinstance(field, str) and field for field in fields)


def _truth(row: rows.Row, column: str | None) -> tuple[str, Any]:
    """(column, value) of the ground truth."""
    name, truth = _value(row, column, TRUTHS)
    if name == "final_answer" and isinstance(truth, list):  # OlympiadBench: one text, or several between dollars
        truth = [str(item).replace("$", "") for item in truth]
    chat = row.get("messages")
    if truth is None and column is None and isinstance(chat, list) and chat and _is_message(chat[-1]):
        truth = chat[-1]["content"] if chat[-1]["role"] == "assistant" else None
    if truth is None:
        raise ValueError(f"no ground truth in {column or ', '.join(TRUTHS)}")
    return name, truth


def answer_in(truth: Any) -> Any:
    r"""The answer inside a ground truth: after GSM8K's ####, or in the last box of a solution; 27.0 becomes 27.

    >>> answer_in("2 + 3 is 5. #### 5"), answer_in(r"Thus \boxed{7}."), answer_in(27.0), answer_in([1, "2"])
    ('5', '7', 27, ['1', '2'])
    """
    if isinstance(truth, str):
        truth = truth.rpartition("####")[2].strip()
        return last_box(truth) or truth
    if isinstance(truth, float) and truth.is_integer():
        return int(truth)
    return [str(answer_in(item)) for item in truth] if isinstance(truth, list) else truth


# ---- files and names


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Converts ValueErrors from data/ and prompts/ into UserErrors."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def read_data(name: str, data_dir: str | None = None, limit: int | None = None) -> Iterator[rows.Placed]:
    """The first `limit` rows of a file, of a published set by its bare name, or of a Hugging Face dataset."""
    if rows.is_dataset(name) and not Path(name.partition(":")[0]).is_dir() and not hub.reachable():
        hub.go_offline()
    with user_errors():
        bar = tqdm(rows.read(name, data_dir), desc=name, unit="row", delay=5, mininterval=2, leave=False)
        yield from islice(bar, limit)


def _column_names(columns: str | None) -> Sequence[str | None]:
    """'question,answer' -> ['question', 'answer']"""
    names = [name.strip() for name in columns.split(",")] if columns is not None else [None, None]
    if len(names) != 2 or "" in names:
        raise UserError(f"data_columns is {columns!r}; name two columns, prompt and ground truth: question,answer")
    return names


@user_errors()
def prompt_text(prompt: str) -> str:
    """The system message of that name or file."""
    return prompts.load(prompt)
