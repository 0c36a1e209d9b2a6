"""Play with the advantages of a real run: `python -m course.playground runs/NAME` writes one offline HTML file.

It shows the groups of completions of a trained run, step by step. Reward weights, the division by the standard
deviation, the clip and the KL term can be moved, and the page shows the gradient of each token. The maths is
written a second time, in playground.js; a test holds it equal to what the run logged.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import groupby, islice, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from grpo.cli import Parser
from grpo.errors import UserError, one_line
from grpo.report.page import environment
from grpo.report.read import Run, newest_first_then_spread
from grpo.run.files import numbered, write
from grpo.settings import LearnerConfig

HERE = Path(__file__).resolve().parent
MAX_SIZE = 400_000
"""Characters of data in the page; steps in between are skipped where a run has more"""
MAX_GROUPS = 4
"""Groups of a step in the page"""
COPIED = ("signals", "reward", "advantage", "tokens")
OWN_WEIGHTS = {"verify": "alpha", "format": "beta", "reflect": "gamma"}


def page_data(run: Run) -> dict[str, Any]:
    """The data of the page: per step the groups, each completion with its signals and its text cut into tokens."""
    if not run.completions:
        raise UserError(f"{run.folder} has no completions yet; wait for its first step")
    cut = token_cutter(run.folder)
    by_step = {step: list(rows) for step, rows in groupby(run.completions, itemgetter("step"))}
    steps = list(by_step)
    size = 0
    kept: dict[int, list[dict]] = {}
    for index in newest_first_then_spread(len(steps)):
        groups = []
        for name, members in islice(groupby(by_step[steps[index]], itemgetter("group")), MAX_GROUPS):
            rows = list(members)
            completions = [{key: row[key] for key in COPIED} | {"pieces": cut(row["text"])} for row in rows]
            groups.append({"group": name, "prompt": run.prompts[rows[0]["prompt"]], "completions": completions})
        size += len(json.dumps(groups))
        if kept and size > MAX_SIZE:
            break
        kept[steps[index]] = groups
    learner = LearnerConfig().model_dump() | run.config.get("learner", {})
    return {
        "name": run.name,
        "steps": [{"step": step, "groups": kept[step]} for step in sorted(kept)],
        "weights": reward_weights(run),
        "learner": {
            name: learner[name] for name in ("advantage", "loss_aggregation", "clip_low", "clip_high", "kl_coef")
        },
    }


def reward_weights(run: Run) -> dict[str, float]:
    """Signal -> its weight in the run's reward; 1 for the signals of a user's own function."""
    reward = run.config.get("reward", {})
    signals = dict.fromkeys(name for row in run.completions for name in row["signals"])
    name = reward.get("name", "multi_signal")
    if name in ("verify_only", "format_only", "random"):
        return {signal: float(signal == name.removesuffix("_only")) for signal in signals}
    return {signal: float(reward.get(OWN_WEIGHTS.get(signal), 1.0)) for signal in signals}


def token_cutter(folder: Path) -> Callable[[str], list[str]]:
    """A function that cuts a text into the pieces of the run's tokenizer, by encoding it again: for showing only."""
    newest = list(numbered(folder / "checkpoints").values())[-1:]
    tokenizer = Tokenizer.from_file(str(newest[0] / "tokenizer.json")) if newest else None

    def cut(text: str) -> list[str]:
        if tokenizer is None:
            return [text]
        offsets = [o for o in tokenizer.encode(text, add_special_tokens=False).offsets if o[1] > o[0]]
        edges = sorted({0, len(text), *(edge for offset in offsets for edge in offset)})
        return [text[start:end] for start, end in pairwise(edges)]

    return cut


def render(run: Run) -> str:
    return environment(HERE).get_template("playground.html.j2").render(data=page_data(run), name=run.name)


@one_line(OSError)
def main(argv: Sequence[str]) -> int:
    cli = Parser(prog="python -m course.playground", description="A run's groups, to play with.")
    cli.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/NAME")
    cli.add_argument("--out", type=Path, metavar="FILE", help="default: playground.html in the run's folder")
    args = cli.parse_args(argv)
    out = args.out or args.run / "playground.html"
    write(out, render(Run(args.run, 4096)))
    print(f"{out} ({out.stat().st_size / 1000:.0f} kB): open it in a browser, no network is needed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
