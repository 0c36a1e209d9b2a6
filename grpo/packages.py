"""Which optional packages are there, without importing them."""

from __future__ import annotations

import importlib.util


def installed(package: str) -> bool:
    """Whether importing it would find a package; some folder that happens to have its name is none."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
