"""Where data sets come from, and the built-in tasks and model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps


def command(main: Callable[..., None]) -> Callable[..., int]:
    """`main` as a command: what it cannot do is one line and exit code 2, anything else is 0."""

    @wraps(main)
    def answered(argv: list[str] | None = None) -> int:
        try:
            main(argv)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    return answered
