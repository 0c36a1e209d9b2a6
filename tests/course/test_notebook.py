"""The notebook is minimal.py cell by cell, with outputs, and runs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest
from tiny_model import REPO

NOTEBOOK = REPO / "course" / "notebook" / "grpo_in_30_minutes.ipynb"


def code_cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def sources(text: str) -> dict[str, str]:
    return {n.name: ast.get_source_segment(text, n) for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)}


def test_its_functions_are_those_of_minimal():
    minimal = (REPO / "minimal.py").read_text()
    ours = sources("\n".join("".join(cell["source"]) for cell in code_cells()))
    assert ours.pop("careful")
    assert ours == {name: source for name, source in sources(minimal).items() if name != "main"}
    settings = minimal[minimal.index("import re\n") : minimal.index("\n\n\ndef ")]
    assert any("".join(cell["source"]).startswith(settings) for cell in code_cells())


def test_its_outputs_are_kept_and_real():
    cells = code_cells()
    assert all(cell["execution_count"] for cell in cells)
    printed = "".join(line for cell in cells for output in cell["outputs"] for line in output.get("text", ()))
    assert "greedy: " in printed.splitlines()[-1]
    sampled = printed.splitlines()[-2]  # "sampled: 27.3% before, 59.7% after"
    before, after = (float(word.rstrip("%")) for word in sampled.split() if word.endswith("%"))
    assert after > before + 20
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds == {"stream", "display_data"}  # no error
    assert str(REPO) not in NOTEBOOK.read_text()


def test_it_is_what_make_writes_and_runs(monkeypatch: pytest.MonkeyPatch):
    """With 2 steps instead of 60: all 60 take a minute."""
    pytest.importorskip("nbclient", reason="pip install -r requirements/dev.txt")
    pytest.importorskip("ipykernel", reason="pip install -r requirements/dev.txt")
    monkeypatch.syspath_prepend(str(REPO / "course" / "notebook"))
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    import make

    book = make.build()
    assert ["".join(cell["source"]) for cell in code_cells()] == [c.source for c in book.cells if c.cell_type == "code"]
    for cell in book.cells:
        cell.source = cell.source.replace("STEPS, LEARNING_RATE, EPS = 60", "STEPS, LEARNING_RATE, EPS = 2")
        cell.source = cell.source.replace("(300, 2)", "(20, 2)")
    make.execute(book)
    assert "2 steps in" in "".join(
        o.text for c in book.cells if c.cell_type == "code" for o in c.outputs if "text" in o
    )


def test_its_first_cell_clones_the_repository_on_a_hosted_machine(tmp_path):
    """An empty folder and the address of a repository: afterwards the process stands in a clone with minimal.py."""
    first = "".join(code_cells()[0]["source"])
    environment = os.environ | {"GRPO_REPOSITORY": REPO.as_uri()}
    command = [sys.executable, "-c", f"{first}\nimport minimal\nprint(minimal.__file__)"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "one-shot-grpo" / "minimal.py"), done.stderr
    environment.pop("GRPO_REPOSITORY")
    done = subprocess.run(command, cwd=tmp_path.parent, env=environment, capture_output=True, text=True)
    assert "set REPOSITORY to its address" in done.stderr
