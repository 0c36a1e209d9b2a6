"""Benchmarks a model, or the base and every checkpoint of a run; regrades and compares saved outputs without a model.

python eval.py --bench math500                          # Qwen/Qwen2.5-Math-1.5B, the paper's base
python eval.py --bench all --run runs/NAME
python eval.py --bench fresh_arithmetic --model MODEL --prompts plain,multi-signal,qwen25-math-cot
python eval.py --bench math500 --model MODEL --audit-contamination
python eval.py --regrade evals/MODEL/BENCH-HASH
python eval.py --compare evals/A/BENCH-HASH evals/B/BENCH-HASH
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from data.sources import LICENCE, REPOSITORY
from grpo import hub
from grpo.cli import Parser, check_ranges
from grpo.early import answer_early
from grpo.errors import UserError, one_line
from grpo.evaluation import benchmarks, results
from grpo.evaluation.scores import new_verifier
from grpo.settings import ENGINES
from grpo.terminal import escape_control

RANGES = {
    "samples": (1, 10**4), "max_new_tokens": (1, 10**6), "limit": (1, 10**9), "seed": (0, 2**31 - 1),
    "temperature": (0, 10),
}  # fmt: skip


def parser() -> Parser:
    cli = Parser(prog="eval.py", description=__doc__)
    sets = ", ".join((*benchmarks.BENCHMARKS, *benchmarks.SETS))
    what, add = cli.add_mutually_exclusive_group(), cli.add_argument
    add("--bench", help=f"{sets},\ndata files or Hugging Face datasets; several with commas between")
    what.add_argument("--model", help=f"folder, adapter, checkpoint or id; commas between [{benchmarks.DEFAULT_MODEL}]")
    what.add_argument("--run", help="a run's folder: its base model and every checkpoint, in one table and one plot")
    what.add_argument("--list", action="store_true", help="the benchmarks, their size and source")
    what.add_argument("--regrade", metavar="DIR", help="grade saved outputs anew, without a model")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="paired difference B - A, and what flipped")
    add("--samples", type=int, help="completions a problem [the paper's: 1, and 8 for aime24, aime25, amc23]")
    add("--temperature", type=float, help="0 is greedy [the paper's: 0.6 for more than one sample]")
    add("--max-new-tokens", type=int, help="a longer completion is cut [the paper's: 3072]")
    prompts = "names from prompts/ or text files [the run's, else qwen25-math-cot]"
    add("--prompts", "--prompt", metavar="A,B", help=prompts)
    add("--audit-contamination", action="store_true", help="does the model go on from 60%% of each question?")
    add("--engine", choices=["auto", *ENGINES], default="auto", help="auto: vllm where it is installed and can run")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one")
    add("--limit", type=int, help="only the first so many problems: a smoke figure, and marked as one")
    add("--seed", type=int, default=0, help="of the samples, and of fresh_arithmetic's calculations")
    add("--data-dir", help="folder with the benchmark files [$GRPO_DATA_DIR, else downloaded once]")
    add("--out", default="evals", help="where the results go [evals]")
    return cli


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, checked. UserError with one line for wrong ones."""
    args = parser().parse_args(argv)
    check_ranges(args, RANGES)
    if not (args.bench or args.list or args.regrade or args.compare):
        raise UserError("name what to ask: --bench math500 (--list has all; --help)")
    args.names = benchmarks.names(args.bench.split(",")) if args.bench else []
    args.prompts = args.prompts.split(",") if args.prompts else None
    if args.audit_contamination:
        if args.samples or args.temperature or args.prompts:
            raise UserError("--audit-contamination is greedy and has no prompt: no --samples, --temperature, --prompts")
        args.samples, args.temperature, args.prompts = 1, 0.0, ["plain"]
    return args


def evaluate(args: argparse.Namespace) -> None:
    models = [] if args.run else (args.model or benchmarks.DEFAULT_MODEL).split(",")
    if not (args.model or args.run):
        show(f"no --model or --run given: {benchmarks.DEFAULT_MODEL}, the paper's base model")
    hub.require(models, args.names, args.data_dir)
    from grpo import saved  # not before: torch and transformers take seconds
    from grpo.evaluation.session import Session, evaluations

    asked = evaluations(args, saved.of_run(args.run) if args.run else list(map(saved.single, models)))
    with closing(new_verifier()) as verifier, closing(Session(args, asked, verifier)) as session:
        lines = [session.ask(one) for one in asked]
    show(results.table(lines))
    if args.run and not args.audit_contamination:
        show(results.last_and_best(lines))
        run = Path(args.run).resolve().name
        path = Path(args.out) / f"{run}--{'-'.join(map(benchmarks.label, args.bench.split(',')))}.png"
        show(f"plot  {results.plot(lines, run, path)}")


def list_benchmarks() -> None:
    show(f"the paper's are from github.com/{REPOSITORY} ({LICENCE}); python -m data fetch gets them all")
    for name, (place, size, protocol) in benchmarks.BENCHMARKS.items():
        how = f"avg@{protocol.samples} at {protocol}" if protocol.samples > 1 else str(protocol)
        show(f"{name:22} {size:4} problems  {how:15}  {place}")


def regrade_all(path: Path) -> None:
    """One evaluation, or all of them under a folder."""
    begun = sorted(found.parent for found in path.glob(f"**/{results.OUTPUTS}") if found.stat().st_size)
    lines = []
    with closing(new_verifier()) as verifier:
        for place in begun or [path]:
            line, changed = results.regrade(results.EvalFolder(place), verifier)
            missing = line.settings["problems"] - line.scores["problems"]
            lines.append(line)
            show(f"{place}: {changed} rows changed" + f"; {missing} problems are still to be asked" * bool(missing))
    show(results.table(lines))


def print_difference(a: str, b: str) -> None:
    for column, found in results.difference(results.EvalFolder(a), results.EvalFolder(b)).items():
        mean, low, high = (100 * found[key] for key in ("mean", "low", "high"))
        show(f"{column:8}  B - A = {mean:+.1f} points [{low:+.1f}, {high:+.1f}] (paired, 95% bootstrap over problems)")
        for kind in ("gained", "lost"):
            show(f"          {kind} {len(found[kind])}: rows {', '.join(map(str, found[kind])) or '-'}")


def show(text: str) -> None:
    """Names of files and models come from anywhere: nothing in them steers the terminal."""
    print(escape_control(text), flush=True)


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    try:
        args = parse(argv)
        if args.list:
            list_benchmarks()
        elif args.regrade:
            regrade_all(Path(args.regrade))
        elif args.compare:
            print_difference(*args.compare)
        else:
            evaluate(args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    answer_early(__name__, parse)
    sys.exit(main(sys.argv[1:]))
