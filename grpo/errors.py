"""Exceptions that end a command with one line, and the decorator that prints it."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Sequence

from grpo.terminal import escape_control, print_above, tolerant_output
from rewards import RewardError

OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


class UserError(ValueError):
    """Bad input, exit code 2. The message is one line: the value, the limit and the fix."""


class EndlessTemplate(RuntimeError):
    """A chat template that takes too long, exit code 2.

    Not a ValueError: that would skip row after row, and each would fail.
    """


class TrainingStopped(RuntimeError):
    """Continuing would waste time, exit code 1. The message is one line with the likely causes."""


class SamplerMismatch(TrainingStopped):
    """The sampler did not draw from the policy that is being trained."""


class NonFiniteLoss(TrainingStopped):
    """Too many optimiser steps in a row without a finite loss and gradient."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. `code` is the exit status for it: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def first_line(error: Exception) -> str:
    """The first line of the message, or the exception's type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: Exception) -> bool:
    """True for the exceptions by which Python and torch report that they are out of memory, on a CPU or a GPU."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def one_line(*further: type[Exception]) -> Callable:
    """Decorates `main(argv) -> exit code`: user errors, the `further` exceptions and interruptions become one line.

    Every other exception is a bug and keeps its traceback. A closed or full output stream does not end the command.
    """

    user_errors: tuple[type[Exception], ...] = (UserError, EndlessTemplate, RewardError, *further)

    def decorate(main: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
        @functools.wraps(main)
        def command(argv: Sequence[str]) -> int:
            with tolerant_output():
                try:
                    return main(argv)
                except user_errors as error:
                    return _tell(f"error: {error}", 2)
                except TrainingStopped as error:
                    return _tell(f"stopped: {error}", 1)
                except KeyboardInterrupt as interruption:
                    return _tell(f"ended by {str(interruption) or 'SIGINT'}", getattr(interruption, "code", 130))

        return command

    return decorate


def _tell(line: str, code: int) -> int:
    print_above(escape_control(line))
    return code
