"""Which problems a benchmark asks, how the paper asks them, and what it reported.

The published rows are read as the paper's harness (Qwen2.5-Math's evaluation, `parser.py`) reads them: which field is
the question, which the reference answer.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from data import rows
from grpo.chat import render
from grpo.config import nearest
from grpo.errors import UserError
from grpo.problems import load_problems, locate, prompt_text, read_data
from grpo.types import Problem
from rewards import last_box

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNLIMITED = 10**9
DEFAULT_MODEL = "Qwen/Qwen2.5-Math-1.5B"
"""What is asked where no model is named: the paper's base."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a benchmark is sampled."""

    samples: int
    temperature: float
    max_new_tokens: int = 3072


GREEDY, AVERAGED, SHORT = Protocol(1, 0.0), Protocol(8, 0.6), Protocol(1, 0.0, max_new_tokens=40)
PAPER_PROTOCOL = {
    "math500": GREEDY,
    "aime24": AVERAGED,
    "aime25": AVERAGED,
    "amc23": AVERAGED,
    "minerva_math": GREEDY,
    "olympiadbench": GREEDY,
}
"""avg@8 at T=0.6 for the small ones (the paper's x8 files are 8 copies of the same rows), greedy for the others."""
PAPER = "Wang et al. 2025 (arXiv:2504.20571), Qwen2.5-Math-1.5B"
PAPER_SCORES = {"math500": (36.0, 73.6), "average": (17.6, 35.7)}
"""Percent: base, and after 1-shot RLVR on pi1. The paper's own figures, from its abstract; not measured here."""
DATASETS = {"gsm8k": "openai/gsm8k:main:test"}
"""By Hugging Face id, configuration and split."""
ARITHMETIC = {
    f"arithmetic-{half}": Path(__file__).resolve().parents[2] / "data" / "arithmetic" / f"{half}.parquet"
    for half in ("validation", "test")
}
FRESH, FRESH_ROWS = "fresh_arithmetic", 300
NAMES = (*PAPER_PROTOCOL, *DATASETS, *ARITHMETIC, FRESH)
SETS = {"all": list(PAPER_PROTOCOL), "arithmetic": list(ARITHMETIC)}


def protocol(name: str) -> Protocol:
    """The paper's for its six benchmarks, greedy for any other set; the built-in sums need 40 tokens."""
    return SHORT if name in ARITHMETIC else PAPER_PROTOCOL.get(name, GREEDY)


def sampling_name(temperature: float) -> str:
    return f"T={temperature:g}" if temperature else "greedy"


def names(asked: str | Iterable[str]) -> list[str]:
    """What `--bench` and `eval.data` stand for: benchmarks, all, arithmetic, files or datasets; commas between."""
    found: list[str] = []
    for name in asked.split(",") if isinstance(asked, str) else asked:
        if name not in (*NAMES, *SETS) and Path(name).suffix not in rows.SUFFIXES and not rows.is_dataset(name):
            raise UserError(
                f"{name!r} is no benchmark; there are {', '.join((*NAMES, *SETS))}, "
                f"or name a data file or a Hugging Face dataset{nearest(name, NAMES)}"
            )
        found += SETS.get(name, [name])
    labels = [label(name) for name in found]
    if twice := next((name for name in labels if labels.count(name) > 1), None):
        raise UserError(f"{twice} is named twice; their figures would have one name")
    return found


def label(name: str) -> str:
    """A benchmark's name in tables and folders: of a file its stem, of a dataset what follows its owner."""
    if name in NAMES:
        return name
    return Path(name).name.replace(":", "-") if rows.is_dataset(name) else Path(name).stem


def source(name: str, data_dir: str | None = None) -> Path | str:
    """The benchmark's file on this machine, downloaded if it must be, or a dataset's id. Raises UserError."""
    name = DATASETS.get(name, name)
    return name if rows.is_dataset(name) else ARITHMETIC.get(name) or locate(name, data_dir)


