"""The exceptions that a person is meant to read: entry points print their line instead of a traceback."""

from __future__ import annotations

import functools
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import TextIO


class UserError(ValueError):
    """Bad input, exit code 2. The message is one line: the value, the limit, and what to do about it."""


class TrainingStopped(RuntimeError):
    """Going on would only waste time, exit code 1. The message is one line with the likely causes."""


class SamplerMismatch(TrainingStopped):
    """The sampler did not draw from the policy that is being trained."""


class NonFiniteLoss(TrainingStopped):
    """Too many optimiser steps in a row without a finite loss and gradient."""


def check_mismatch(mismatch: float, limit: float, of: str) -> None:
    """Raises SamplerMismatch where mean |sampler logprob - trainer logprob| is over the limit."""
    if not mismatch <= limit:  # a NaN is over every limit
        raise SamplerMismatch(
            f"mean |sampler logprob - trainer logprob| of {of} is {mismatch:.4f}, "
            f"over rollout.logprob_diff_limit {limit}: the sampler does not have the policy's weights. Likely causes: "
            "weights not synced after the last step, a weight that did not arrive (a tied lm_head, an adapter), a "
            "temperature not applied on one side, another model or precision"
        )


def answer_early(parse: Callable[[Sequence[str]], object], argv: Sequence[str]) -> None:
    """Prints the help, or the line about a wrong argument, and exits. Returns when the arguments are good.

    Entry points call it before they import torch and transformers, which takes seconds.
    """
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends as other programs do
    try:
        parse(argv)
    except (UserError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGPIPE, before)
    if sys.stderr.isatty():
        print("loading torch and transformers", file=sys.stderr, flush=True)
    sys.stdout, sys.stderr = Unbroken(sys.stdout), Unbroken(sys.stderr)


def one_line(main: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """`main`, but what a person is meant to read is printed as a line: exit code 2."""

    @functools.wraps(main)
    def answer(argv: Sequence[str]) -> int:
        try:
            return main(argv)
        except (UserError, OSError) as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 2

    return answer


class Unbroken:
    """A stream that never fails: where its reader has gone or its disk is full, the output is lost and not the run."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if not isinstance(error, BrokenPipeError):  # a reader that has gone wants to hear nothing
                print(f"what is printed is lost from here on: {error.strerror}", file=sys.__stderr__, flush=True)


def printable(text: str) -> str:
    """The text with everything that could steer a terminal spelled out: only newline and tab keep their effect.

    Covers control characters (escape sequences, carriage return), format characters (those that reverse the direction
    of writing), line separators, lone surrogates and private or unassigned code points.
    """
    return "".join(c if _harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _harmless(character: str) -> bool:
    return character in "\n\t" or (unicodedata.category(character)[0] != "C" and character not in "\u2028\u2029")
