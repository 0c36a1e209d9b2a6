"""Data sets -> Problems: rendered with the model's chat template, tokenised, checked.

A row that cannot be used is left out and counted, with the reason. Where rows come from is data/rows.py, what they say
is row.py, how the model sees them is chat.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

import prompts
from data import rows, sources
from grpo import hub
from grpo.chat import render_all
from grpo.config import Config
from grpo.errors import UserError, printable
from grpo.row import Said, read_row
from grpo.types import Problem
from rewards import check_ground_truths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1000
"""Rows rendered and tokenised at once"""
ALLOWED = 0.05
"""The share of rows that may be left out where no setting says otherwise"""
SHOWN = 3
"""Bad rows that are named on the terminal; the run folder has all of them"""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out."""

    place: str
    reason: str
    row: rows.Row


def training_problems(config: Config, tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[Problem], list[BadRow]]:
    """The run's problems, and the rows that were left out. UserError where those are too many."""
    return read_problems(
        config.data,
        tokenizer,
        config.prompt,
        config.rollout.max_prompt_tokens,
        config.data_dir,
        columns=config.data_columns,
        limit=config.data_limit,
        graded=":" not in config.reward.name,  # a reward of the user's own knows what its ground truths mean
        allowed=config.bad_rows.limit,
    )


def read_problems(
    name: str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    template: str,
    max_prompt_tokens: int | None = None,
    data_dir: str | None = None,
    *,
    columns: str | None = None,
    limit: int | None = None,
    graded: bool = True,
    allowed: float = ALLOWED,
) -> tuple[list[Problem], list[BadRow]]:
    """Every row (of the first `limit`) as a problem, or as a bad row with its reason.

    `graded`: each ground truth must be one that the verifier can grade; otherwise it is whatever the row has. UserError
    where more rows than the share `allowed` are bad.
    """
    bar = tqdm(read_data(name, data_dir), desc=str(name), unit="row", delay=5, mininterval=2, leave=False)
    problems, bad = make_problems(islice(bar, limit), tokenizer, template, max_prompt_tokens, columns, graded)
    kept = []
    reasons = _ungradable([problem.ground_truth for problem in problems.values()]) if graded else {}
    for place, problem in problems.items():
        if reason := reasons.get(problem.ground_truth):
            row = {"prompt": problem.prompt, "ground_truth": problem.ground_truth} | problem.extra
            bad.append(BadRow(place, reason, row))
        else:
            kept.append(problem)
    check_share(name, len(kept), bad, allowed)
    return kept, bad


def make_problems(
    placed: Iterable[rows.Placed],
    tokenizer: PreTrainedTokenizerBase | None,
    template: str,
    max_prompt_tokens: int | None = None,
    columns: str | None = None,
    graded: bool = True,
) -> tuple[dict[str, Problem], list[BadRow]]:
    """Where a row stands -> its problem, rendered and tokenised; and the rows that say no problem, with the reason.

    Without a tokenizer the prompts are neither rendered nor measured. `graded`: the ground truth is the answer in what
    the row says (behind ####, in a box); whether anybody can grade it is not asked here.
    """
    system, pair = prompt_text(template), column_names(columns)
    problems: dict[str, Problem] = {}
    bad: list[BadRow] = []
    one_of_each: dict[int, int] = {}  # token ids repeat: one integer object for each keeps a million prompts small
    stream = enumerate(placed)
    while chunk := list(islice(stream, CHUNK)):
        said: list[tuple[int, str, rows.Row, Said]] = []
        for index, (place, row) in chunk:
            try:
                said.append((index, place, row, read_row(row, system, pair, graded)))
            except (ValueError, RecursionError) as error:
                bad.append(BadRow(place, str(error), row if isinstance(row, dict) else {}))
        prompts = _tokenized(tokenizer, [chat for *_, (chat, _, _) in said], max_prompt_tokens)
        for (index, place, row, (chat, truth, extra)), prompt in zip(said, prompts, strict=True):
            if isinstance(prompt, ValueError):
                bad.append(BadRow(place, str(prompt), row))
                continue
            text, ids = prompt
            ids = tuple(one_of_each.setdefault(i, i) for i in ids)
            problems[place] = Problem(index, text, ids, truth, str(row.get("data_source") or ""), extra, chat)
    return problems, bad


