"""The model's chat template: renders messages to the prompt that the model reads, and inspects the result.

A chat template is a program in the tokenizer's folder. It may add a system message, drop ours, open a thought or write
today's date. Its arguments and its date are pinned here. `surprises` reports what the settings do not show.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from functools import cached_property
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from grpo.errors import EndlessTemplate, UserError, first_line
from grpo.settings import Config
from grpo.terminal import shorten
from grpo.types import Problem

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Chat = list[dict[str, str]]
TIME_LIMIT_S = 5.0
"""Longest time for one prompt; it usually takes 0.02 ms"""
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
EMPTY_SYSTEM = {"role": "system", "content": ""}
QUESTION, ANSWER = "the question", "the answer"
"""Contents of the probe chat that shows how a template writes turns"""
OTHER_DAY = date(2001, 2, 3)
CONTROL_TOKEN = (
    r"<[|｜][A-Za-z_▁]{3,40}[|｜]>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>"
    r"|\n\s*(?:#+ *)?(?:Assistant|ASSISTANT|Response) *:\s*\Z"
)
"""Turn markers of Llama, Mistral, Gemma, DeepSeek, Phi, ChatML and others, and the last line of older formats"""
MARKUP = re.compile(
    r"<[^\s<>]{1,40}>|\[/?[A-Z_]+\]|\b(?:system|user|developer|human)\b(?=\s*(?:[\n:<\[]|\Z))", re.IGNORECASE
)
"""Markup that a template writes around the text of a turn"""
TAG = re.compile(r"</?(?:think|reflection|answer)>")
SHOWN_CHARS = 1500
"""Characters of the first prompt that are printed"""


class ChatTemplate:
    """A tokenizer's chat template with its arguments and its date pinned."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, args: Mapping[str, object] | None = None, day: str | None = None
    ):
        """args: passed to the template, such as {"enable_thinking": False}. day: its today, as 2026-11-29.

        Raises UserError for an argument that the template does not read.
        """
        self.tokenizer = tokenizer
        self.args = dict(args or {})
        self.day = date.fromisoformat(day) if day else date.today()
        self._source = str(tokenizer.chat_template or "")
        for name in self.args:
            if not re.search(rf"\b{re.escape(name)}\b", self._source):
                raise UserError(f"template_args has {name}, which the model's chat template does not read; remove it")

    @classmethod
    def of_run(cls, config: Config, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """The template with the run's arguments and date."""
        return cls(tokenizer, config.template_args, config.template_date)

    # ---- rendering

    def encode(self, chat: Chat) -> tuple[str, list[int]]:
        """The prompt and its token ids. Raises UserError if the template cannot write this chat, or drops its question.

        A special token inside a message would end or open a turn there, so it is an error too.
        """
        for message in chat:
            if token := self._control_token.search(message["content"]):
                raise UserError(f"the prompt holds {token[0].strip()}, which a chat template writes; store plain text")
        prompt = self.render(chat)
        if not contains(prompt, chat[-1]["content"]):
            raise UserError(
                f"the model's chat template drops the question and writes {prompt[:80]!r}; fix its "
                "chat_template.jinja, or use another model"
            )
        return prompt, self.tokenizer.encode(prompt, add_special_tokens=False)  # the template has written them

    def render(self, chat: Chat) -> str:
        """The prompt, special tokens included. Raises UserError if the template cannot write this chat.

        Without a chat template the prompt is the tokenizer's BOS, then each message's text and a blank line.
        """
        if self.tokenizer.chat_template is None:
            return self.bos + "".join(f"{message['content']}\n\n" for message in chat)
        return self._apply(chat if chat[0]["role"] == "system" else [*self.no_system, *chat])

    def _apply(self, chat: Chat, generation: bool = True, day: date | None = None) -> str:
        """The rendered chat; `generation` opens the assistant's turn."""
        pinned = dict(self.args)
        if "strftime_now" in self._source:  # transformers' template function for the clock
            pinned["strftime_now"] = datetime.combine(day or self.day, time()).strftime
        try:
            with _time_limit():
                return self.tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=generation, **pinned
                )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise UserError(f"the model's chat template cannot write this prompt: {first_line(error)}") from error

    @cached_property
    def no_system(self) -> Chat:
        """The first messages of a chat that has no system message of its own.

        One empty system message if that keeps the template from adding its own, as those of Qwen2.5 and SmolLM2 do;
        else none.
        """
        return [EMPTY_SYSTEM] if self.added_text([]) and not self.added_text([EMPTY_SYSTEM]) else []

    @cached_property
    def bos(self) -> str:
        """The BOS token that the tokenizer puts before every text; "" if none."""
        first = self.tokenizer("a")["input_ids"][:1]
        return self.tokenizer.bos_token if first == [self.tokenizer.bos_token_id] else ""

    # ---- inspection

    def added_text(self, system: Chat) -> str:
        """Words that the template adds before the first user turn of a chat starting with `system`; "" if unknown."""
        try:
            text = self._apply([*system, {"role": "user", "content": QUESTION}]).partition(QUESTION)[0]
        except UserError:
            return ""
        for content in filter(None, (message["content"].strip() for message in system)):
            text = text.replace(content, " ")
        text = " ".join(MARKUP.sub(" ", text).split())
        return text if re.search(r"[^\W\d_]{2}", text) else ""

    def is_dated(self, chat: Chat) -> bool:
        """True if the prompt depends on the day."""
        return "strftime_now" in self._source and self._apply(chat) != self._apply(chat, day=OTHER_DAY)

    @cached_property
    def _control_token(self) -> re.Pattern:
        tokens = [token for token in self.tokenizer.all_special_tokens if token.strip() and not TAG.fullmatch(token)]
        return re.compile("|".join([CONTROL_TOKEN, *map(re.escape, tokens)]))

    @cached_property
    def end_of_turn(self) -> tuple[str, int | None]:
        """The text after an assistant's turn, and its token id if its first part is one token."""
        chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
        try:
            _, answer, end = self._apply(chat, generation=False).rpartition(ANSWER)
        except UserError:
            return "", None
        end = end.strip() if answer else ""
        ids = self.tokenizer.encode(end, add_special_tokens=False)
        is_token = ids and (ids[0] in self.tokenizer.added_tokens_decoder or (len(ids) == 1 and len(end) > 2))
        return end, ids[0] if is_token else None


