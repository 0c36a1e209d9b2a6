"""Command lines as settings. Imports neither torch nor transformers: help and mistakes are answered at once.

tyro prints train.py's help from the settings classes. The words themselves are read here: tyro reports a mistake as a
box of several lines, and knows neither `none` nor `--quiet false`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from grpo import __version__
from grpo.errors import UserError
from grpo.settings import Config, build, env_weights, expand_home, fields, preset_names, read_settings, unknown

SHORT = {"quant": "policy.quant", "eval_every": "eval.every", "bad_rows": "bad_rows.limit"}
COMMANDS = ("config", "resume", "check", "version", "help")
"""The options of train.py that are no settings."""
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, NVIDIA under WSL, AMD


class Command(NamedTuple):
    """The settings that the command line asks for, and the rest of it."""

    config: Config
    resume: str | None
    check: bool
    overrides: dict[str, Any]
    preset: str | None = None
    """As typed; the settings of a run that is continued are compared with it."""


def parse_args(argv: Sequence[str], default: str | None = None) -> Command:
    """Preset, file, environment and command line, each laid on the one before, as a checked Config.

    `default` is the preset where none is named; None chooses the one that fits this machine. --help and --version print
    and exit. Raises UserError for a wrong or unknown option.
    """
    given = read_options(argv)
    resume, check, preset, file = (given.pop(name, None) for name in ("resume", "check", "preset", "config"))
    if given.pop("version", False):
        print(f"one-shot-grpo {__version__}")
        raise SystemExit(0)
    if given.pop("help", False):
        print_help(preset or default or default_preset()[0])
    own = read_settings(file) if file is not None else {}
    preset = preset or own.pop("preset", None)  # the settings of a run name the preset that they came from
    overrides = {name: value for name, value in own.items() if name != "preset"} | env_weights() | given
    # A run that is continued has its settings in its own folder.
    config = Config() if resume is not None else build(preset or default or default_preset()[0], overrides)
    return Command(config, resume, check == "true", overrides, preset)


def read_options(argv: Sequence[str]) -> dict[str, str]:
    """The options of train.py by their names. `--data-dir X`, `--data_dir X` and `--data_dir=X` are the same."""
    flags = {name for name, field in fields().items() if field.annotation is bool} | {"check", "version", "help"}
    names = {name: name for name in (*fields(), *COMMANDS)} | SHORT
    given: dict[str, str] = {}
    words = ["--help" if word == "-h" else word for word in reversed(argv)]
    while words:
        word = words.pop()
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}")
        option, equals, value = word[2:].partition("=")
        name = names.get(option.replace("-", "_"))
        if name is None:
            raise UserError(unknown("option", f"--{option}", [f"--{known}" for known in names]))
        if not equals and words and not words[-1].startswith("--"):
            value = words.pop()
        elif not equals and name in flags:
            value = "true"
        elif not equals:
            raise UserError(f"--{option} needs a value")
        if not value.isprintable() and any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"--{option} is {value!r}; it must be text in UTF-8")
        given[name] = expand_home(value) if name in COMMANDS else value
    return given


def default_preset() -> tuple[str, str]:
    """The preset that fits this machine, and the reason. Asks torch only where there is a GPU's device."""
    if any(map(Path.exists, map(Path, GPU_DEVICES))):
        import torch

        if torch.cuda.is_available():
            card = torch.cuda.get_device_properties(0)
            return ("h100" if card.total_memory > 60e9 else "l4"), f"because this machine has a {card.name}"
    return "cpu", "because this machine has no GPU that torch can use"


def print_help(preset: str) -> NoReturn:
    """Prints every option with the values of a preset, from the settings' docstrings, and exits."""
    import tyro

    description = (
        "GRPO on one GPU, or on a CPU with the built-in tiny model.\n\n"
        f"--preset NAME: {', '.join(preset_names())}; without it, the one that fits the machine\n"
        "--config FILE.yaml: your own settings, on top of the preset\n"
        "--resume RUN: continue the run in this folder, or the newest one: auto\n"
        "--check: print what would run and what is wrong, without training\n"
        "--version: print the version\n\n"
        f"Short forms: {', '.join(f'--{short} for --{name}' for short, name in SHORT.items())}.\n"
        f"The defaults below are those of --preset {preset}; --preset NAME --help shows another's."
    )
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    settings = build(preset, {})
    tyro.cli(
        Config, args=["--help"], default=settings, prog="train.py", description=description, use_underscores=True,
        config=markers,
    )  # fmt: skip
    sys.exit(0)


# ---- the other commands


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError with one line, and takes `--data_dir` for `--data-dir` and ~ for home."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False, **options)

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]  # argv is always passed
        args, strange = self.parse_known_args([_normal(word) for word in argv])
        if strange and strange[0].startswith("--"):
            raise UserError(unknown("option", strange[0].partition("=")[0], self.options()))
        if strange:
            raise UserError(f"unexpected argument {strange[0]!r}")
        return args

    def options(self) -> Iterable[str]:
        """Every option's name with its dashes, from the usage line that argparse itself writes."""
        return [word.strip("[]") for word in self.format_usage().split() if word.strip("[]").startswith("--")]

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _normal(word: str) -> str:
    """--data_dir=~/x -> --data-dir=/home/me/x"""
    if not word.startswith("--"):
        return expand_home(word)
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + expand_home(value)


def check_ranges(args: argparse.Namespace, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raises UserError where an option that was given is outside its range."""
    for name, (least, most) in ranges.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:  # nan is not, either
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be from {least} to {most}")
