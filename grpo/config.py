"""How the settings of a run come about: defaults, a preset that holds only what differs, overrides on top.

configs/cpu.yaml, a file of the user's own and the command line are laid on the defaults in that order; the whole is
checked and frozen. Whatever is wrong is one UserError line that names the nearest valid word.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable, Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from grpo.errors import UserError
from grpo.settings import Config
from rewards import weights_from_env

PRESETS = Path(__file__).resolve().parent.parent / "configs"
RENAMED = {
    "gap_limit": "rollout.mismatch_limit",
    "skip_zero_spread": "learner.skip_zero_variance",
    "updates_per_rollout": "learner.minibatches_per_rollout",
    "wandb": "tracker",
}
"""A setting's old name, without its section -> what it is called now."""

MODES = {
    "ultra-quick": {"steps": 1, "rollout.problems": 4, "rollout.group": 4, "eval.limit": 16},
    "quick": {"steps": 15, "rollout.problems": 8, "rollout.group": 8, "eval.limit": 32},
    "dry-run": {"steps": 58, "rollout.problems": 16, "rollout.group": 8, "eval.limit": 128},
    "full": {},
}
"""What a mode leaves of a preset, at most."""


# ---- layers


def build(preset: str | None, overrides: dict[str, Any]) -> Config:
    """The preset's file, as much of it as the mode leaves, and the overrides on top; checked."""
    config = parse(_preset(preset)) if preset is not None else Config()
    values = flat(config)
    limits = MODES.get(overrides.get("mode", config.mode), {})  # of a mode that does not exist the check will tell
    return changed(config, {name: min(limit, values[name] or limit) for name, limit in limits.items()} | overrides)


def changed(config: Config, overrides: dict[str, Any]) -> Config:
    """The same settings but for these (dotted name -> value, or the text of it), checked again."""
    return parse(flat(config) | overrides)


def env_weights() -> dict[str, float]:
    """REWARD_WEIGHTS as dotted settings; empty where it is not set."""
    if "REWARD_WEIGHTS" not in os.environ:
        return {}
    try:
        return dict(zip(("reward.alpha", "reward.beta", "reward.gamma"), weights_from_env(), strict=True))
    except ValueError as error:
        raise UserError(str(error)) from None


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _preset(name: str) -> dict[str, Any]:
    names = preset_names()
    if name not in names:
        raise UserError(f"unknown preset {name!r}; there are {', '.join(names)}{nearest(name, names)}")
    settings = read_settings(PRESETS / f"{name}.yaml")
    for key in ("model", "data", "eval.data", "eval.test"):
        built_in = PRESETS.parent / settings.get(key, "")  # seen from where the run is started
        if key in settings and built_in.exists() and not Path(settings[key]).exists():
            settings[key] = str(built_in)
    return settings | {"preset": name}


# ---- files


def read_settings(path: str | Path) -> dict[str, Any]:
    """Dotted name -> value of a YAML file; UserError where it holds no settings or one that does not exist."""
    settings, known = dotted(read_yaml(path)), fields()
    if strange := [name for name in settings if name not in known]:
        raise UserError(f"{path}: {unknown('setting', strange[0], known)}")
    return settings


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of named values; UserError with one line for anything else. A byte order mark is read over."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a ValueError: not UTF-8, or no date
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"{path} holds no settings; write them as in configs/cpu.yaml, one a line: steps: 60")
    return tree


# ---- one tree, and the dotted names of its leaves


def parse(settings: dict[str, Any]) -> Config:
    """A checked Config from settings in sections or with dotted names. Raises UserError with one line."""
    tree: dict[str, Any] = {}
    known = fields()
    for name, value in dotted(settings).items():
        if name not in known:
            raise UserError(unknown("setting", name, known))
        if value in ("none", None) and known[name].default in (None, ()):
            value = known[name].default
        section, _, leaf = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = value
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_one_line(error)) from None
    if conflict := next(conflicts(config), None):
        raise UserError(conflict)
    return config


def conflicts(config: Config) -> Iterator[str]:
    """A line for each pair of settings that are good by themselves and exclude each other."""
    r, o, p = config.rollout, config.learner, config.policy
    if r.top_p != 1 or r.top_k != 0:
        yield f"rollout.top_p is {r.top_p}, rollout.top_k {r.top_k}: leave them at 1 and 0; the loss assumes that"
    if r.problems % o.minibatches_per_rollout:
        parts = f"learner.minibatches_per_rollout {o.minibatches_per_rollout}"
        yield f"rollout.problems {r.problems} does not divide into {parts} equal parts; change one of them"
    if p.quant != "none" and p.lora_rank == 0:
        yield f"policy.quant is {p.quant}, but 4-bit weights have no gradient; set policy.lora_rank 64 or quant none"
    if o.skip_zero_variance and (o.kl_coef or o.entropy_coef):
        terms = f"kl_coef {o.kl_coef} and entropy_coef {o.entropy_coef}"
        yield f"learner.skip_zero_variance drops groups that {terms} act on; set both to 0 or do not skip"
    if config.eval.every and not config.eval.data:
        yield f"eval.every is {config.eval.every} but eval.data names no file"


def dotted(settings: dict[str, Any]) -> dict[str, Any]:
    """{"learner": {"lr": 1}} -> {"learner.lr": 1}"""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            leaves |= {f"{key}.{leaf}": one for leaf, one in value.items()}
        else:
            leaves[str(key)] = value
    return leaves


@cache
def fields() -> dict[str, FieldInfo]:
    """Dotted name -> pydantic field, for every leaf."""
    return dotted(
        {
            name: getattr(field.annotation, "model_fields", field)  # a section has fields of its own
            for name, field in Config.model_fields.items()
        }
    )


def flat(config: Config) -> dict[str, Any]:
    """Dotted name -> value, for every leaf."""
    return {name: attrgetter(name)(config) for name in fields()}


def short(config: Config) -> str:
    """One line: the preset and whatever differs from it, as it would be typed."""
    plain = flat(Config() if config.preset == "none" else parse(_preset(config.preset)))
    words = [f"--{name} {typed(value)}" for name, value in flat(config).items() if value != plain[name]]
    return " ".join([f"--preset {config.preset}", *words])


def typed(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# ---- what is wrong, in one line


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """The line for a name that does not exist: its new name where it had another, else the nearest that does."""
    dashes, leaf = "--" * word.startswith("--"), word.lstrip("-").rpartition(".")[2]
    if leaf in RENAMED:
        return f"{word} is now called {dashes}{RENAMED[leaf]}; use that name"
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]  # --lr: --learner.lr
    return f"unknown {kind} {word}{nearest(word, same_leaf, cutoff=0) or nearest(word, known)}"


def nearest(word: str, words: Iterable[str], cutoff: float = 0.4) -> str:
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    message = f"{name} is {reprlib.repr(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] == "literal_error":
        message += nearest(str(first["input"]), get_args(fields()[name].annotation))
    return message
