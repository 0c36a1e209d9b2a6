"""Which problems a benchmark asks, how the paper asks them, and what it reported.

The rows are read as the paper's harness (Qwen2.5-Math's evaluation, `parser.py`) reads them: which field is the
question, which the reference answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from grpo.chat import render
from grpo.config import nearest
from grpo.errors import UserError
from grpo.problems import load_problems, locate, prompt_text, read_data
from grpo.types import Problem
from rewards.signals import last_box

ARITHMETIC = {
    f"arithmetic-{half}": Path(__file__).resolve().parents[2] / "data" / "arithmetic" / f"{half}.parquet"
    for half in ("validation", "test")
}
UNLIMITED = 10**9


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


def protocol(name: str) -> Protocol:
    """The paper's for its six benchmarks, greedy for any other file; the built-in sums need 40 tokens."""
    return SHORT if name in ARITHMETIC else PAPER_PROTOCOL.get(name, GREEDY)


def sampling_name(temperature: float) -> str:
    return f"T={temperature:g}" if temperature else "greedy"


def names(asked: str | Iterable[str]) -> list[str]:
    """What `--bench` and `eval.data` stand for: benchmarks, all, arithmetic, files of one's own; commas between."""
    sets = {"all": list(PAPER_PROTOCOL), "arithmetic": list(ARITHMETIC)}
    found: list[str] = []
    for name in asked.split(",") if isinstance(asked, str) else asked:
        if name not in (*PAPER_PROTOCOL, *ARITHMETIC, *sets) and Path(name).suffix not in (".parquet", ".jsonl"):
            raise UserError(
                f"{name!r} is no benchmark; there are {', '.join(PAPER_PROTOCOL)}, all, arithmetic, "
                f"or name a .parquet or .jsonl file{nearest(name, PAPER_PROTOCOL)}"
            )
        found += sets.get(name, [name])
    labels = [label(name) for name in found]
    if twice := next((name for name in labels if labels.count(name) > 1), None):
        raise UserError(f"{twice} is named twice; their figures would have one name")
    return found


def label(name: str) -> str:
    """A benchmark's name in tables and folders: the stem of a file of one's own."""
    return name if name in PAPER_PROTOCOL or name in ARITHMETIC else Path(name).stem


def file_of(name: str, data_dir: str | None = None) -> Path:
    """The benchmark's file on this machine, downloaded if it must be. Raises UserError."""
    path = ARITHMETIC.get(name) or locate(name, data_dir)
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    return path


def load(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    data_dir: str | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """The benchmark's (first) problems as the model will see them. Raises UserError naming file and row."""
    path = file_of(name, data_dir)
    if name not in PAPER_PROTOCOL:
        return load_problems(path, tokenizer, prompt, UNLIMITED)[:limit]
    system = prompt_text(prompt)
    problems = []
    for index, (question, answer) in enumerate(islice(read_benchmark(path), limit)):
        messages = [{"role": "system", "content": system}] if system else []
        text = render(tokenizer, [*messages, {"role": "user", "content": question}])
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        problems.append(Problem(index, text, ids, answer, name))
    return problems


def read_benchmark(path: Path) -> Iterator[tuple[str, str]]:
    """(question, reference answer) of each row of one of the six."""
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

    OlympiadBench: the only entry of final_answer, without its dollars. Minerva: the last box of the solution. AMC's
    27.0 is the integer 27.
    """
    if row.get("final_answer"):
        answer = row["final_answer"][0].replace("$", "")
    elif row.get("answer") is not None:
        answer = row["answer"]
    else:
        answer = last_box(row.get("solution") or "")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    return "" if answer is None else str(answer).strip()
