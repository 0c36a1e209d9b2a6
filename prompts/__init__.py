"""System messages, one text file each. An empty file means no system message."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


def load(name: str) -> str:
    """The system message called `name`, or the text of the file at that path. ValueError if there is neither."""
    path = FOLDER / f"{name}.txt" if name in NAMES else Path(name)
    if not path.is_file():
        raise ValueError(f"no prompt called {name!r}; there are {', '.join(NAMES)}, or give the path of a text file")
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(f"the prompt {path} is not UTF-8 text; save it as UTF-8") from None
