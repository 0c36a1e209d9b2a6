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

import argparse
import sys

sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # python -P does not do it

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

SETTINGS = ("template_args", "template_date", "data_dir", "reward.verifier", "eval.columns")
"""Settings of a run that options change"""
RANGES = {
    "samples": (1, 10**4), "max_new_tokens": (1, 10**6), "limit": (1, 10**9), "seed": (0, 2**31 - 1),
    "temperature": (0, 10),
}  # fmt: skip
SHOWN = 10
"""Rows that --compare names"""


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def parser() -> Parser:
    """The options; but for --list, --regrade and --compare they are fields of EvalRequest or SETTINGS."""
    cli = Parser(prog="eval.py", description=__doc__)
    sets = ", ".join((*benchmarks.BENCHMARKS, *benchmarks.SETS))
    subject = cli.add_mutually_exclusive_group()
    add = cli.add_argument
    model = f"folder, adapter, checkpoint or id; several with commas between [{benchmarks.DEFAULT_MODEL}]"
    own = f"{sets},\ndata files or Hugging Face data sets; several with commas between [the held-out sets of --run]"
    add("--bench", dest="benchmarks", type=names, default=(), help=own)
    subject.add_argument("--model", dest="models", type=names, default=(), help=model)
    subject.add_argument("--run", help="a run's folder: its base model and every checkpoint, in one table and one plot")
    subject.add_argument("--list", action="store_true", help="list the benchmarks with size and source")
    subject.add_argument("--regrade", metavar="DIR", type=Path, help="grade saved outputs again, without a model")
    subject.add_argument("--compare", nargs=2, metavar=("A", "B"), help="paired difference B - A, and what flipped")
    add("--columns", dest="eval.columns", metavar="Q,A", help="prompt and ground truth in your own data [usual names]")
    add("--samples", type=int, help="completions per problem [the paper's: 1, and 8 for aime24, aime25, amc23]")
    add("--temperature", type=float, help="0 is greedy [the paper's: 0.6 for more than one sample]")
    add("--max-new-tokens", type=int, help="a longer completion is cut [the paper's: 3072; the run's on its own sets]")
    prompts = "names from prompts/ or text files [the run's, else qwen25-math-cot; plain for arithmetic]"
    add("--prompts", "--prompt", metavar="A,B", type=names, default=(), help=prompts)
    add("--template-args", metavar="X=Y", help="arguments of the chat template, as enable_thinking=false [the run's]")
    add("--template-date", metavar="DAY", help="the day that the chat template writes [the run's, else today]")
    verifiers = ["box", "last_number", "answer_tag"]
    add("--verifier", dest="reward.verifier", choices=verifiers, help="what the answer is [the run's, else box]")
    add("--audit-contamination", dest="audit", action="store_true", help="show 60%% of each question: is it continued?")
    add("--engine", choices=["auto", *ENGINES], default="auto", help="auto: vllm where it is installed and can run")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one")
    add("--limit", type=int, help="only the first so many problems: a smoke figure, and marked as one")
    add("--seed", type=int, default=0, help="of the samples, and of fresh_arithmetic's calculations")
    add("--data-dir", help="folder with the benchmark files [$GRPO_DATA_DIR, else downloaded once]")
    add("--out", default="evals", help="where the results go [evals]")
    return cli


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, checked. Raises UserError with one line for a wrong one."""
    args = parser().parse_args(argv)
    check_ranges(args, RANGES)
    args.benchmarks = tuple(benchmarks.names(args.benchmarks))
    if not (args.benchmarks or args.run or args.list or args.regrade or args.compare):
        raise UserError("which benchmark? For example --bench math500; --list shows all")
    if args.audit and (args.samples or args.temperature or args.prompts):
        raise UserError("--audit-contamination is greedy and has no prompt: no --samples, --temperature, --prompts")
    return args


def evaluate(args: argparse.Namespace) -> None:
    options = {name: value for name, value in vars(args).items() if name not in ("list", "regrade", "compare")}
    if not (args.models or args.run):
        show(f"no --model or --run given: {benchmarks.DEFAULT_MODEL}, the paper's base model")
        options["models"] = (benchmarks.DEFAULT_MODEL,)
    options["settings"] = {name: value for name in SETTINGS if (value := options.pop(name)) is not None}
    hub.require(options["models"], args.benchmarks, args.data_dir)
    from grpo.evaluation.session import EvalRequest, Session, evaluations  # imports torch and transformers: seconds

    request = EvalRequest(**options)
    planned = evaluations(request)
    with closing(new_verifier()) as verifier, closing(Session(request, planned, verifier)) as session:
        lines = [session.run(evaluation) for evaluation in planned]
    show(results.table(lines))
    if args.run and not args.audit:
        show(results.last_and_best(lines))
        run = Path(args.run).resolve().name
        benches = dict.fromkeys(line.settings["bench"] for line in lines)
        path = Path(args.out) / f"{run}--{'-'.join(benches)}.png"
        show(f"plot  {results.plot(lines, run, path)}")


def list_benchmarks() -> None:
    show(f"the paper's are from github.com/{REPOSITORY} ({LICENCE}); python -m data fetch downloads them")
    for name, (place, size, protocol) in benchmarks.BENCHMARKS.items():
        sampling = f"avg@{protocol.samples} at {protocol}" if protocol.samples > 1 else str(protocol)
        show(f"{name:22} {size:4} problems  {sampling:15}  {place}")


def regrade(path: Path) -> None:
    """Grades one evaluation again, or all evaluations under a folder."""
    begun = sorted(outputs.parent for outputs in path.glob(f"**/{results.OUTPUTS}") if outputs.stat().st_size)
    lines = []
    with closing(new_verifier()) as verifier:
        for folder in begun or [path]:
            line, changed = results.regrade(results.EvalFolder(folder), verifier)
            missing = line.settings["problems"] - line.scores["problems"]
            lines.append(line)
            show(f"{folder}: {changed} rows changed" + (f"; {missing} problems are not sampled yet" if missing else ""))
    show(results.table(lines))


def compare(a: str, b: str) -> None:
    for column, gain in results.difference(results.EvalFolder(a), results.EvalFolder(b)).items():
        mean, low, high = (100 * gain[key] for key in ("mean", "low", "high"))
        show(f"{column:8}  B - A = {mean:+.1f} points [{low:+.1f}, {high:+.1f}] (95%, paired: {gain['method']})")
        for kind in ("gained", "lost"):
            rows = ", ".join(map(str, gain[kind][:SHOWN]))
            count = len(gain[kind])
            more = f" and {count - SHOWN} more" if count > SHOWN else ""
            show(f"          {kind} {count}: rows {rows or '-'}{more}")


def show(text: str) -> None:
    """Prints a text in which names of files and models cannot steer the terminal."""
    print(escape_control(text), flush=True)


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    try:
        if args.list:
            list_benchmarks()
        elif args.regrade:
            regrade(args.regrade)
        elif args.compare:
            compare(*args.compare)
        else:
            evaluate(args)
    except KeyboardInterrupt:
        print("stopped; the same command continues from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    answer_early(__name__, parse)
    sys.exit(main(sys.argv[1:]))