def stop_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> tuple[int, ...]:
    """Every id that ends a completion: the model's own, and the chat template's end of turn."""
    end_of_turn = ChatTemplate(tokenizer).end_of_turn[1]
    return tuple(sorted(_model_stop_ids(tokenizer, generation) | ({end_of_turn} if end_of_turn is not None else set())))


def _model_stop_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> set[int]:
    """The tokenizer's and the generation config's, and both of Qwen's end tokens.

    Base models disagree with themselves (Qwen2.5-Math: <|im_end|> in chats, <|endoftext|> in the generation config).
    """
    configured = generation.eos_token_id if generation else None
    vocabulary = tokenizer.get_vocab()
    ids = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return (ids | {vocabulary[token] for token in END_TOKENS if token in vocabulary}) - {None}


def describe_prompt(
    problem: Problem, config: Config, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None
) -> Iterator[str]:
    """Yields the prompt in lines (unless config.quiet), then a line for each surprise (see `surprises`)."""
    template = ChatTemplate.of_run(config, tokenizer)
    if not config.quiet:
        ends = ", ".join(tokenizer.convert_ids_to_tokens(list(stop_ids(tokenizer, generation))))
        yield f"first prompt, {len(problem.prompt_ids)} tokens; a completion ends at {ends or 'its limit'}:"
        yield from (f"    {line}" for line in shorten(problem.prompt, SHOWN_CHARS).split("\n"))
    yield from (f"prompt: {line}" for line in surprises(problem, template, generation))


def surprises(problem: Problem, template: ChatTemplate, generation: GenerationConfig | None) -> Iterator[str]:
    """Yields a line for each way in which the prompt is not what the settings suggest."""
    tokenizer = template.tokenizer
    chat = problem.chat
    prompt = problem.prompt
    if tokenizer.chat_template is None:
        yield "the tokenizer has no chat template: the prompt is the messages as plain text"
        return
    system = chat[:1] if chat[0]["role"] == "system" else template.no_system
    if system and not contains(prompt, system[0]["content"]):
        yield "our system message is missing from the prompt: the chat template drops it; put it into the questions"
    if text := template.added_text(system):
        yield f"the chat template adds a text of its own, {shorten(text, 60)!r}, and no system message replaces it"
    elif system == [EMPTY_SYSTEM]:
        text = template.added_text([])
        yield f"the chat template's own system message, {shorten(text, 60)!r}, is replaced by an empty one"
    if template.is_dated(chat):
        yield f"the chat template writes the date: pinned to template_date {template.day}"
    if template.bos and problem.prompt_ids[0] != tokenizer.bos_token_id:
        yield f"the tokenizer begins every text with {template.bos}, and the chat template does not write it"
    if prompt.rstrip().endswith("<think>"):
        yield "the chat template opens <think>: the completion begins inside the thought"
    end, token = template.end_of_turn
    known = _model_stop_ids(tokenizer, generation)
    if token is not None and token not in known:
        name = tokenizer.convert_ids_to_tokens(token)
        yield f"the end of turn {name} is not a stop token in the model's files; completions stop at it anyway"
    elif token is None and end and not any(text in end for text in tokenizer.convert_ids_to_tokens(list(known))):
        yield f"the end of turn {shorten(end, 60)!r} is not a single token, so it cannot stop a completion"


def contains(text: str, part: str) -> bool:
    """True if the text contains the part, whatever the spacing."""
    return " ".join(part.split()) in " ".join(text.split())


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Ends the run after TIME_LIMIT_S: a chat template is a foreign program, which may never end.

    Signals reach the main thread only; in any other thread there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        raise EndlessTemplate(
            f"the model's chat template took more than {TIME_LIMIT_S:g} s for one prompt; look into its "
            "chat_template.jinja, or use another model"
        )

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
