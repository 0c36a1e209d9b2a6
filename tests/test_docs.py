"""The documentation is run: examples as doctests, links and names against what exists."""

from __future__ import annotations

import ast
import doctest
import fnmatch
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PAGES = [
    *map(REPO.joinpath, ("README.md", "CONTRIBUTING.md", "course/syllabus.md")),
    *sorted((REPO / "docs").glob("*.md")),
]
LINKING = [*PAGES, *sorted((REPO / "docs" / "measurements").glob("*.md"))]
ids = [str(page.relative_to(REPO)) for page in PAGES]


FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def commands(page: Path) -> str:
    """Commands of the page: shell blocks and `code` in the text."""
    blocks = [block for language, block in FENCE.findall(page.read_text()) if language in ("", "bash", "sh", "console")]
    return "\n".join(re.findall(r"`([^`\n]+)`", prose(page)) + blocks)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch):
    """The examples load data/tiny-base."""
    monkeypatch.chdir(REPO)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_examples_in_the_pages_give_what_they_say(page: Path):
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("module", ["grpo.advantage", "grpo.loss", "grpo.problems"])
def test_examples_in_docstrings(module: str):
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0
    assert result.attempted > 0


def test_every_question_has_an_example():
    questions = (REPO / "docs" / "grpo.md").read_text().partition("## Questions")[2].split("### ")[1:]
    assert len(questions) == 10
    assert all(">>> " in question for question in questions)


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=[str(page.relative_to(REPO)) for page in LINKING])
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.replace("\\", "").partition("#")
            found = page.parent / path if path else page
            assert found.exists(), f"{page.name} links to {target}"
            if anchor:
                assert found.suffix == ".md", f"{page.name}: {target} names a line, which the next change moves"
                assert anchor in anchors(found), f"{page.name} links to {target}"


def names_defined(path: Path) -> set[str]:
    """Functions, classes and `Class.method`s of a Python file."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
            names |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_that_name_a_function_lead_to_its_file(page: Path):
    """[`name`](file.py): the file defines the name."""
    for name, target in re.findall(r"\[`([\w.]+)`\]\(([^)\s]+\.py)\)", page.read_text()):
        if not name.endswith(".py"):
            assert name in names_defined(page.parent / target), f"{page.name}: {target} does not define {name}"


def config_names() -> set[str]:
    from grpo.settings import fields

    return set(fields())


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_settings_named_in_the_pages_exist(page: Path):
    sections = {name.partition(".")[0] for name in config_names() if "." in name}
    for name in re.findall(r"`(?:--)?([a-z_]+(?:\.[a-z_0-9]+)+)\b[^`]*`", page.read_text()):
        if name.partition(".")[0] in sections and not name.endswith((".py", ".md", ".yaml", ".jsonl")):
            assert name in config_names(), f"{page.name} names the setting {name}"


def test_the_page_lists_the_settings_that_may_change_on_resume():
    from grpo.run import resume

    page = (REPO / "docs" / "reliability.md").read_text()
    section = page.partition("## Settings that may change on resume")[2].partition("\n## ")[0]
    groups = [set(re.findall(r"`([\w.]+)`", row)) for row in re.findall(r"^\|.*", section, re.MULTILINE)[2:]]
    assert groups[:-1] == [resume.WHERE, resume.HOW_LONG, resume.LIMITS, resume.HOW_FAST, resume.ROUNDING]
    assert set().union(*groups) == resume.FREE


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
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    code = commands(page)
    for target in re.findall(r"\bmake ([a-z-]+)", code):
        assert target in targets, f"{page.name}: make {target}"
    for script in re.findall(r"python ((?:\w+/)*\w+\.py)", code):
        assert (REPO / script).exists(), f"{page.name}: {script}"
    for module in re.findall(r"python -m ((?:grpo|data|rewards|benchmarks|tools|course)[\w.]*)", code):
        path = REPO / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{page.name}: python -m {module}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_shell_blocks_can_be_read_by_a_shell(page: Path):
    for language, block in FENCE.findall(page.read_text()):
        if language in ("bash", "sh"):
            checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
            assert checked.returncode == 0, f"{page.name}: {checked.stderr}\n{block}"


def options(script: str) -> set[str]:
    shown = subprocess.run([sys.executable, REPO / script, "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(--[\w.-]+)", shown))


def test_options_named_in_the_pages_exist():
    known = {script: {o.replace("-", "_") for o in options(script)} for script in ("train.py", "eval.py")}
    for page in PAGES:
        for script, rest in re.findall(r"(train\.py|eval\.py)((?: [^\s`|&]+)+)", page.read_text()):
            for option in re.findall(r" (--[\w.-]+)", rest):
                assert option.replace("-", "_") in known[script], f"{page.name}: {script} {option}"


def test_options_of_other_commands_exist():
    """`python -m MODULE --option`, `python benchmarks/X.py --option`: it is in the module's text, or is train.py's."""
    ours, command = options("train.py"), re.compile(r"python (?:-m ([\w.]+)|(benchmarks/\w+\.py))([^`|&\n#]*)")
    for page in PAGES:
        for module, file, rest in command.findall(commands(page)):
            path = REPO / (file or module.replace(".", "/"))
            sources = [path.with_suffix(".py"), *path.glob("*.py")]
            text = "".join(source.read_text() for source in sources if source.exists())
            for option in re.findall(r" (--[\w.-]+)", rest):
                field = f"    {option[2:].replace('-', '_')}: "  # of a dataclass that tyro reads
                assert f'"{option}"' in text or field in text or option in ours, (
                    f"{page.name}: {module or file} {option}"
                )
