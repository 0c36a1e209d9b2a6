"""Work of a command before it imports torch and transformers, which takes seconds."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence


def answer_early(module: str, parse: Callable[[Sequence[str]], object] | None = None) -> None:
    """Prints the help or the error for a wrong argument and exits. Returns if the arguments are valid.

    Does nothing unless `module`, the caller's __name__, is the command itself. `parse` is train.py's unless given.
    """
    if module != "__main__":
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until a run handles it, Ctrl-C ends the process without a traceback
    # A torch thread that waits for the others keeps its core busy for some 50 us, then sleeps. Without this limit, two
    # threads beside another busy program took up to ten times as long as one.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    from grpo.errors import one_line

    if parse is None:
        from grpo.cli import parse_args

        parse = parse_args

    @one_line(OSError)
    def parsed(argv: Sequence[str]) -> int:
        parse(argv)
        if sys.stderr.isatty():
            print("loading torch and transformers", file=sys.stderr, flush=True)
        return 0

    if code := parsed(sys.argv[1:]):
        sys.exit(code)
