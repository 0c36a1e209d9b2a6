"""Writes a trained model with its model card: `python -m tools.export hub runs/NAME --out DIR`, then `hf upload`.

The weights are those of `tools.export merged`. The card is written from the run: base model, data, reward, settings,
test figures before and after, alarms, and the command that repeats it. It names no folder of this machine.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from jinja2 import Environment, StrictUndefined

from grpo.evaluation.benchmarks import held_out_problems
from grpo.evaluation.scores import wilson
from grpo.policy import load_tokenizer
from grpo.run.alarms import Alarms
from grpo.run.display import SMOKE_NOTE, as_text, star
from grpo.run.files import read_rows
from grpo.run.resume import read_config
from grpo.saved import of_run
from grpo.settings import Config, changed, flat, short, typed
from grpo.terminal import escape_control
from tools.export import merged

SHARES = ("sampled_accuracy", "greedy_accuracy", "format_rate", "verdict_accuracy")
MEAN_SCORES = ("sampled_mean_score", "greedy_mean_score")
"""Of partial credit: no shares, so without an interval"""


def add_arguments(cli: argparse.ArgumentParser) -> None:
    cli.add_argument("source", metavar="RUN", help="run folder; its newest checkpoint is exported")
    cli.add_argument("--base-model", metavar="ID", help="the base's name on the hub, where the run names a folder")


def write(args: argparse.Namespace, folder: Path) -> str:
    card = model_card(Path(args.source), args.base_model, args.trust_remote_code)  # first: it is quick to fail
    merged.write(args, folder)
    card.save(folder / "README.md")
    return f"{args.out}: read its README.md, then: hf upload OWNER/NAME {args.out}"


def model_card(run: Path, base_model: str | None, trusted: bool = False) -> ModelCard:
    """Returns the card. Raises UserError if the run or its test problems cannot be read."""
    newest = of_run(str(run))[-1]
    config = read_config(run)
    alarms = Alarms(config.rollout.completions_per_step)
    base = base_model or (None if Path(config.model).is_dir() else config.model)
    data = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=license_of(config.model),
        tags=["grpo", "rlvr", "reinforcement-learning"],
    )
    public = changed(portable(config), {"model": base} if base else {})
    values = {
        "config": public,
        "command": f"python train.py {short(public)}",
        "step": newest.step,
        "problems": list({(row["prompt"], row["ground_truth"]) for row in read_rows(run / "problems.jsonl")}),
        "smoke_note": SMOKE_NOTE.format(config.eval.limit) if config.eval.limit else "",
        "results": results(run, config, load_tokenizer(newest.path, trusted)),
        "alarms": [text for row in read_rows(run / "metrics.jsonl") if row["step"] for text in alarms(row)],
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = lambda text: escape_control(str(text))
    template = environment.from_string(Path(__file__).with_name("card.j2").read_text(encoding="utf-8"))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{template.render(values)}\n")


def results(run: Path, config: Config, tokenizer: Any) -> list[list[str]]:
    """Returns [figure, before, after] of a finished run with test problems. Shares have their 95% intervals."""
    if not (run / "summary.json").is_file() or not config.eval.test:
        return []
    summary = json.loads((run / "summary.json").read_text())
    total = len(held_out_problems(config, tokenizer)[1])
    rows = []
    for name in (name for name in SHARES + MEAN_SCORES if name in summary["after"]):
        cells = [f"{name.replace('_', ' ')}{star(config.eval.limit)}, {total} problems"]
        for figure in (summary["before"][name], summary["after"][name]):
            cells.append(as_text(name, figure))
            if name in SHARES:
                low, high = wilson(round(figure * total), total)
                cells[-1] += f" ({100 * low:.1f} to {100 * high:.1f})"
        rows.append(cells)
    return rows


def license_of(model: str) -> str | None:
    """The licence in the card of the base model, where this machine has that card."""
    card = Path(model) / "README.md" if Path(model).is_dir() else try_to_load_from_cache(model, "README.md")
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    return ModelCard.load(card).data.license


def portable(config: Config) -> Config:
    """The settings with each absolute path reduced to its last part."""
    texts = {name: re.sub(r"(?<![^,])/[^,]+", last_part, typed(value)) for name, value in flat(config).items()}
    return changed(config, texts | {"name": None, "out": "runs"})


def last_part(path: re.Match[str]) -> str:
    return Path(path[0]).name