def _tokenized(
    tokenizer: PreTrainedTokenizerBase | None, chats: list[list[dict[str, str]]], longest: int | None
) -> list[tuple[str, list[int]] | ValueError]:
    """For each chat its text and token ids, or why it has none. Without a tokenizer both are empty."""
    if tokenizer is None or not chats:
        return [("", [])] * len(chats)
    texts = render_all(tokenizer, chats)
    written = [text if isinstance(text, str) else "" for text in texts]
    all_ids = tokenizer(written, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    found: list[tuple[str, list[int]] | ValueError] = []
    for text, ids in zip(texts, all_ids, strict=True):
        if isinstance(text, str) and longest is not None and len(ids) > longest:
            text = ValueError(f"the prompt has {len(ids)} tokens, more than rollout.max_prompt_tokens {longest}")
        found.append((text, ids) if isinstance(text, str) else text)
    return found


def _ungradable(truths: Sequence[str]) -> dict[str, str | None]:
    """Ground truth -> why it cannot be graded, which processes find out that are killed when they hang; else None."""
    truths = list(dict.fromkeys(truths))
    with tqdm(total=len(truths), desc="ground truths", delay=5, mininterval=2, leave=False) as bar:
        reasons = check_ground_truths(truths, progress=lambda done, _: bar.update(done - bar.n))
    return dict(zip(truths, reasons, strict=True))


def check_share(name: str | Path, good: int, bad: Sequence[BadRow], allowed: float) -> None:
    """Says how many rows are left out, and why the first few. UserError where no problem is left, or too few."""
    total = good + len(bad)
    if not total:
        raise UserError(f"{name} has no rows; training needs at least one problem")
    first = "; ".join(f"{row.place}: {row.reason}" for row in bad[:SHOWN]) + "; ..." * (len(bad) > SHOWN)
    line = f"{name}: {len(bad)} of {total} rows cannot be used ({first})"
    if not good or len(bad) > allowed * total:
        raise UserError(
            f"{line}. That is more than bad_rows.limit {allowed:g} allows; mend or remove them, or raise the limit"
        )
    if bad:
        print(f"{printable(line)}; they are left out", file=sys.stderr)


# ---- where the rows come from


@contextmanager
def user_errors() -> Iterator[None]:
    """What data/ and prompts/ refuse is the user's to mend."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def read_data(name: str | Path, data_dir: str | None = None) -> Iterator[rows.Placed]:
    """The rows of a file, of a published set by its bare name, or of a Hugging Face dataset. Raises UserError."""
    if rows.is_dataset(str(name)) and not Path(str(name).partition(":")[0]).is_dir() and not hub.reachable():
        hub.go_offline()
    with user_errors():
        yield from rows.read(str(name), data_dir)


@user_errors()
def locate(path: str | Path, data_dir: str | None = None) -> Path:
    """A file as given, or a published data set by its bare name (downloaded once, checksum verified)."""
    return sources.find(path, data_dir)


def column_names(columns: str | None) -> tuple[str | None, str | None]:
    """'question,answer' -> the columns of prompt and ground truth."""
    if columns is None:
        return None, None
    names = [name.strip() for name in columns.split(",")]
    if len(names) != 2 or "" in names:
        raise UserError(f"data_columns is {columns!r}; name two columns, prompt and ground truth: question,answer")
    return names[0], names[1]


@user_errors()
def prompt_text(template: str) -> str:
    """The system message of that name or file."""
    return prompts.load(template)
