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
from grpo.errors import UserError, one_line
from grpo.settings import changed
from grpo.settings import parse as parse_settings
from grpo.terminal import escape_control

if TYPE_CHECKING:
    from grpo.types import Completion
    from rewards import Score

RANGES = {"n": (1, 1000), "temperature": (0, 10), "seed": (0, 2**31 - 1)}
SETTINGS = ("rollout.max_new_tokens", "prompt", "template_args")
"""Options that change a setting of the run"""
WITHOUT_RUN = {"rollout.max_new_tokens": 512, "prompt": "plain"}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    cli = Parser(prog="python -m tools.sample", description=__doc__)
    add = cli.add_argument
    add("run", help="a run's folder: its base and its newest checkpoint; or one model's folder or id")
    add("question", help="the user's message; the run's own system message precedes it")
    add("--truth", help="the right answer: with it all signals are shown, without it the format alone")
    add("--n", type=int, default=4, help="completions [4]")
    add("--temperature", type=float, default=1.0, help="0 is greedy [1]")
    add("--max-new-tokens", dest=SETTINGS[0], help="a longer completion is cut [the run's, else 512]")
    add("--prompt", help="system message: a name from prompts/ or a text file [the run's, else plain]")
    add("--template-args", metavar="X=Y", help="arguments of the chat template [the run's, else none]")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda if there is one")
    add("--seed", type=int, default=0)
    add("--trust-remote-code", action="store_true", help="let the model run the Python that it brings")
    args = cli.parse_args(argv)
    check_ranges(args, RANGES)
    return args


def sample(args: argparse.Namespace) -> Table:
    """Base and trained model, each with its completions. UserError if one cannot be loaded."""
    from grpo.chat_template import ChatTemplate
    from grpo.engines.base import SamplingParams, choose_device
    from grpo.engines.torch_engine import TorchEngine
    from grpo.policy import load_tokenizer
    from grpo.problems import make_problems
    from grpo.rollout import text_of
    from grpo.run.resume import read_config
    from grpo.saved import of_run, open_policy, single
    from grpo.types import Request
    from rewards import make_reward

    trusted = args.trust_remote_code
    is_run = (Path(args.run) / "config.yaml").is_file()
    targets = of_run(args.run, trusted) if is_run else [single(args.run, trusted)]
    run = targets[-1].run
    options = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
    config = changed(read_config(run), options) if run else parse_settings(WITHOUT_RUN | options)
    longest = config.rollout.max_new_tokens
    row = {"question": args.question, "answer": args.truth or "0"}
    device = choose_device(args.device)
    engine = TorchEngine()
    columns = []
    with closing(make_reward("multi_signal", verifier=config.reward.verifier)) as reward:
        for target in dict.fromkeys((targets[0], targets[-1])):
            template = ChatTemplate.of_run(config, load_tokenizer(target.path, trusted))
            problems, bad = make_problems([("the question", row)], template, config.prompt, graded=False)
            if bad:
                raise UserError(f"the question cannot be used: {bad[0].reason}")
            problem = problems["the question"]
            policy = open_policy(target, device, len(problem.prompt_ids) + longest)
            engine.sync(policy)
            request = Request(problem.prompt_ids, args.n if args.temperature else 1, args.seed)
            (completions,) = engine.generate([request], SamplingParams(longest, args.temperature))
            texts = [text_of(policy.tokenizer, problem.prompt, completion) for completion in completions]
            scores = reward.score_batch(texts, [row["answer"]] * len(texts))
            columns.append((target.name, list(zip(texts, scores, completions, strict=True))))
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
