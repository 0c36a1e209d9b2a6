"""The model's chat template: messages -> the prompt that the model reads."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from grpo.errors import UserError
from grpo.settings import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chat = list[dict[str, str]]
TIME_LIMIT_S = 5.0
"""Seconds that the template may take for one call of `prompts`; 1,000 prompts usually take 0.02"""


class ChatTemplate:
    """Renders and tokenises chats."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    @classmethod
    def of_run(cls, config: Config, tokenizer: PreTrainedTokenizerBase | None) -> ChatTemplate | None:
        """The template as the run pins it; None without a tokenizer."""
        return cls(tokenizer) if tokenizer else None

    def render(self, chat: Chat) -> str:
        """The prompt, special tokens included. Raises UserError if the template cannot write this chat.

        Without a chat template the prompt is each message's text and a blank line.
        """
        if self.tokenizer.chat_template is None:
            return "".join(f"{message['content']}\n\n" for message in chat)
        try:
            return self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"the model's chat template cannot write this prompt: {reason}") from error

    def prompts(self, chats: Sequence[Chat]) -> list[tuple[str, list[int]] | UserError]:
        """(prompt, token ids) of each chat, or the error that its rendering raised."""
        rendered: list[str | UserError] = []
        with _time_limit(TIME_LIMIT_S, len(chats)):
            for chat in chats:
                try:
                    rendered.append(self.render(chat))
                except UserError as error:
                    rendered.append(error)
        texts = [text for text in rendered if isinstance(text, str)]
        ids = iter(self.tokenize(texts))
        return [text if isinstance(text, UserError) else (text, next(ids)) for text in rendered]

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of rendered prompts; the template has already written every special token."""
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


@contextlib.contextmanager
def _time_limit(seconds: float, count: int) -> Iterator[None]:
    """Raises UserError after `seconds`: a chat template is a foreign program, and an endless one must not hang the run.

    Signals reach the main thread only; in any other thread there is no limit.
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
    except TimeoutError:
        raise UserError(
            f"the model's chat template took more than {seconds:g} s for {count} prompts; look into its "
            "chat_template.jinja, or use another model"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
