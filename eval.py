"""Benchmarks a model, or the base and every checkpoint of a run; regrades and compares saved outputs without a model.

python eval.py --bench math500 --model Qwen/Qwen2.5-Math-1.5B
python eval.py --bench all --run runs/NAME
python eval.py --regrade evals/MODEL/BENCH-HASH
python eval.py --compare evals/A/BENCH-HASH evals/B/BENCH-HASH
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

from data.sources import LICENCE, REPOSITORY, SOURCES
from grpo.errors import UserError
from grpo.evaluation import benchmarks, scores
from grpo.evaluation.benchmarks import PAPER_PROTOCOL, sampling_name
from grpo.evaluation.evaluate import OUTPUTS, EvalFolder, Session, difference, of_run, regrade, single
from grpo.evaluation.scores import Line, new_verifier


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(prog="eval.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    cli.add_argument("--bench", help=f"{', '.join(PAPER_PROTOCOL)}, all, arithmetic, or a .parquet/.jsonl file")
    what = cli.add_mutually_exclusive_group()
    what.add_argument("--model", help="model folder, LoRA adapter folder, checkpoint, or Hugging Face id")
    what.add_argument("--run", help="a run's folder: its base model and every checkpoint, in one table and one plot")
    what.add_argument("--list", action="store_true", help="the benchmarks, their size and source")
    what.add_argument("--regrade", metavar="DIR", help="grade saved outputs anew, without a model")
    what.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="paired difference B - A and the problems that flipped"
    )
    cli.add_argument(
        "--samples", type=int, help="completions a problem [the paper's: 1, and 8 for aime24, aime25, amc23]"
    )
    cli.add_argument(
        "--temperature", type=float, help="0 is greedy [the paper's: 0.6 where there is more than one sample]"
    )
    cli.add_argument("--max-new-tokens", type=int, help="a longer completion is cut [the paper's: 3072]")
    cli.add_argument(
        "--prompt", help="system message: a name from prompts/ or a text file [a run's own, else qwen25-math-cot]"
    )
    cli.add_argument("--engine", choices=["auto", "torch", "vllm"], default="auto", help="auto: vllm where installed")
    cli.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    cli.add_argument("--limit", type=int, help="only the first so many problems: a smoke figure, and marked as one")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--data-dir", help="folder with the benchmark files [$GRPO_DATA_DIR, else downloaded once]")
    cli.add_argument("--out", default="evals", help="where the results go [evals]")
    return cli


def evaluate(args: argparse.Namespace) -> None:
    targets = of_run(args.run) if args.run else [single(args.model)]
    names = benchmarks.names(args.bench)
    with closing(new_verifier()) as verifier:
        session = Session(args, verifier)
        try:
            lines = [session.line(target, name) for target in targets for name in names]
        finally:
            session.close()
    print(scores.table(lines))
    for text in (*map(scores.more_samples, lines), scores.averages(lines)):
        if text:
            print(text)
    if args.run:
        print(scores.last_and_best(lines))
        run = Path(args.run).resolve().name
        path = Path(args.out) / f"{run}--{Path(args.bench).stem}.png"
        print(f"plot  {scores.plot(lines, run, path)}")


def list_benchmarks() -> None:
    print(f"from github.com/{REPOSITORY} ({LICENCE}); python -m data fetch gets them all")
    for name, protocol in PAPER_PROTOCOL.items():
        how = f"avg@{protocol.samples} at T={protocol.temperature:g}" if protocol.samples > 1 else "greedy"
        print(f"{name:22} {SOURCES[name].rows:4} problems  {how:15}  {SOURCES[name].path}")
    for name, path in benchmarks.ARITHMETIC.items():
        print(f"{name:22}  300 problems  {'greedy':15}  built in: data/arithmetic/{path.name}")


def regrade_all(path: str) -> None:
    """One evaluation, or all of them under a folder."""
    folders = sorted(found.parent for found in Path(path).glob(f"**/{OUTPUTS}")) or [Path(path)]
    lines = []
    with closing(new_verifier()) as verifier:
        for place in folders:
            folder = EvalFolder.open(place)
            figures, changed = regrade(folder, verifier)
            settings = folder.settings
            limited, sampling = settings["limit"] is not None, sampling_name(settings["temperature"])
            lines.append(Line(place.resolve().parent.name, None, settings["bench"], sampling, figures, limited))
            missing = settings["problems"] - figures["problems"]
            print(
                f"{place}: {changed} rows changed" + (f"; {missing} problems are still to be asked" if missing else "")
            )
    print(scores.table(lines))


def print_comparison(a: str, b: str) -> None:
    for column, result in difference(EvalFolder.open(a), EvalFolder.open(b)).items():
        mean, low, high = (100 * result[key] for key in ("mean", "low", "high"))
        print(f"{column:8}  B - A = {mean:+.1f} points [{low:+.1f}, {high:+.1f}] (paired, 95% bootstrap over problems)")
        for kind in ("gained", "lost"):
            print(f"          {kind} {len(result[kind])}: rows {', '.join(map(str, result[kind])) or '-'}")


def check_numbers(args: argparse.Namespace) -> None:
    for option, least in (("samples", 1), ("max_new_tokens", 1), ("limit", 1), ("temperature", 0), ("seed", 0)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise UserError(f"--{option.replace('_', '-')} is {value}; it must be at least {least}")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        check_numbers(args)
        if args.list:
            list_benchmarks()
        elif args.regrade:
            regrade_all(args.regrade)
        elif args.compare:
            print_comparison(*args.compare)
        elif not args.bench or not (args.model or args.run):
            raise UserError(
                "name what to ask and whom: --bench NAME with --model MODEL or --run runs/NAME (--list, --help)"
            )
        else:
            evaluate(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
