"""Printing for every command: messages, text that cannot steer a terminal, streams whose failure ends nothing."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

# At import, on processors with AVX-512 BF16, it reports a package as missing that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def notify(message: str) -> None:
    """Prints a message to stderr above the progress bar, wrapped between words to the terminal's width."""
    lines = escape_control(message).splitlines()
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = [textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines]
    print_above("\n".join(lines))


def print_above(text: str) -> None:
    """Prints to stderr, above the progress bars if there are any; tqdm may not have been imported."""
    if bars := sys.modules.get("tqdm"):
        bars.tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def command(words: str, path: Path) -> str:
    """`python WORDS PATH`, ready to be typed in the current folder, with the Python that runs now.

    A script runs from any folder, where it also finds the reward that lies there; a module only from the repository.
    """
    repository = Path(__file__).parents[1]
    python = "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)
    if Path.cwd() == repository:
        return f"{python} {words} {shlex.quote(str(path))}"
    if words.startswith("-m "):
        return f"cd {shlex.quote(str(repository))} && {python} {words} {shlex.quote(str(path.absolute()))}"
    script, _, options = words.partition(" ")
    return f"{python} {shlex.quote(str(repository / script))} {options} {shlex.quote(str(path))}"


def shorten(text: str, limit: int) -> str:
    """The text; its middle is cut out if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ... [{len(text) - 2 * half} characters] ... {text[-half:]}"


def escape_control(text: str) -> str:
    """Escapes every character that could steer a terminal; newline and tab keep their effect.

    Escapes what str.isprintable rejects: control characters (escape sequences, carriage return), format characters
    (those that reverse the direction of writing), separators other than the space, lone surrogates and private or
    unassigned code points.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Makes stdout and stderr TolerantStreams, so that printing never ends a command."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next opened file would get this number, and with it the output of libraries
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (TolerantStream(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class TolerantStream:
    """A stream whose failures end nothing.

    If its reader has gone or its disk is full, the output is lost. Characters outside its encoding are escaped.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._try(self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[..., object], *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if not isinstance(error, BrokenPipeError):  # stay silent on a broken pipe
                print(f"further output is lost: {error.strerror}", file=sys.__stderr__, flush=True)
