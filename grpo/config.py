"""How the settings of a run come about: defaults, a preset that holds only what differs, the command line on top.

`python train.py --preset cpu --learner.lr 2e-4` reads configs/cpu.yaml, lays the override on top, checks the whole and
freezes it. Whatever is wrong is one UserError line that names the nearest valid word.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from grpo.errors import UserError
from grpo.settings import (
    CheckpointConfig,
    Config,
    EvalConfig,
    LearnerConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    Section,
)
from rewards import weights_from_env

__all__ = [
    "CheckpointConfig",
    "Config",
    "EvalConfig",
    "LearnerConfig",
    "PolicyConfig",
    "RewardConfig",
    "RolloutConfig",
]

PRESETS = Path(__file__).resolve().parent.parent / "configs"
SHORT = {"policy.quant": "--quant", "eval.every": "--eval_every"}
RENAMED = {
    "gap_limit": "rollout.mismatch_limit",
    "skip_zero_spread": "learner.skip_zero_variance",
    "updates_per_rollout": "learner.minibatches_per_rollout",
}
"""A setting's old name, without its section -> what it is called now."""
WEIGHTS = ("reward.alpha", "reward.beta", "reward.gamma")


class Command(NamedTuple):
    """What the command line asked for, beside the settings."""

    config: Config
    resume: str | None
    check: bool
    overrides: dict[str, str]
    preset: str | None = None
    """As typed; the settings of a run that is continued are compared with it."""


def parse_args(argv: Sequence[str], default_preset: str) -> Command:
    """The command line as a checked Config. `--data-dir` and `--data_dir` are the same option."""
    cli = parser()
    cli.error = _raise  # argparse itself would print its usage and exit
    given, unknown = cli.parse_known_args([_underscores(word) for word in argv])
    if unknown:
        word = unknown[0].partition("=")[0]
        options = [option for action in cli._actions for option in action.option_strings]
        raise UserError(_unknown("option", word, options))
    given = vars(given)
    resume, check, preset = (given.pop(name, None) for name in ("resume", "check", "preset"))
    # A run that is continued has its settings in its own folder.
    config = Config() if resume is not None else build(preset or default_preset, given)
    return Command(config, resume, bool(check), given, preset)


def build(preset: str | None, overrides: dict[str, str]) -> Config:
    """The preset's file, REWARD_WEIGHTS where it is set, and the overrides on top, checked."""
    return overridden(parse(_preset(preset)) if preset is not None else Config(), overrides)


def overridden(config: Config, overrides: dict[str, str]) -> Config:
    """REWARD_WEIGHTS where it is set, and the overrides on top."""
    try:
        weights = weights_from_env((config.reward.alpha, config.reward.beta, config.reward.gamma))
    except ValueError as error:
        raise UserError(str(error)) from None
    return changed(config, dict(zip(WEIGHTS, weights, strict=True)) | overrides)


def _preset(name: str) -> dict[str, Any]:
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in names:
        raise UserError(f"unknown preset {name!r}; there are {', '.join(names)}{nearest(name, names)}")
    tree = yaml.safe_load((PRESETS / f"{name}.yaml").read_text()) | {"preset": name}
    for section, key in (
        (tree, "model"),
        (tree, "data"),
        (tree.get("eval", {}), "data"),
        (tree.get("eval", {}), "test"),
    ):
        beside = PRESETS.parent / section.get(key, "")
        if key in section and beside.exists() and not Path(section[key]).exists():  # started from another folder
            section[key] = str(beside)
    return tree


def changed(config: Config, overrides: dict[str, Any]) -> Config:
    """The same settings but for these (dotted name -> value, or the text of it), checked again."""
    return parse(config.model_dump(), overrides)


def parse(tree: dict[str, Any], overrides: dict[str, Any] | None = None) -> Config:
    """A checked Config from nested settings and dotted overrides. Raises UserError with one line."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    leaves = fields()
    for dotted, value in (overrides or {}).items():
        if dotted not in leaves:
            raise UserError(_unknown("setting", dotted, leaves))
        section, _, leaf = dotted.rpartition(".")
        none = value == "none" and leaves[dotted].default is None
        (tree.setdefault(section, {}) if section else tree)[leaf] = None if none else value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_one_line(error, leaves)) from None


def fields(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Dotted name -> pydantic field, for every leaf."""
    leaves = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            leaves |= fields(field.annotation, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = field
    return leaves


def flat(config: Config) -> dict[str, Any]:
    """Dotted name -> value, for every leaf."""
    values = {}
    for dotted in fields():
        section, _, leaf = dotted.rpartition(".")
        values[dotted] = getattr(getattr(config, section) if section else config, leaf)
    return values


def short(config: Config) -> str:
    """One line: the preset and whatever differs from it, as it would be typed."""
    plain = flat(Config() if config.preset == "none" else parse(_preset(config.preset)))
    words = [f"--{name} {typed(value)}" for name, value in flat(config).items() if value != plain[name]]
    return " ".join([f"--preset {config.preset}", *words])


def typed(value: Any) -> str:
    """A value as the command line takes it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """The line for a name that does not exist: its new name where it had another, else the nearest that does."""
    dashes, leaf = "--" * word.startswith("--"), word.lstrip("-").rpartition(".")[2]
    if leaf in RENAMED:
        return f"{word} is now called {dashes}{RENAMED[leaf]}; use that name"
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]  # --lr: --learner.lr
    return f"unknown {kind} {word}{nearest(word, same_leaf or known)}"


def nearest(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else ""


def parser() -> argparse.ArgumentParser:
    """`--help` from the fields' docstrings."""
    cli = argparse.ArgumentParser(
        prog="train.py",
        description="GRPO on one GPU, or on a CPU with the built-in tiny model.",
        epilog="python train.py --preset cpu | --preset l4 | --preset h100",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    cli.add_argument("--preset", help="cpu, l4 or h100. Without it: what fits the machine")
    cli.add_argument("--resume", help="continue the run in this folder, or the newest one: auto")
    cli.add_argument("--check", action="store_true", help="load nothing big; print what would run and what is wrong")
    groups: dict[str, Any] = {}
    for dotted, field in fields().items():
        if dotted == "preset":
            continue
        section, _, leaf = dotted.rpartition(".")
        group = groups.setdefault(section, cli.add_argument_group(section or "run"))
        names = [f"--{dotted}", *filter(None, [SHORT.get(dotted)])]
        text = f"{field.description} [{typed(field.default)}]".replace("%", "%%").replace("\n", " ")
        flag = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
        group.add_argument(*names, dest=dotted, metavar=leaf.upper(), help=text, **flag)
    return cli


def _raise(message: str) -> None:
    raise UserError(message)


def _underscores(word: str) -> str:
    """--learner.token-budget=4096 -> --learner.token_budget=4096"""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _one_line(error: ValidationError, leaves: dict[str, FieldInfo]) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown("setting", name, leaves)
    if not name:  # a cross-field check, whose message names its fields
        return first["msg"].removeprefix("Value error, ")
    message = f"{name} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] == "literal_error":
        message += nearest(str(first["input"]), get_args(leaves[name].annotation))
    return message
