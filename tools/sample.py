"""Asks a trained model: `python -m tools.sample runs/NAME "567+876=?"` prints its completions beside the base's."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from grpo.cli import Parser, check_ranges
from grpo.early import answer_early
from grpo.errors import one_line
from grpo.settings import ENGINES, read_yaml
from grpo.settings import parse as settings_of
from grpo.terminal import escape_control

if TYPE_CHECKING:
    from grpo.types import Completion
    from rewards import Score

GREEN, RED, BOLD, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[0m"
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
    cli.add_argument("--engine", choices=["auto", *ENGINES], default="torch", help="[torch]")
    cli.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one")
    cli.add_argument("--seed", type=int, default=0)
    args = cli.parse_args(argv)
    check_ranges(args, RANGES)
    return args


def sample(args: argparse.Namespace) -> str:
    """Base and trained model, each with its completions, as a page of text. UserError where one cannot be loaded."""
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
    engine = None
    columns = []
    with closing(make_reward("multi_signal", verifier=verifier)) as reward:
        for target in targets:
            template = ChatTemplate(load_tokenizer(target.path), pinned.template_args, settings.get("template_date"))
            problems, bad = make_problems([("the question", row)], template, prompt, graded=False)
            check_share("the command line", len(problems), bad, allowed=0)
            problem = problems["the question"]
            ids = problem.prompt_ids
            policy = open_policy(target, device, len(ids) + longest)
            if engine is None:
                rollout = {"engine": args.engine, "max_new_tokens": longest, "max_prompt_tokens": len(ids)}
                engine = make_engine(
                    settings_of({"model": target.base, "policy": {"dtype": target.dtype}, "rollout": rollout}), device
                )
            engine.sync(policy)
            request = Request(ids, args.n if args.temperature else 1, args.seed)
            (completions,) = engine.generate([request], SamplingParams(longest, args.temperature))
            texts = [text_of(policy.tokenizer, problem.prompt, completion) for completion in completions]
            scores = reward.score_batch(texts, [row["answer"]] * len(texts))
            name = target.label if target.step is None else f"step {target.step}" if target.step else "base"
            columns.append((name, list(zip(texts, scores, completions, strict=True))))
        assert engine is not None  # there is at least one target
        engine.close()
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # no-color.org
    return side_by_side(columns, args.truth is not None, shutil.get_terminal_size().columns, colour)


def side_by_side(
    columns: Sequence[tuple[str, Sequence[tuple[str, Score, Completion]]]], graded: bool, width: int, colour: bool
) -> str:
    """A column a model: its completions one below the other, each with its signals. Nothing in them is obeyed."""
    width = max(30, (width - 3 * (len(columns) - 1)) // len(columns))
    lines: list[Sequence[str]] = [[_painted(label[:width].ljust(width), BOLD, colour) for label, _ in columns]]
    for row in zip(*(completions for _, completions in columns), strict=True):
        cells = [_cell(text, score, completion, graded, width, colour) for text, score, completion in row]
        lines += [*zip_longest(*cells, fillvalue=" " * width), ()]
    return "\n".join(" | ".join(line).rstrip() for line in lines)


def _cell(text: str, score: Score, completion: Completion, graded: bool, width: int, colour: bool) -> list[str]:
    """The completion, how long it was, and its signals: green or red."""
    rows = escape_control(text).expandtabs(4).split("\n")
    lines = [line.ljust(width) for row in rows for line in textwrap.wrap(row, width, drop_whitespace=False) or [""]]
    cut = ", cut" if completion.finish_reason == "length" else ""
    lines.append(f"({len(completion.ids)} tokens{cut})".ljust(width))
    shown = score.signals if graded else {"format": score.signals["format"]}
    words = {f"{name} {value:g}": GREEN if value > 0 else RED for name, value in shown.items()}
    room = " " * (width - len(" ".join(words)))
    return [*lines, " ".join(_painted(word, shade, colour) for word, shade in words.items()) + room]


def _painted(text: str, shade: str, colour: bool) -> str:
    return f"{shade}{text}{PLAIN}" if colour else text


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    print(sample(parse(argv)))
    return 0


if __name__ == "__main__":
    answer_early(__name__, parse)
    sys.exit(main(sys.argv[1:]))
