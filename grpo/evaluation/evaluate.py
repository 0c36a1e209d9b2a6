"""Sample, grade, score: on the validation half while training, and on a benchmark with every row kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from grpo.errors import UserError
from grpo.evaluation import scores as statistics
from grpo.evaluation.folder import EvalFolder
from grpo.evaluation.grading import Checker, Grade, grade
from grpo.rollout import Engine, Sampling, request_seed
from grpo.types import Completion, Problem, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rewards import Reward, Score

COLUMNS = ("strict", "flexible")


def evaluate_problems(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    reward: Reward,
    sampling: Sampling,
    seed: int,
) -> dict[str, float]:
    """One completion a problem, scored with a reward. The engine has already been synced. For use while training.

    Returns shares in [0, 1], see `summarise`. `sampling.temperature` 0 is the greedy figure, 1 the sampled one.
    """
    if not problems:
        raise ValueError("no problems to evaluate: the list is empty")
    completions = [group[0] for group in _generate(engine, problems, 1, sampling, seed)]
    texts = _decode(tokenizer, completions)
    return summarise(reward.score_batch(texts, [problem.ground_truth for problem in problems]))


def summarise(scores: Sequence[Score]) -> dict[str, float]:
    """Shares over all completions: a missing verdict counts as not accurate, so that silence never looks good.

    accuracy: the last complete box holds the answer. format_rate: the reward's format signal, or the share with a
    complete box where the reward has no such signal. verdict_accuracy: the reflection's verdict agrees with the truth.
    wrong_verdict_rate: the verdict says "wrong", whatever the truth.
    """
    counts = {
        "accuracy": sum(score.outcome == "correct" for score in scores),
        "format_rate": sum(score.signals.get("format", float(score.answer is not None)) for score in scores),
        "verdict_accuracy": sum(
            score.verdict is not None and (score.verdict == "correct") == (score.outcome == "correct")
            for score in scores
        ),
        "wrong_verdict_rate": sum(score.verdict == "wrong" for score in scores),
    }
    return {name: count / len(scores) for name, count in counts.items()}


def check_context(problems: Sequence[Problem], max_new_tokens: int, context: int) -> None:
    """Raises UserError where a prompt and its new tokens do not fit the model's positions."""
    longest = max(problems, key=lambda problem: len(problem.prompt_ids))
    room = context - len(longest.prompt_ids)
    if room < max_new_tokens:
        raise UserError(
            f"row {longest.index}: its prompt has {len(longest.prompt_ids)} tokens, and with {max_new_tokens} new ones "
            f"that is more than the model's context of {context}; "
            + (f"use --max-new-tokens {room} or less" if room > 0 else "this model cannot read it")
        )


