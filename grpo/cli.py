"""Command lines as settings. Imports neither torch nor transformers, so help and mistakes are answered at once.

argparse parses every command line, and Parser turns its errors into one line. tyro only prints train.py's help from the
settings classes: its own errors fill a box of several lines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from grpo import __version__
from grpo.errors import UserError
from grpo.settings import Config, build, env_weights, expand_home, fields, preset_names, read_settings, unknown

SHORT = {"quant": "policy.quant", "eval_every": "eval.every", "bad_rows": "bad_rows.limit"}
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, NVIDIA under WSL, AMD


class Command(NamedTuple):
    """A parsed command line of train.py."""

    config: Config
    resume: str | None
    check: bool
    overrides: dict[str, Any]
    preset: str | None = None
    """As typed, or None. A continued run's settings are compared with it."""


def parse_args(argv: Sequence[str], default: str | None = None) -> Command:
    """Merges preset, file, environment and command line, in this order, into a checked Config.

    Without a named preset, takes `default`, or the one that fits this machine if that is None. --help and --version
    print and exit. Raises UserError for a wrong or unknown option.
    """
    given = vars(train_parser().parse_args(argv))
    resume, check, preset, file = (given.pop(name, None) for name in ("resume", "check", "preset", "config"))
    if given.pop("help", False):
        print_help(preset or default or default_preset()[0])
    from_file = read_settings(file) if file is not None else {}
    preset = preset or from_file.pop("preset", None)  # the settings of a run name the preset that they came from
    overrides = {name: value for name, value in from_file.items() if name != "preset"} | env_weights() | given
    # A continued run has its settings in its own folder.
    config = Config() if resume is not None else build(preset or default or default_preset()[0], overrides)
    return Command(config, resume, bool(check), overrides, preset)


def train_parser() -> Parser:
    """The options of train.py: every setting by its dotted name, and the options that are not settings."""
    parser = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    short_of = {name: [f"--{short}"] for short, name in SHORT.items()}
    for name, field in fields().items():
        flag: dict[str, Any] = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
        parser.add_argument(f"--{name}", *short_of.get(name, []), dest=name, **flag)
    parser.add_argument("--config")
    parser.add_argument("--resume")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="version", version=f"one-shot-grpo {__version__}")
    return parser


def default_preset() -> tuple[str, str]:
    """The preset that fits this machine, and the reason. Imports torch only if there is a GPU device."""
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
    for field in fields().values():
        field.description = " ".join(str(field.description).split())  # without the line ends of the source
    tyro.cli(
        Config, args=["--help"], default=settings, prog="train.py", description=description, use_underscores=True,
        config=markers,
    )  # fmt: skip
    sys.exit(0)


# ---- the other commands


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError with one line, treats `-` and `_` alike, and expands ~."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False, **options)

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]  # argv is always passed
        try:
            "".join(argv).encode()
        except UnicodeEncodeError:
            raise UserError(f"the command line must be text in UTF-8; it is {' '.join(argv)!a}") from None
        options = {option.replace("_", "-"): option for option in self._option_string_actions}
        words = []
        for word in map(expand_home, argv):
            name, equals, value = word.partition("=")
            words.append(options.get(name.replace("_", "-"), name) + equals + expand_home(value))
        args, strange = self.parse_known_args(words)
        if strange and strange[0].startswith("--"):
            raise UserError(unknown("option", strange[0].partition("=")[0], options.values()))
        if strange:
            raise UserError(f"unexpected argument {strange[0]!r}")
        return args

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def check_ranges(args: argparse.Namespace, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raises UserError if a given option is outside its range."""
    for name, (least, most) in ranges.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:  # refuses NaN too
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be from {least} to {most}")
