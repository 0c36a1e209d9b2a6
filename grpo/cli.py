"""The command line as settings. Nothing here imports torch at the start: help and mistakes are answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo.errors import UserError
from grpo.settings import Config, build, env_weights, fields, flat, preset_names, read_settings, typed, unknown

SHORT = {"policy.quant": "--quant", "eval.every": "--eval_every", "bad_rows.limit": "--bad_rows"}
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, NVIDIA under WSL, AMD


class Command(NamedTuple):
    """What the command line asked for, beside the settings."""

    config: Config
    resume: str | None
    check: bool
    overrides: dict[str, Any]
    preset: str | None = None
    """As typed; the settings of a run that is continued are compared with it."""


def parse_args(argv: Sequence[str], otherwise: str | None = None) -> Command:
    """Preset, file, environment and command line, each laid on the one before, as a checked Config.

    `--data-dir` and `--data_dir` are the same option; --help prints and exits. `otherwise` is the preset where none is
    named (None: what fits this machine).
    """
    given = vars(read_options(parser(), argv))
    resume, check, preset, file = (given.pop(name, None) for name in ("resume", "check", "preset", "config"))
    if given.pop("help", False):
        print(parser(preset or otherwise or default_preset()[0]).format_help(), end="", flush=True)
        raise SystemExit(0)
    own = read_settings(file) if file is not None else {}
    named = own.pop("preset", None)  # the settings of a run name the preset that they came from
    preset, given = preset or named, own | env_weights() | given
    # A run that is continued has its settings in its own folder.
    config = Config() if resume is not None else build(preset or otherwise or default_preset()[0], given)
    return Command(config, resume, bool(check), given, preset)


def default_preset() -> tuple[str, str]:
    """What fits this machine when no preset is named, and why. torch is asked only where there is a GPU's device."""
    if any(map(Path.exists, map(Path, GPU_DEVICES))):
        import torch

        if torch.cuda.is_available():
            card = torch.cuda.get_device_properties(0)
            return ("h100" if card.total_memory > 60e9 else "l4"), f"because this machine has a {card.name}"
    return "cpu", "because this machine has no GPU that torch can use"


def parser(preset: str | None = None) -> argparse.ArgumentParser:
    """The options, from the fields' docstrings, with the values of a preset where one is named."""
    values = flat(build(preset, {}))
    shown = f"the values of --preset {preset}; --preset NAME --help shows another's" if preset else "the defaults"
    cli = argparse.ArgumentParser(
        prog="train.py",
        usage="train.py [--preset NAME] [--config FILE.yaml] [--resume RUN] [--check] [--SETTING VALUE ...]",
        description=f"GRPO on one GPU, or on a CPU with the built-in tiny model. In [brackets]: {shown}.",
        epilog="python train.py --preset cpu | --preset l4 | --preset h100",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        add_help=False,  # printed by parse_args, which knows the preset
    )
    cli.add_argument("-h", "--help", action="store_true", help="this text")
    cli.add_argument("--preset", help=f"{', '.join(preset_names())}. Without it: what fits the machine")
    cli.add_argument("--config", metavar="FILE.yaml", help="settings of one's own, on top of the preset")
    cli.add_argument("--resume", help="continue the run in this folder, or the newest one: auto")
    cli.add_argument("--check", action="store_true", help="load nothing big; print what would run and what is wrong")
    groups: dict[str, Any] = {}
    for name, field in fields().items():
        if name == "preset":
            continue
        section, _, leaf = name.rpartition(".")
        group = groups.setdefault(section, cli.add_argument_group(section or "run"))
        text = f"{field.description} [{typed(values[name])}]".replace("%", "%%").replace("\n", " ")
        flag = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
        names = [f"--{name}", *filter(None, [SHORT.get(name)])]
        group.add_argument(*names, dest=name, metavar=leaf.upper(), help=text, **flag)
    return cli


def read_options(cli: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The options, however they are spelled: --data_dir is --data-dir. UserError for a wrong or unknown one."""
    cli.error = _raise  # argparse itself would print its usage and exit
    options = {_underscores(option): option for action in cli._actions for option in action.option_strings}
    words = [word.partition("=") if word.startswith("--") else (word, "", "") for word in argv]
    namespace, strange = cli.parse_known_args(
        [options.get(_underscores(name), _underscores(name)) + equals + value for name, equals, value in words]
    )
    if strange:
        raise UserError(unknown("option", strange[0].partition("=")[0], options.values()))
    return namespace


def check_ranges(args: argparse.Namespace, ranges: Mapping[str, tuple[float, float]]) -> None:
    """UserError where an option that was given is outside its range."""
    for name, (least, most) in ranges.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:  # nan is not, either
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be from {least} to {most}")


def _underscores(word: str) -> str:
    """--learner.token-budget -> --learner.microbatch_tokens; what is no option stays."""
    return "--" + word[2:].replace("-", "_") if word.startswith("--") else word


def _raise(message: str) -> None:
    raise UserError(message)
