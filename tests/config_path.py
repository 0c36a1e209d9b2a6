"""Counts where the settings go before the first step: python tests/config_path.py [options of train.py]

A stay is a run of consecutive calls in one module that receive the `Config`, as an argument. A climb is a stay in a
module that stands above the one before it: it imports that module, directly or through others.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import FrameType

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
RUN = ["--preset", "cpu", "--steps", "1", "--quiet", "true", "--eval.limit", "2", "--rollout.prompts_per_step", "2"]


class FirstStep(Exception):
    """Ends the run when the first step draws its problems."""


def visits(argv: list[str]) -> list[tuple[str, str]]:
    """(module, function) of every call that receives a Config, in order, from `train()` to the first step."""
    import train
    from grpo.rollout import draw
    from grpo.settings import Config

    calls: list[tuple[str, str]] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(REPO)):
            return
        if code is draw.__code__:
            sys.setprofile(None)
            raise FirstStep
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(isinstance(frame.f_locals.get(name), Config) for name in arguments):
            calls.append((str(Path(code.co_filename).relative_to(REPO)), code.co_name))

    config = train.parse_args(argv).config
    sys.setprofile(profile)
    try:
        train.train(config)
    except FirstStep:
        return calls
    raise RuntimeError("the run ended without a first step")


@cache
def imported(module: str) -> frozenset[str]:
    """The modules of this repository that the module imports itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((REPO / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            paths = [name.replace(".", "/") for name in names]
            found |= {f"{path}.py" for path in paths if (REPO / f"{path}.py").is_file()}
            found |= {f"{path}/__init__.py" for path in paths if (REPO / path / "__init__.py").is_file()}
    return frozenset(found)


@cache
def below(module: str) -> frozenset[str]:
    """All modules that it imports, directly or through others."""
    found, new = set(), {module}
    while new:
        found |= new
        new = set().union(*map(imported, new)) - found
    return frozenset(found - {module})


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        calls = visits([*RUN, "--out", folder, *sys.argv[1:]])
    stays = [call for before, call in pairwise([("", ""), *calls]) if before[0] != call[0]]
    climbs = [(low, high) for low, high in pairwise(stays) if low[0] in below(high[0])]
    for module, function in stays:
        print(f"{module:32} {function}")
    rooms = len({module for module, _ in stays})
    print(f"{len(calls)} calls, {len(stays)} stays in {rooms} modules, {len(climbs)} climbs")


if __name__ == "__main__":
    main()
