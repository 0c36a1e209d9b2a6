"""The documentation is run: examples as doctests, links and names against what exists."""

from __future__ import annotations

import doctest
import fnmatch
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
ids = [str(page.relative_to(REPO)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_examples_in_the_pages_give_what_they_say(page: Path):
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("module", ["grpo.advantage", "grpo.loss"])
def test_examples_in_docstrings(module: str):
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0
    assert result.attempted > 0


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.replace("\\", "").partition("#")
            found = page.parent / path if path else page
            assert found.exists(), f"{page.name} links to {target}"
            if anchor.startswith("L"):
                assert int(anchor[1:].partition("-")[0]) <= len(found.read_text().splitlines())


def test_links_to_lines_name_what_stands_there():
    """[`name`](file#L12): line 12 is where the name is defined."""
    for page in PAGES:
        for name, target, line in re.findall(r"\[`([\w.]+)`\]\(([^)#\s]+)#L(\d+)\)", page.read_text()):
            lines = (page.parent / target).read_text().splitlines()
            last = name.rpartition(".")[2]
            places = [i for i, text in enumerate(lines, 1) if re.match(rf"\s*(def|class) {last}\b", text)]
            assert int(line) in places, f"{page.name}: {name} is at {target} line {places}, not {line}"


def config_names() -> set[str]:
    from grpo.config import fields

    return set(fields())


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_settings_named_in_the_pages_exist(page: Path):
    sections = {name.partition(".")[0] for name in config_names() if "." in name}
    for name in re.findall(r"`(?:--)?([a-z_]+\.[a-z_0-9]+)\b[^`]*`", page.read_text()):
        if name.partition(".")[0] in sections and not name.endswith((".py", ".md", ".yaml")):
            assert name in config_names(), f"{page.name} names the setting {name}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_metrics_named_in_the_pages_exist(page: Path):
    """In metrics.md, that is, which test_run.py compares with what a run writes. `outcome/*` names several."""
    known = re.findall(r"^\| `([a-z_]+/[a-z_]+)` \|", (REPO / "docs" / "metrics.md").read_text(), re.MULTILINE)
    sections = "|".join({name.partition("/")[0] for name in known})
    for name in re.findall(rf"`((?:{sections})/[a-z_*]+)`", page.read_text()):
        assert fnmatch.filter(known, name), f"{page.name} names the metric {name}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_named_in_the_pages_exist(page: Path):
    """Every `make X`, `python X.py` and `python -m X`, and every option given to train.py and eval.py."""
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(
        re.findall(r"`([^`\n]+)`", text) + re.findall(r"```(?:bash|sh|console)?\n(.*?)```", text, re.DOTALL)
    )
    for target in re.findall(r"\bmake ([a-z-]+)", code):
        assert target in targets, f"{page.name}: make {target}"
    for script in re.findall(r"python ((?:\w+/)*\w+\.py)", code):
        assert (REPO / script).exists(), f"{page.name}: {script}"
    for module in re.findall(r"python -m ((?:grpo|data|rewards|benchmarks)[\w.]*)", code):
        path = REPO / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{page.name}: python -m {module}"


def options(script: str) -> set[str]:
    shown = subprocess.run([sys.executable, REPO / script, "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(--[\w.-]+)", shown))


def test_options_named_in_the_pages_exist():
    known = {script: {o.replace("-", "_") for o in options(script)} for script in ("train.py", "eval.py")}
    for page in PAGES:
        for script, rest in re.findall(r"(train\.py|eval\.py)((?: [^\s`|&]+)+)", page.read_text()):
            for option in re.findall(r" (--[\w.-]+)", rest):
                assert option.replace("-", "_") in known[script], f"{page.name}: {script} {option}"