def digest(name: str, data_dir: str | None = None, seed: int = 0) -> str:
    """sha256 of the file, of a dataset's rows, or of the calculations drawn."""
    if name == FRESH:
        content = repr(fresh(seed)).encode()
    elif isinstance(place := source(name, data_dir), str):
        content = repr(list(read_data(place))).encode()
    else:
        content = place.read_bytes()
    return hashlib.sha256(content).hexdigest()


def load(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    data_dir: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Problem]:
    """The benchmark's (first) problems as the model will see them. Raises UserError naming file and row.

    The seed draws fresh_arithmetic's calculations; the other sets are what they are.
    """
    if name not in (*PAPER_PROTOCOL, FRESH):
        return load_problems(source(name, data_dir), tokenizer, prompt, UNLIMITED)[:limit]
    system = prompt_text(prompt)
    problems = []
    for index, (question, answer) in enumerate(islice(questions(name, data_dir, seed), limit)):
        messages = [{"role": "system", "content": system}] if system else []
        text = render(tokenizer, [*messages, {"role": "user", "content": question}])
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        problems.append(Problem(index, text, ids, answer, name))
    return problems


def load_beginnings(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    share: float,
    data_dir: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[list[Problem], dict[int, str]]:
    """Each question's first `share` of tokens as a prompt of plain text, and by row number what was cut off."""
    problems, rests = [], {}
    for index, (question, answer) in enumerate(islice(questions(name, data_dir, seed), limit)):
        ids = tokenizer(question)["input_ids"]
        cut = int(share * len(ids))
        problems.append(Problem(index, tokenizer.decode(ids[:cut]), tuple(ids[:cut]), answer, name))
        rests[index] = tokenizer.decode(ids[cut:], skip_special_tokens=True)
    return problems, rests


def questions(name: str, data_dir: str | None = None, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(question, reference answer) of each row."""
    return iter(fresh(seed)) if name == FRESH else read_benchmark(source(name, data_dir))


def fresh(seed: int) -> list[tuple[str, str]]:
    """Calculations with numbers of two to four digits, drawn from the seed: no model has seen them as a set."""
    draw = random.Random(f"{FRESH} {seed}")
    found = []
    for _ in range(FRESH_ROWS):
        a, b, c = (draw.randrange(10 ** (digits - 1), 10**digits) for digits in draw.choices((2, 3, 4), k=3))
        text, value = draw.choice(
            [
                (f"{a} + {b} - {c}", a + b - c),
                (f"{a} * {b} + {c}", a * b + c),
                (f"{a} - {b} * {c}", a - b * c),
                (f"({a} + {b}) * {c}", (a + b) * c),
            ]
        )
        found.append((f"What is {text}?", str(value)))
    return found


def read_benchmark(path: Path | str) -> Iterator[tuple[str, str]]:
    """(question, reference answer) of each row of a published set."""
    for place, row in read_data(path):
        if isinstance(row, str):
            raise UserError(f"{path}, {place}: {row}")
        question = row.get("question") or row.get("problem")  # in the harness's order
        answer = reference_answer(row)
        for what, value in (("question or problem", question), ("answer", answer)):
            if not value:
                raise UserError(f"{path}, {place} has no {what}; its fields are {', '.join(row)}")
        yield question.strip(), answer


def reference_answer(row: dict) -> str:
    """The reference as the grader wants it; "" where the row has none.

    OlympiadBench: the only entry of final_answer, without its dollars. Minerva: the last box of the solution. GSM8K:
    what follows #### in the answer. AMC's 27.0 is the integer 27.
    """
    if row.get("final_answer"):
        answer = row["final_answer"][0].replace("$", "")
    elif row.get("answer") is not None:
        answer = row["answer"]
    else:
        answer = last_box(row.get("solution") or "")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    return "" if answer is None else str(answer).rpartition("####")[2].strip()
