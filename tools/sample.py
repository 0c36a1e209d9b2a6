"""Asks a trained model: `python -m tools.sample runs/NAME "567+876=?"` prints its completions beside the base's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo.cli import Parser, check_ranges
from grpo.early import answer_early
from grpo.errors import one_line
from grpo.settings import parse as settings_of
from grpo.settings import read_yaml
from grpo.terminal import escape_control

if TYPE_CHECKING:
    from grpo.types import Completion
    from rewards import Score

RANGES = {"n": (1, 1000), "temperature": (0, 10), "max_new_tokens": (1, 10**6), "seed": (0, 2**31 - 1)}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    cli = Parser(prog="python -m tools.sample", description=__doc__)
    cli.add_argument("run", help="a run's folder: its base and its newest checkpoint; or one model's folder or id")
    cli.add_argument("question", help="the user's message; the run's own system message precedes it")
    cli.add_argument("--truth", help="the right answer: with it all signals are shown, without it the format alone")
    cli.add_argument("--n", type=int, default=4, help="completions [4]")
    cli.add_argument("--temperature", type=float, default=1.0, help="0 is greedy [1]")
    cli.add_argument("--max-new-tokens", type=int, help="a longer completion is cut [the run's, else 512]")
    cli.add_argument("--prompt", help="system message: a name from prompts/ or a text file [the run's, else plain]")
    cli.add_argument("--template-args", metavar="X=Y", help="arguments of the chat template [the run's, else none]")
    cli.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one")
    cli.add_argument("--seed", type=int, default=0)
    args = cli.parse_args(argv)
    check_ranges(args, RANGES)
    return args


def sample(args: argparse.Namespace) -> Table:
    """Base and trained model, each with its completions. UserError where one cannot be loaded."""
    from grpo.chat_template import ChatTemplate
    from grpo.engines.base import SamplingParams, choose_device, make_engine
    from grpo.policy import load_tokenizer
    from grpo.problems import check_share, make_problems
    from grpo.rollout import text_of
    from grpo.saved import of_run, open_policy, single
    from grpo.types import Request
    from rewards import make_reward

    settings = read_yaml(Path(args.run) / "config.yaml") if (Path(args.run) / "config.yaml").is_file() else {}
    targets = of_run(args.run) if settings else [single(args.run)]
    targets = targets if len(targets) == 1 else [targets[0], targets[-1]]
    longest = args.max_new_tokens or settings.get("rollout", {}).get("max_new_tokens", 512)
    prompt = args.prompt or targets[-1].prompt or "plain"
    row = {"question": args.question, "answer": args.truth or "0"}
    device = choose_device(args.device)
    verifier = settings.get("reward", {}).get("verifier", "box")
    pinned = settings_of({"template_args": args.template_args or settings.get("template_args", {})})
    base = {"model": targets[0].base, "policy": {"dtype": targets[0].dtype}}
    config = settings_of(base | {"rollout": {"engine": "torch", "max_new_tokens": longest}})
    columns = []
    with (
        closing(make_reward("multi_signal", verifier=verifier)) as reward,
        closing(make_engine(config, device)) as engine,
    ):
        for target in targets:
            template = ChatTemplate(load_tokenizer(target.path), pinned.template_args, settings.get("template_date"))
            problems, bad = make_problems([("the question", row)], template, prompt, graded=False)
            check_share("the command line", len(problems), bad, allowed=0)
            problem = problems["the question"]
            policy = open_policy(target, device, len(problem.prompt_ids) + longest)
            engine.sync(policy)
            request = Request(problem.prompt_ids, args.n if args.temperature else 1, args.seed)
            (completions,) = engine.generate([request], SamplingParams(longest, args.temperature))
            texts = [text_of(policy.tokenizer, problem.prompt, completion) for completion in completions]
            scores = reward.score_batch(texts, [row["answer"]] * len(texts))
            name = target.label if target.step is None else f"step {target.step}" if target.step else "base"
            columns.append((name, list(zip(texts, scores, completions, strict=True))))
    return side_by_side(columns, args.truth is not None)


def side_by_side(columns: Sequence[tuple[str, Sequence[tuple[str, Score, Completion]]]], graded: bool) -> Table:
    """A column a model: its completions one below the other, each with its length and its signals."""
    table = Table(box=box.ASCII, show_edge=False)
    for label, _ in columns:
        table.add_column(Text(label), ratio=1, overflow="fold")
    for row in zip(*(completions for _, completions in columns), strict=True):
        cells = [_cell(text, score, completion, graded) for text, score, completion in row]
        table.add_row(*cells, end_section=True)
    return table


def _cell(text: str, score: Score, completion: Completion, graded: bool) -> Text:
    """Plain text: neither the terminal nor rich's markup obeys what a model wrote."""
    cut = ", cut" if completion.finish_reason == "length" else ""
    cell = Text(f"{escape_control(text).expandtabs(4)}\n({len(completion.ids)} tokens{cut})\n")
    shown = score.signals if graded else {"format": score.signals["format"]}
    for name, value in shown.items():
        cell.append(f"{name} {value:g}", "green" if value > 0 else "red").append(" ")
    return cell


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    Console(highlight=False).print(sample(parse(argv)))
    return 0


if __name__ == "__main__":
    answer_early(__name__, parse)
    sys.exit(main(sys.argv[1:]))
