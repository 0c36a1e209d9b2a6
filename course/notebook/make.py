"""Writes grpo_in_30_minutes.ipynb from lesson.md, runs it, and keeps its outputs: python course/notebook/make.py

A line `@name` in a block of lesson.md stands for that function of minimal.py, so that the notebook and the file cannot
say different things. Needs nbclient and ipykernel (requirements/dev.txt).
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
NOTEBOOK = FOLDER / "grpo_in_30_minutes.ipynb"


def functions() -> dict[str, str]:
    """Name -> source of the functions of minimal.py; `settings` is what stands above the first one."""
    source = (FOLDER.parents[1] / "minimal.py").read_text()
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    settings = source[source.index("import re\n") : source.index("\n\n\ndef ")]
    return {"settings": settings} | {node.name: ast.get_source_segment(source, node) or "" for node in nodes}


def build() -> nbformat.NotebookNode:
    """The notebook without outputs."""
    known = functions()
    cells = []
    for i, part in enumerate(re.split(r"^```", (FOLDER / "lesson.md").read_text(), flags=re.MULTILINE)):
        if not part.strip():
            continue
        if part.startswith("python\n"):
            # Two blank lines behind a function, as ruff formats it.
            source = re.sub(r"^@(\w+)\n\n?", lambda m: known[m[1]] + "\n\n\n", part[7:], flags=re.MULTILINE)
            cell = nbformat.v4.new_code_cell(source.strip())
        else:
            cell = nbformat.v4.new_markdown_cell(re.sub(r"(?<!\n)\n(?![\n-])", " ", part.strip()))
        cell["id"] = f"cell-{i:02d}"  # nbformat's are random
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs every cell. What is kept is what was printed and drawn: no progress bars and no times of day."""
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            printed = "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout")
            cell.outputs = [output for output in cell.outputs if output.output_type == "display_data"]
            if printed:
                cell.outputs.insert(0, nbformat.v4.new_output("stream", name="stdout", text=printed))


if __name__ == "__main__":
    book = build()
    execute(book)
    nbformat.write(book, NOTEBOOK)
    print(NOTEBOOK)
