"""Data sets -> Problems: rendered with the model's chat template, tokenised, checked.

A row that cannot be used is left out and counted, with the reason. Where rows come from is data/rows.py, what they say
is row.py.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError
from tqdm import tqdm

import prompts
from data import rows
from grpo import hub
from grpo.errors import UserError, printable
from grpo.row import Chat, read_row
from grpo.settings import Config
from grpo.types import Problem
from rewards import check_ground_truths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1000
"""Rows rendered and tokenised at once"""
TEMPLATE_S = 5.0
"""Seconds that the chat template may take for a chunk; usual is 0.02"""
SHOWN = 3
"""Bad rows that are named on the terminal; the run folder has all of them"""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out."""

    place: str
    reason: str
    row: rows.Row


def training_problems(config: Config, tokenizer: PreTrainedTokenizerBase | None) -> tuple[list[Problem], list[BadRow]]:
    """The run's problems, and the rows that were left out. UserError where those are too many.

    Each ground truth must be one that the verifier can grade, unless the reward is the user's own: that one knows what
    its ground truths mean.
    """
    graded = ":" not in config.reward.name
    found, longest = read_data(config.data, config.data_dir, config.data_limit), config.rollout.max_prompt_tokens
    problems, bad = make_problems(found, tokenizer, config.prompt, longest, config.data_columns, graded)
    reasons = _ungradable([problem.ground_truth for problem in problems.values()]) if graded else {}
    kept = []
    for place, problem in problems.items():
        if reason := reasons.get(problem.ground_truth):
            row = {"prompt": problem.prompt, "ground_truth": problem.ground_truth} | problem.extra
            bad.append(BadRow(place, reason, row))
        else:
            kept.append(problem)
    check_share(config.data, len(kept), bad, config.bad_rows.limit)
    return kept, bad


def make_problems(
    placed: Iterable[rows.Placed],
    tokenizer: PreTrainedTokenizerBase | None,
    template: str,
    longest: int | None = None,
    columns: str | None = None,
    graded: bool = True,
) -> tuple[dict[str, Problem], list[BadRow]]:
    """Where a row stands -> its problem, rendered and tokenised; and the rows that say no problem, with the reason.

    Without a tokenizer the prompts are neither rendered nor measured. `longest` is in tokens. `graded`: the ground
    truth is the answer in what the row says (behind ####, in a box); whether anybody can grade it is not asked here.
    """
    system, pair = prompt_text(template), _column_names(columns)
    problems: dict[str, Problem] = {}
    bad: list[BadRow] = []
    one_of_each: dict[int, int] = {}  # token ids repeat: one integer object for each keeps a million prompts small
    stream = enumerate(placed)
    while chunk := list(islice(stream, CHUNK)):
        read: list[tuple[str, rows.Row, Problem]] = []
        rendered: list[tuple[str, rows.Row, Problem]] = []
        for index, (place, row) in chunk:
            try:
                chat, truth, extra = read_row(row, system, pair, graded)
            except (ValueError, RecursionError) as error:
                bad.append(BadRow(place, str(error), row if isinstance(row, dict) else {}))
                continue
            source = str(row.get("data_source") or "")
            read.append((place, row, Problem(index, "", (), truth, source, extra, chat)))
        with _time_limit(TEMPLATE_S):
            for place, row, problem in read:
                try:
                    text = render(tokenizer, problem.chat) if tokenizer else ""
                except UserError as error:
                    bad.append(BadRow(place, str(error), row))
                    continue
                rendered.append((place, row, replace(problem, prompt=text)))
        all_ids = _tokenized(tokenizer, [problem.prompt for *_, problem in rendered])
        for (place, row, problem), ids in zip(rendered, all_ids, strict=True):
            if longest is not None and len(ids) > longest:
                reason = f"the prompt has {len(ids)} tokens, more than rollout.max_prompt_tokens {longest}"
                bad.append(BadRow(place, reason, row))
            else:
                problems[place] = replace(problem, prompt_ids=tuple(one_of_each.setdefault(i, i) for i in ids))
    return problems, bad


def _ungradable(truths: Sequence[str]) -> dict[str, str | None]:
    """Ground truth -> why it cannot be graded, which processes find out that are killed when they hang; else None."""
    truths = list(dict.fromkeys(truths))
    with tqdm(total=len(truths), desc="ground truths", delay=5, mininterval=2, leave=False) as bar:
        reasons = check_ground_truths(truths, progress=lambda done, _: bar.update(done - bar.n))
    return dict(zip(truths, reasons, strict=True))


def check_share(name: str, good: int, bad: Sequence[BadRow], allowed: float) -> None:
    """Says how many rows are left out, and why the first few. UserError where no problem is left, or too few."""
    total = good + len(bad)
    if not total:
        raise UserError(f"{name} has no rows; training needs at least one problem")
    first = "; ".join(f"{row.place}: {row.reason}" for row in bad[:SHOWN]) + "; ..." * (len(bad) > SHOWN)
    line = f"{name}: {len(bad)} of {total} rows cannot be used ({first})"
    if not good or len(bad) > allowed * total:
        raise UserError(
            f"{line}. The largest share that may be left out is {allowed:g} (of training data: bad_rows.limit); "
            "mend or remove them"
        )
    if bad:
        print(f"{printable(line)}; they are left out", file=sys.stderr)


# ---- how the model sees them


def render(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> str:
    """The prompt: the model's own chat template, applied once; without one, the texts and a blank line each.

    UserError where the template cannot write this chat.
    """
    if tokenizer.chat_template is None:
        return "".join(f"{message['content']}\n\n" for message in chat)
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the model's chat template cannot write this prompt: {said}") from error


def _tokenized(tokenizer: PreTrainedTokenizerBase | None, texts: list[str]) -> list[list[int]]:
    if tokenizer is None or not texts:
        return [[] for _ in texts]
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """A chat template is a program of whoever made the model: one that never ends must not hang the run.

    Only the main thread can be interrupted; in another there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimeoutError:
        raise UserError(
            f"the model's chat template took more than {seconds:g} s for {CHUNK} prompts; look into the model's "
            "chat_template.jinja, or take another model"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- where the rows come from


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """What data/ and prompts/ refuse is the user's to mend."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def read_data(name: str, data_dir: str | None = None, limit: int | None = None) -> Iterator[rows.Placed]:
    """The (first) rows of a file, of a published set by its bare name, or of a Hugging Face dataset. UserError."""
    if rows.is_dataset(name) and not Path(name.partition(":")[0]).is_dir() and not hub.reachable():
        hub.go_offline()
    with user_errors():
        bar = tqdm(rows.read(name, data_dir), desc=name, unit="row", delay=5, mininterval=2, leave=False)
        yield from islice(bar, limit)


def _column_names(columns: str | None) -> list[str | None]:
    """'question,answer' -> the columns of prompt and ground truth."""
    names = [None, None] if columns is None else [name.strip() for name in columns.split(",")]
    if len(names) != 2 or "" in names:
        raise UserError(f"data_columns is {columns!r}; name two columns, prompt and ground truth: question,answer")
    return names


@user_errors()
def prompt_text(template: str) -> str:
    """The system message of that name or file."""
    return prompts.load(template)
