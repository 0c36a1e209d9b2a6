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
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from data.sources import LICENCE, REPOSITORY, SOURCES
from grpo import hub
from grpo.arguments import read_options
from grpo.errors import UserError, answer_early, printable
from grpo.evaluation import benchmarks

LEAST = {"samples": 1, "max_new_tokens": 1, "limit": 1, "seed": 0, "temperature": 0}
HOTTEST = 10


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="eval.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    sets = ", ".join((*benchmarks.PAPER_PROTOCOL, *benchmarks.DATASETS, benchmarks.FRESH, *benchmarks.SETS))
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
    add(
        "--prompts",
        "--prompt",
        metavar="A,B",
        help="names from prompts/ or text files [the run's, else qwen25-math-cot]",
    )
    add("--audit-contamination", action="store_true", help="does the model go on from 60%% of each question?")
    add("--engine", choices=["auto", "torch", "vllm"], default="auto", help="auto: vllm where installed")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--limit", type=int, help="only the first so many problems: a smoke figure, and marked as one")
    add("--seed", type=int, default=0, help="of the samples, and of fresh_arithmetic's calculations")
    add("--data-dir", help="folder with the benchmark files [$GRPO_DATA_DIR, else downloaded once]")
    add("--out", default="evals", help="where the results go [evals]")
    return cli


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, checked. UserError with one line for wrong ones."""
    args = read_options(parser(), argv)
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and not value >= least:  # nan is not, either
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if args.temperature is not None and args.temperature > HOTTEST:
        raise UserError(f"--temperature is {args.temperature}; it must be at most {HOTTEST}")
    if not (args.bench or args.list or args.regrade or args.compare):
        raise UserError("name what to ask: --bench math500 (--list has all; --help)")
    if args.bench:
        benchmarks.names(args.bench)
    args.prompts = args.prompts.split(",") if args.prompts else None
    if args.audit_contamination:
        if args.samples or args.temperature or args.prompts:
            raise UserError("--audit-contamination is greedy and has no prompt: no --samples, --temperature, --prompts")
        args.samples, args.temperature = 1, 0.0
    return args


def evaluate(args: argparse.Namespace) -> None:
    names, models = benchmarks.names(args.bench), (args.model or benchmarks.DEFAULT_MODEL).split(",")
    if not (args.model or args.run):
        show(f"no --model or --run given: {benchmarks.DEFAULT_MODEL}, the paper's base model")
    hub.require([] if args.run else models, names, args.data_dir)
    from grpo.evaluation import evaluate, scores  # not before: torch and transformers take seconds

    targets = evaluate.of_run(args.run) if args.run else [evaluate.single(model) for model in models]
    with closing(scores.new_verifier()) as verifier, closing(evaluate.Session(args, verifier)) as session:
        if args.audit_contamination:
            show(scores.audit_table([session.audit(target, name) for target in targets for name in names]))
            return
        lines = [
            session.line(target, name, prompt)
            for target in targets
            for name in names
            for prompt in session.prompts(target, name)
        ]
    show(scores.table(lines))
    for text in (*map(scores.more_samples, lines), scores.averages(lines)):
        if text:
            show(text)
    if args.run:
        show(scores.last_and_best(lines))
        run = Path(args.run).resolve().name
        path = Path(args.out) / f"{run}--{'-'.join(map(benchmarks.label, args.bench.split(',')))}.png"
        show(f"plot  {scores.plot(lines, run, path)}")


def list_benchmarks() -> None:
    show(f"from github.com/{REPOSITORY} ({LICENCE}); python -m data fetch gets them all")
    for name, protocol in benchmarks.PAPER_PROTOCOL.items():
        how = f"avg@{protocol.samples} at T={protocol.temperature:g}" if protocol.samples > 1 else "greedy"
        show(f"{name:22} {SOURCES[name].rows:4} problems  {how:15}  {SOURCES[name].path}")
    for name, place in benchmarks.DATASETS.items():
        show(f"{name:22} 1319 problems  {'greedy':15}  Hugging Face dataset {place}")
    for name, path in benchmarks.ARITHMETIC.items():
        show(f"{name:22}  300 problems  {'greedy':15}  built in: data/arithmetic/{path.name}")
    show(f"{benchmarks.FRESH:22} {benchmarks.FRESH_ROWS:4} problems  {'greedy':15}  drawn from --seed")


def regrade_all(path: str) -> None:
    """One evaluation, or all of them under a folder."""
    from grpo.evaluation import evaluate, scores

    folders = sorted(found.parent for found in Path(path).glob(f"**/{evaluate.OUTPUTS}")) or [Path(path)]
    lines = []
    with closing(scores.new_verifier()) as verifier:
        for place in folders:
            line, changed, missing = evaluate.regrade(evaluate.EvalFolder.open(place), verifier)
            lines.append(line)
            show(f"{place}: {changed} rows changed" + f"; {missing} problems are still to be asked" * bool(missing))
    show(scores.table(lines))


def print_difference(a: str, b: str) -> None:
    from grpo.evaluation import evaluate

    for column, result in evaluate.difference(*map(evaluate.EvalFolder.open, (a, b))).items():
        mean, low, high = (100 * result[key] for key in ("mean", "low", "high"))
        show(f"{column:8}  B - A = {mean:+.1f} points [{low:+.1f}, {high:+.1f}] (paired, 95% bootstrap over problems)")
        for kind in ("gained", "lost"):
            show(f"          {kind} {len(result[kind])}: rows {', '.join(map(str, result[kind])) or '-'}")


def show(text: str) -> None:
    """Names of files and models come from anywhere: nothing in them steers the terminal."""
    print(printable(text), flush=True)


def main(argv: Sequence[str]) -> int:
    try:
        args = parse(argv)
        if args.list:
            list_benchmarks()
        elif args.regrade:
            regrade_all(args.regrade)
        elif args.compare:
            print_difference(*args.compare)
        else:
            evaluate(args)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be printed has no place to go
        if isinstance(error, BrokenPipeError):  # eval.py ... | head -1
            return 141
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    answer_early(parse, sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
