"""Imports run one way: entry points -> grpo -> rewards, prompts, data; optional packages only where they belong."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
OURS = ("grpo", "rewards", "prompts", "data", "train", "eval", "minimal", "course", "tools", "tests", "benchmarks")


@cache
def imports(path: Path) -> dict[str, bool]:
    """Module -> whether it is imported when the file is (not inside a function or under TYPE_CHECKING)."""
    found: dict[str, bool] = {}

    def visit(node: ast.AST, eager: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update({alias.name: eager or found.get(alias.name, False) for alias in child.names})
            elif isinstance(child, ast.ImportFrom) and child.module:
                names = [child.module, *(f"{child.module}.{alias.name}" for alias in child.names)]
                found.update({name: eager or found.get(name, False) for name in names})
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            )
            visit(child, eager and not lazy)

    visit(ast.parse(path.read_text()), True)
    return found


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPO / folder).rglob("*.py"))


def tops(path: Path, eager_only: bool = False) -> set[str]:
    return {name.partition(".")[0] for name, eager in imports(path).items() if eager or not eager_only}


@pytest.mark.parametrize("path", files("rewards", "prompts", "data"), ids=lambda p: str(p.relative_to(REPO)))
def test_the_lower_floor_imports_nothing_of_the_trainer(path: Path):
    own = path.relative_to(REPO).parts[0]
    assert not tops(path) & set(OURS) - {own}, "rewards, prompts and data stand on their own"
    if own == "rewards" and path.stem != "hybrid":
        assert not tops(path) & {"torch", "transformers"}


@pytest.mark.parametrize("path", files("grpo"), ids=lambda p: str(p.relative_to(REPO)))
def test_the_trainer_imports_no_entry_point(path: Path):
    assert not tops(path) & {"train", "eval", "minimal", "course", "tools", "tests", "benchmarks"}


ROOMS = sorted(path.name for path in (REPO / "grpo").iterdir() if path.is_dir() and path.name != "engines")
ALGORITHM = [path for path in files("grpo") if path.relative_to(REPO / "grpo").parts[0] not in ROOMS]


@pytest.mark.parametrize("path", ALGORITHM, ids=lambda p: str(p.relative_to(REPO)))
def test_the_algorithm_imports_no_room(path: Path):
    """grpo/*.py and grpo/engines/ are the algorithm. The other folders of grpo/ use it, and it knows none of them."""
    rooms = {name for name in imports(path) if name.startswith("grpo.") and name.split(".")[1] in ROOMS}
    assert not rooms, f"{path.name} imports {sorted(rooms)}: hand in what it needs as an argument or a callback"


@pytest.mark.parametrize("path", files("grpo/plan"), ids=lambda p: p.name)
def test_the_plan_knows_no_evaluation_and_no_report(path: Path):
    assert not {name for name in imports(path) if name.startswith(("grpo.evaluation", "grpo.report"))}


GROUND_FLOOR = ("grpo.types", "grpo.packing", "grpo.settings", "grpo.errors", "grpo.loss")


@pytest.mark.parametrize("name", ["types", "settings", "loss", "advantage", "optim", "packing", "logprob", "metrics"])
def test_the_maths_stands_on_the_ground_floor(name: str):
    """It imports what flows (types.py, packing.py's Batch), what can be set (settings.py), errors, and itself."""
    ours = {module for module in imports(REPO / "grpo" / f"{name}.py") if module.partition(".")[0] == "grpo"}
    assert all(module.startswith(GROUND_FLOOR) for module in ours)


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("vllm", {"grpo/engines/vllm_engine.py"}),
        ("wandb", {"grpo/run/trackers.py"}),
        ("trackio", {"grpo/run/trackers.py"}),
    ],
)
def test_optional_packages_are_imported_in_one_place_and_late(package: str, allowed: set[str]):
    for path in [*files("grpo", "rewards", "prompts", "data"), REPO / "train.py", REPO / "eval.py"]:
        if str(path.relative_to(REPO)) not in allowed:
            assert package not in tops(path), path
        assert package not in tops(path, eager_only=True), path
