"""A chat as the model sees it: its own chat template, applied once, under a time limit."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from grpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FAILURES = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What a chat template raises that cannot write a prompt"""
TEMPLATE_S = 5.0
"""Seconds that the chat template may take for a thousand prompts; usual is 0.02"""


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """The prompt as the model sees it: its own chat template, applied once; without one, the texts and a blank line."""
    (text,) = render_all(tokenizer, [messages])
    if not isinstance(text, str):
        raise UserError(str(text))
    return text


def render_all(tokenizer: PreTrainedTokenizerBase, chats: list[list[dict[str, str]]]) -> list[str | ValueError]:
    """For each chat its text, or why the model's chat template cannot write it. UserError where that takes too long."""
    if tokenizer.chat_template is None:
        return ["".join(f"{message['content']}\n\n" for message in chat) for chat in chats]
    try:
        with _time_limit(TEMPLATE_S):
            return [_rendered(tokenizer, chat) for chat in chats]
    except TimeoutError:
        raise UserError(
            f"the model's chat template took more than {TEMPLATE_S:g} s for {len(chats)} prompts; look into the "
            "model's chat_template.jinja, or take another model"
        ) from None


def _rendered(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> str | ValueError:
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except FAILURES as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return ValueError(f"the model's chat template cannot write this prompt: {said}")


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """A chat template is a program of whoever made the model: one that never ends must not hang the run.

    Signals reach the main thread alone; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
