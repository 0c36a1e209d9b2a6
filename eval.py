"""Benchmarks a model, or the base and every checkpoint of a run; regrades and compares saved outputs without a model.

python eval.py --run runs/NAME                          # on the run's own held-out sets, graded as the run was
python eval.py --bench math500                          # Qwen/Qwen2.5-Math-1.5B, the paper's base
python eval.py --bench mine.jsonl --columns question,answer --model MODEL
python eval.py --bench fresh_arithmetic --model MODEL --prompts plain,multi-signal,qwen25-math-cot
python eval.py --bench math500 --model MODEL --audit-contamination
python eval.py --regrade evals/MODEL/BENCH-HASH
python eval.py --compare evals/A/BENCH-HASH evals/B/BENCH-HASH
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # python -P leaves the script's folder out

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from data.sources import LICENCE, REPOSITORY
from grpo import hub
from grpo.early import answer_early
from grpo.errors import one_line
from grpo.evaluation import benchmarks
from grpo.evaluation.request import EvalRequest, read_request
from grpo.terminal import escape_control

SHOWN_ROWS = 10
"""Rows that --compare names"""

parse = partial(read_request, description=__doc__)


def evaluate(request: EvalRequest) -> None:
    if not (request.model or request.run):
        show(f"no --model or --run given: {benchmarks.DEFAULT_MODEL}, the paper's base model")
        request = request.model_copy(update={"model": (benchmarks.DEFAULT_MODEL,)})
    hub.require(request.model, request.bench, request.data_dir)
    from grpo.evaluation import results, scores, session  # they import torch, transformers and pandas: seconds

    with closing(scores.new_verifier()) as verifier:
        evaluations = session.evaluate(request, verifier)
    show(results.table(evaluations))
    if request.run and not request.audit_contamination:
        show(results.last_and_best(evaluations))
        benches = dict.fromkeys(evaluation.settings["bench"] for evaluation in evaluations)
        path = request.out / f"{request.run.resolve().name}--{'-'.join(benches)}.png"
        show(f"plot  {results.plot(evaluations, path)}")


def list_benchmarks() -> None:
    show(f"the paper's are from github.com/{REPOSITORY} ({LICENCE}); python -m data fetch downloads them")
    for name, benchmark in benchmarks.BENCHMARKS.items():
        show(f"{name:22} {benchmark.size:4} problems  {benchmark.sampling:15}  {benchmark.place}")


def regrade(path: Path) -> None:
    """Grades one evaluation again, or all evaluations under a folder."""
    from grpo.evaluation import results, scores

    begun = sorted(outputs.parent for outputs in path.glob(f"**/{results.OUTPUTS}") if outputs.stat().st_size)
    evaluations = [results.Evaluation(folder) for folder in begun or [path]]
    with closing(scores.new_verifier()) as verifier:
        for evaluation in evaluations:
            changed = evaluation.regrade(verifier)
            missing = evaluation.settings["problems"] - evaluation.scores["problems"]
            rest = f"; {missing} problems are not sampled yet" if missing else ""
            show(f"{evaluation.path}: {changed} rows changed{rest}")
    show(results.table(evaluations))


def compare(a: Path, b: Path) -> None:
    from grpo.evaluation.results import Evaluation, difference

    for column, gain in difference(Evaluation(a), Evaluation(b)).items():
        mean, low, high = (100 * gain[key] for key in ("mean", "low", "high"))
        show(f"{column:8}  B - A = {mean:+.1f} points [{low:+.1f}, {high:+.1f}] (95%, paired: {gain['method']})")
        for kind in ("gained", "lost"):
            rows = ", ".join(map(str, gain[kind][:SHOWN_ROWS])) or "-"
            more = f" and {len(gain[kind]) - SHOWN_ROWS} more" if len(gain[kind]) > SHOWN_ROWS else ""
            show(f"          {kind} {len(gain[kind])}: rows {rows}{more}")


def show(text: str) -> None:
    """Prints a text in which names of files and models cannot steer the terminal."""
    print(escape_control(text), flush=True)


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    request = parse(argv)
    if request.list:
        list_benchmarks()
    elif request.regrade:
        regrade(request.regrade)
    elif request.compare:
        compare(*request.compare)
    else:
        evaluate(request)
    return 0


if __name__ == "__main__":
    answer_early(__name__, parse)
    sys.exit(main(sys.argv[1:]))
