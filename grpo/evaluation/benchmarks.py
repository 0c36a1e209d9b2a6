"""Which problems a benchmark asks, how the paper asks them, and what a model knows of them while it is trained."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from data import rows
from grpo.config import Config, nearest
from grpo.errors import UserError
from grpo.problems import check_share, locate, make_problems, read_data, read_problems
from grpo.rollout import Engine, Sampling, request_seed
from grpo.run.terminal import Clock, say
from grpo.types import Completion, Problem, Request
from rewards import Score, make_reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from grpo.policy import Policy

DEFAULT_MODEL = "Qwen/Qwen2.5-Math-1.5B"
"""What is asked where no model is named: the paper's base."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a benchmark is sampled; temperature 0 is greedy."""

    samples: int
    temperature: float
    max_new_tokens: int = 3072

    def __str__(self) -> str:
        return f"T={self.temperature:g}" if self.temperature else "greedy"


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


def names(asked: str | Iterable[str]) -> list[str]:
    """What `--bench` and `eval.data` stand for: benchmarks, all, arithmetic, files or datasets; commas between."""
    found: list[str] = []
    for name in asked.split(",") if isinstance(asked, str) else asked:
        if name not in (*NAMES, *SETS) and Path(name).suffix not in rows.READERS and not rows.is_dataset(name):
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


def read(name: str, data_dir: str | None = None, seed: int = 0) -> Iterator[rows.Placed]:
    """The benchmark's rows. The seed draws fresh_arithmetic's; the other sets are what they are."""
    if name == FRESH:
        return ((f"row {index}", row) for index, row in enumerate(fresh(seed)))
    return read_data(source(name, data_dir))


def digest(name: str, data_dir: str | None = None, seed: int = 0) -> str:
    """sha256 of the file; of a dataset or of fresh calculations that of their rows."""
    place = None if name == FRESH else source(name, data_dir)
    content = place.read_bytes() if isinstance(place, Path) else repr(list(read(name, data_dir, seed))).encode()
    return hashlib.sha256(content).hexdigest()


def load(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: str,
    data_dir: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Problem]:
    """The benchmark's (first) problems as the model will see them. Raises UserError naming file and row.

    All of the paper's rows count: a reference that no parser reads is right as the same text. A set of one's own is
    read as training data is: rows that cannot be graded are left out, and it is said.
    """
    if name not in (*PAPER_PROTOCOL, FRESH):
        return read_problems(source(name, data_dir), tokenizer, prompt, limit=limit)[0]
    problems, bad = make_problems(islice(read(name, data_dir, seed), limit), tokenizer, prompt)
    check_share(name, len(problems), bad, allowed=0)
    return list(problems.values())


def beginnings(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, share: float
) -> tuple[list[Problem], dict[int, str]]:
    """Each question's first `share` of tokens as a prompt of plain text, and by row number what was cut off."""
    cut, rests = [], {}
    for problem in problems:
        ids = tokenizer(problem.question)["input_ids"]
        first, rest = ids[: int(share * len(ids))], ids[int(share * len(ids)) :]
        cut.append(replace(problem, prompt=tokenizer.decode(first), prompt_ids=tuple(first)))
        rests[problem.index] = tokenizer.decode(rest, skip_special_tokens=True)
    return cut, rests


def fresh(seed: int) -> list[dict[str, str]]:
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
        found.append({"question": f"What is {text}?", "answer": str(value)})
    return found


# ---- asked while a model is trained


class HeldOut:
    """Accuracy on the validation sets (the curve) and the test problems, whatever the run itself is paid for.

    An answer is where `reward.verifier` says: a model that does not box is not judged by its boxes.
    """

    def __init__(self, config: Config, policy: Policy, clock: Clock):
        self.config, self.tokenizer, self.clock = config, policy.tokenizer, clock
        self.judge = make_reward("multi_signal", verifier=config.reward.verifier)
        self.sets = {label(name): self._load(name) for name in names(config.eval.data)}
        self.test_problems = self._load(config.eval.test) if config.eval.test else []

    def validation(self, engine: Engine, step: int) -> dict[str, float]:
        """`eval/*` where step is one to evaluate: 0, every `eval.every` and the last; else nothing.

        The first set's figures have the plain names (eval/greedy_accuracy); a further one's have its own in between
        (eval/aime24/greedy_accuracy).
        """
        every = self.config.eval.every
        if not every or (step % every and step != self.config.steps):
            return {}
        figures = {}
        with self.clock("eval"):
            for place, (name, problems) in enumerate(self.sets.items()):
                prefix = f"eval/{name}/" if place else "eval/"
                figures |= {prefix + key: value for key, value in self._measure(engine, problems).items()}
        return figures

    def test(self, engine: Engine) -> dict[str, float]:
        return self._measure(engine, self.test_problems)

    def _load(self, name: str) -> list[Problem]:
        """The set's problems; those whose prompt the sampler has no room for are left out, and the run says so."""
        config, longest = self.config, self.config.rollout.max_prompt_tokens
        problems = load(name, self.tokenizer, config.prompt, config.data_dir, config.eval.limit)
        kept = [problem for problem in problems if len(problem.prompt_ids) <= longest]
        if not kept:
            raise UserError(f"{name}: every prompt is longer than rollout.max_prompt_tokens {longest}; raise the limit")
        if left_out := len(problems) - len(kept):
            say(
                f"{name}: {left_out} of {len(problems)} problems are left out of the held-out figures: their prompts "
                f"are longer than rollout.max_prompt_tokens {longest}"
            )
        return kept

    def _measure(self, engine: Engine, problems: list[Problem]) -> dict[str, float]:
        """The accuracy of each way of sampling, and the other shares of the first of them."""
        if not problems:
            return {}
        config, shares = self.config, {}
        ways = {"sampled": config.rollout.temperature} if config.eval.sampling == "both" else {}
        for way, temperature in (ways | {"greedy": 0.0}).items():
            sampling = Sampling(config.rollout.max_new_tokens, temperature)
            groups = ask(engine, problems, 1, sampling, config.seed)
            texts = [self.tokenizer.decode(group[0].ids, skip_special_tokens=True) for group in groups]
            shares[way] = summarise(self.judge.score_batch(texts, [problem.ground_truth for problem in problems]))
        accuracy = {f"{way}_accuracy": found.pop("accuracy") for way, found in shares.items()}
        return accuracy | next(iter(shares.values()))


def summarise(scores: Sequence[Score]) -> dict[str, float]:
    """Shares over all completions: a missing verdict counts as not accurate, so that silence never looks good.

    accuracy: the answer is right. format_rate: the format signal. verdict_accuracy: there is an answer and a true
    verdict on it. wrong_verdict_rate: the verdict says "wrong", whatever the truth.
    """
    counts = {
        "accuracy": sum(score.outcome == "correct" for score in scores),
        "format_rate": sum(score.signals["format"] for score in scores),
        "verdict_accuracy": sum(
            score.verdict == ("correct" if score.outcome == "correct" else "wrong") and score.outcome != "no_answer"
            for score in scores
        ),
        "wrong_verdict_rate": sum(score.verdict == "wrong" for score in scores),
    }
    return {name: count / len(scores) for name, count in counts.items()}


def ask(
    engine: Engine, problems: Sequence[Problem], samples: int, sampling: Sampling, seed: int
) -> list[list[Completion]]:
    """[problems][samples]. A completion follows from the seed, its problem's row number and its place in the row."""
    requests = [Request(problem.prompt_ids, samples, request_seed(seed, problem.index)) for problem in problems]
    return engine.generate(requests, sampling)
