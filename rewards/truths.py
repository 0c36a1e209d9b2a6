"""Finds ground truths that no answer can meet, before a run trains on them.

A ground truth is gradable if the usual answers would count: itself in a box, and its value without its unit. The
reasons are cached on disk for each version of the grader, so the same data are checked in seconds the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewards.equivalence.plain import alternatives, decide, written_out
from rewards.verifier import Verifier

CHUNK = 1000
"""Ground truths between two calls of `progress`"""


def check_ground_truths(
    truths: Sequence[Any],
    workers: int = 2,
    timeout_s: float = 5.0,
    progress: Callable[[int, int], object] | None = None,
) -> list[str | None]:
    """Returns for each ground truth None, or one line with the reason why no usual answer meets it.

    Each distinct text is read once, in workers, because some keep a parser busy for minutes.
    `progress(done, all)` is called on the way. Raises ValueError for what is neither text nor number.
    """
    rows = [alternatives(truth) for truth in truths]
    texts = dict.fromkeys(text for row in rows for text in row)
    hard = [text for text in texts if written_out(text) or decide("0", text) not in ("correct", "wrong")]
    reasons = _read_cache() if hard else {}
    unknown = [text for text in hard if text not in reasons]
    with contextlib.closing(Verifier(workers, timeout_s)) as verifier:
        for start in range(0, len(unknown), CHUNK):
            if progress:
                progress(start, len(unknown))
            chunk = unknown[start : start + CHUNK]
            reasons.update(zip(chunk, verifier.ask([(None, text) for text in chunk]), strict=True))
    if unknown:
        _write_cache({text: reason for text, reason in reasons.items() if reason != "timeout"})
    slow = f"not read within {timeout_s:g} s"
    lines = {
        text: f"ground truth {text[:200]!r} is unreadable: {slow if reason == 'timeout' else reason}"
        for text, reason in reasons.items()
        if reason
    }
    return [next((lines[text] for text in row if text in lines), None) for row in rows]


def rules_digest() -> str:
    """SHA-256 of the grader's version: of the source of equivalence/ and of the libraries that do its algebra."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("equivalence/*.[py]*")):
        digest.update(path.read_bytes())
    for library in ("sympy", "latex2sympy2_extended"):
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()


def _cache_path() -> Path:
    """A file for each version of the grader."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "one-shot-grpo" / f"truths-{rules_digest()[:16]}.json"


def _read_cache() -> dict[str, str]:
    """The cached reasons; a missing or damaged file only costs time."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        return json.loads(_cache_path().read_text(encoding="utf-8"))
    return {}


def _write_cache(reasons: dict[str, str]) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that is read-only
        path = _cache_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(reasons), encoding="utf-8")
