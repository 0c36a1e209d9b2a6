"""The exceptions that a person is meant to read: entry points print their line instead of a traceback."""

from __future__ import annotations

import signal
import sys
import unicodedata
from collections.abc import Callable, Sequence


class UserError(ValueError):
    """Bad input, exit code 2. The message is one line: the value, the limit, and what to do about it."""


class TrainingStopped(RuntimeError):
    """Going on would only waste time, exit code 1. The message is one line with the likely causes."""


class SamplerMismatch(TrainingStopped):
    """The sampler did not draw from the policy that is being trained."""


class NonFiniteLoss(TrainingStopped):
    """Too many optimiser steps in a row without a finite loss and gradient."""


def answer_early(parse: Callable[[Sequence[str]], object], argv: Sequence[str]) -> None:
    """Prints the help, or the line about a wrong argument, and exits. Returns when the arguments are good.

    Entry points call it before they import torch and transformers, which takes seconds. From here until they handle
    signals themselves, Ctrl-C ends the process without a traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends as other programs do
    try:
        parse(argv)
    except (UserError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGPIPE, before)


def printable(text: str) -> str:
    """The text with everything that could steer a terminal spelled out: only newline and tab keep their effect.

    Covers control characters (escape sequences, carriage return), format characters (those that reverse the direction
    of writing), line separators, lone surrogates and private or unassigned code points.
    """
    return "".join(character if _harmless(character) else _spelled(character) for character in text)


def _harmless(character: str) -> bool:
    return character in "\n\t" or (unicodedata.category(character)[0] != "C" and character not in "\u2028\u2029")


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
