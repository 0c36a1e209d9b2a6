"""The benchmarks: the source of their problems, and the paper's sampling."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from data import rows
from grpo.chat_template import ChatTemplate
from grpo.errors import UserError
from grpo.problems import check_share, make_problems, read_data
from grpo.rollout import question
from grpo.settings import Config, nearest
from grpo.terminal import notify
from grpo.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MODEL = "Qwen/Qwen2.5-Math-1.5B"
"""The model of a command that names none: the paper's base."""
SEVERAL = 0.6
"""Temperature for several samples of a benchmark that has another number of them: the paper's"""
FRESH = "fresh_arithmetic"
CALCULATIONS = ("{} + {} - {}", "{} * {} + {}", "{} - {} * {}", "({} + {}) * {}")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A set of problems and its sampling."""

    place: str
    """A published set by its name, a Hugging Face dataset or a file"""
    size: int = 0
    samples: int = 1
    temperature: float = 0.0
    """0 is greedy"""
    max_new_tokens: int = 3072
    prompt: str = "qwen25-math-cot"

    @property
    def sampling(self) -> str:
        samples = f"avg@{self.samples} at " if self.samples > 1 else ""
        return samples + (f"T={self.temperature:g}" if self.temperature else "greedy")


DATA = Path(rows.__file__).resolve().parent
TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
BENCHMARKS = {
    name: Benchmark(**fields | {"place": fields["place"].format(data=DATA)}) for name, fields in TABLE.items()
}
SETS = {
    "all": ["math500", "aime24", "aime25", "amc23", "minerva_math", "olympiadbench"],
    "arithmetic": ["arithmetic-validation", "arithmetic-test"],
}


def find(name: str) -> Benchmark:
    """The benchmark of that name, or one that samples the file or data set greedily."""
    return BENCHMARKS.get(name, Benchmark(name))


def names(given: Iterable[str]) -> list[str]:
    """The sets that `--bench` or `eval.data` name: benchmarks, all, arithmetic, files or datasets. Raises UserError."""
    sets = [name for group in given for name in SETS.get(group, [group])]
    for name in sets:
        if name not in BENCHMARKS and Path(name).suffix not in rows.READERS and not rows.is_dataset(name):
            known = (*BENCHMARKS, *SETS)
            raise UserError(
                f"{name!r} is no benchmark; there are {', '.join(known)}, "
                f"or name a data file or a Hugging Face dataset{nearest(name, known)}"
            )
    labels = list(map(label, sets))
    if len(set(labels)) < len(labels):
        raise UserError(f"{max(labels, key=labels.count)} is named twice; their figures would have one name")
    return sets


def label(name: str) -> str:
    """A benchmark's name in tables and folders: a file's stem, a dataset's name without its owner."""
    path = Path(name)
    return path.stem if path.suffix in rows.READERS else path.name.replace(":", "-")


def digest(problems: Sequence[Problem]) -> str:
    """sha256 of the questions and their reference answers, whatever prompt stands around them."""
    content = repr([(question(problem), problem.ground_truth) for problem in problems])
    return hashlib.sha256(content.encode(errors="backslashreplace")).hexdigest()


def load(
    name: str,
    template: ChatTemplate | None,
    prompt: str,
    data_dir: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    columns: str | None = None,
) -> list[Problem]:
    """The benchmark's first `limit` problems as the model will see them. Raises UserError naming file and row.

    All rows of a benchmark count. In your own data, whose `columns` may be named, up to 5% of the rows may lack a
    prompt or an answer; they are reported and skipped. A reference that cannot be parsed stays: only identical text
    matches it.
    """
    published = name in BENCHMARKS
    placed: Iterable[rows.Placed] = fresh(seed).items() if name == FRESH else read_data(find(name).place, data_dir)
    problems, bad = make_problems(islice(placed, limit), template, prompt, columns=None if published else columns)
    check_share(name, len(problems), bad, allowed=0 if published else 0.05)
    return list(problems.values())


def held_out_sets(config: Config) -> dict[str, Callable[[ChatTemplate | None], list[Problem]]]:
    """Name -> function that loads the problems for a chat template: the run's validation sets and its test set."""
    sets = [*validation_sets(config), *filter(None, [config.eval.test])]
    return {name: partial(_held_out, config, name) for name in sets}


def validation_sets(config: Config) -> list[str]:
    """Names of the sets that a run evaluates on the way."""
    return names(config.eval.data) if config.eval.every else []


def _held_out(config: Config, name: str, template: ChatTemplate | None) -> list[Problem]:
    """The set's problems, without those whose prompt is too long for the sampler; reports their number."""
    problems = load(
        name, template, config.prompt, config.data_dir, limit=config.eval.limit, columns=config.eval.columns
    )
    longest = config.rollout.max_prompt_tokens
    kept = [problem for problem in problems if len(problem.prompt_ids) <= longest]
    line = f"{name}: {len(problems) - len(kept)} of {len(problems)} prompts are longer than {longest} tokens"
    if not kept:
        raise UserError(f"{line}; raise rollout.max_prompt_tokens, or name another set by eval.data or eval.test")
    if len(kept) < len(problems):
        notify(f"{line} (rollout.max_prompt_tokens); the held-out figures skip them")
    return kept


def held_out_problems(
    config: Config, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, list[Problem]], list[Problem]]:
    """The run's validation sets by label, and its test problems."""
    template = ChatTemplate.of_run(config, tokenizer)
    sets = {name: load_set(template) for name, load_set in held_out_sets(config).items()}
    return {label(name): sets[name] for name in validation_sets(config)}, sets.get(config.eval.test or "", [])


def beginnings(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, share: float) -> list[Problem]:
    """Each question's first `share` of tokens as a prompt of plain text; extra["rest"] holds the text that was cut."""
    cut = []
    for problem in problems:
        ids = tokenizer(question(problem))["input_ids"]
        end = int(share * len(ids))
        rest = tokenizer.decode(ids[end:], skip_special_tokens=True)
        prompt = {"prompt": tokenizer.decode(ids[:end]), "prompt_ids": tuple(ids[:end])}
        cut.append(replace(problem, **prompt, extra=problem.extra | {"rest": rest}))
    return cut


def fresh(seed: int) -> dict[str, dict[str, str]]:
    """Place -> row: calculations with numbers of two to four digits, drawn from the seed, that no model has seen."""
    from sympy import sympify  # takes a second

    draw = random.Random(f"{FRESH} {seed}")
    rows = {}
    for number in range(BENCHMARKS[FRESH].size):
        numbers = [draw.randrange(10 ** (digits - 1), 10**digits) for digits in draw.choices((2, 3, 4), k=3)]
        calculation = draw.choice(CALCULATIONS).format(*numbers)
        rows[f"row {number}"] = {"question": f"What is {calculation}?", "answer": str(sympify(calculation))}
    return rows