def run_benchmark(
    folder: EvalFolder,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    samples: int,
    sampling: Sampling,
    seed: int,
    checker: Checker,
    batch: int,
    progress: Callable[[list[dict]], None],
) -> None:
    """Adds the rows that the folder does not hold yet, `batch` completions at a time, each saved before the next.

    A problem's completions depend on the seed and its row number alone, so it does not matter where a run was cut.
    `progress` is told the rows so far.
    """
    rows = folder.keep_whole_problems(samples)
    done = {row["problem"] for row in rows}
    progress(rows)
    todo = [problem for problem in problems if problem.index not in done]
    step = max(1, batch // samples)
    for start in range(0, len(todo), step):
        part = todo[start : start + step]
        new = _rows(tokenizer, part, _generate(engine, part, samples, sampling, seed), checker)
        folder.append(new)
        rows += new
        progress(rows)


def score_rows(rows: Sequence[dict]) -> dict:
    """The figures of one benchmark. Both columns as {"mean", "low", "high"} of avg@k; pass@k for powers of two.

    truncated: share of completions cut by the length limit; no_box: share without a complete box (strict: wrong).
    """
    by_problem = [list(group) for _, group in groupby(rows, key=lambda row: row["problem"])]
    samples = len(by_problem[0])
    result = {
        "problems": len(by_problem),
        "samples": samples,
        "truncated": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        "no_box": sum(row["answer"] is None for row in rows) / len(rows),
        "tokens_mean": sum(row["tokens"] for row in rows) / len(rows),
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
    }
    for column, answer in zip(COLUMNS, ("answer", "flexible_answer"), strict=True):
        correct = [[row[column] for row in group] for group in by_problem]
        result[column] = statistics.mean_with_interval(statistics.avg_at_k(correct))
        if samples > 1:
            answers = [[row[answer] or None for row in group] for group in by_problem]
            powers = [k for k in (2**power for power in range(12)) if k <= samples]
            result[column]["pass"] = {
                str(k): statistics.mean_with_interval(statistics.pass_at_k(correct, k)) for k in powers
            }
            result[column]["maj"] = statistics.mean_with_interval(statistics.maj_at_k(answers, correct))
    return result


def regrade(folder: EvalFolder, checker: Checker) -> tuple[dict, int]:
    """Grades the saved completions anew, without a model. Returns the scores and how many rows changed."""
    rows = folder.keep_whole_problems(folder.settings["samples"])
    if not rows:
        raise UserError(f"{folder.path} holds no finished problem")
    grades = grade([row["completion"] for row in rows], [row["ground_truth"] for row in rows], checker)
    anew = [row | _graded(one) for row, one in zip(rows, grades, strict=True)]
    folder.replace(anew)
    scores = score_rows(anew)
    folder.save_scores(scores)
    return scores, sum(old != new for old, new in zip(rows, anew, strict=True))


def compare(a: EvalFolder, b: EvalFolder) -> dict:
    """Paired difference b - a for both columns, and the problems that flipped in the strict one. Same problems only."""
    differing = [key for key in ("bench", "data_sha256", "problems") if a.settings[key] != b.settings[key]]
    if differing:
        key = differing[0]
        raise UserError(f"{a.path} and {b.path} differ in {key}: {a.settings[key]} and {b.settings[key]}")
    result = {}
    for column in COLUMNS:
        left, right = (_accuracy_by_problem(folder, column) for folder in (a, b))
        if left.keys() != right.keys():
            raise UserError(f"{a.path} and {b.path} do not hold the same problems: one of them is unfinished")
        result[column] = statistics.paired_difference(list(left.values()), [right[problem] for problem in left])
        result[column]["gained"] = [problem for problem in left if right[problem] > left[problem]]
        result[column]["lost"] = [problem for problem in left if right[problem] < left[problem]]
    return result


def _accuracy_by_problem(folder: EvalFolder, column: str) -> dict[int, float]:
    by_problem = {key: list(group) for key, group in groupby(folder.rows(), key=lambda row: row["problem"])}
    return {key: sum(row[column] for row in group) / len(group) for key, group in by_problem.items()}


def _generate(
    engine: Engine, problems: Sequence[Problem], samples: int, sampling: Sampling, seed: int
) -> list[list[Completion]]:
    requests = [Request(problem.prompt_ids, samples, request_seed(seed, problem.index)) for problem in problems]
    return engine.generate(requests, sampling)


def _decode(tokenizer: PreTrainedTokenizerBase, completions: Sequence[Completion]) -> list[str]:
    return [tokenizer.decode(completion.ids, skip_special_tokens=True) for completion in completions]


def _rows(
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    groups: Sequence[Sequence[Completion]],
    checker: Checker,
) -> list[dict]:
    flat = list(_flatten(problems, groups))
    texts = _decode(tokenizer, [completion for _, _, completion in flat])
    grades = grade(texts, [problem.ground_truth for problem, _, _ in flat], checker)
    return [
        {
            "problem": problem.index,
            "sample": sample,
            "prompt": problem.prompt,
            "completion": text,
            "tokens": len(completion.ids),
            "finish_reason": completion.finish_reason,
            "ground_truth": problem.ground_truth,
            **_graded(one),
        }
        for (problem, sample, completion), text, one in zip(flat, texts, grades, strict=True)
    ]


def _flatten(
    problems: Sequence[Problem], groups: Sequence[Sequence[Completion]]
) -> Iterator[tuple[Problem, int, Completion]]:
    for problem, group in zip(problems, groups, strict=True):
        for sample, completion in enumerate(group):
            yield problem, sample, completion


def _graded(one: Grade) -> dict:
    return {
        "answer": one.answer,
        "strict": one.strict,
        "flexible_answer": one.flexible_answer,
        "flexible": one.flexible,
        "outcome": one.outcome,
    }
