"""The model's chat template: renders messages to the prompt that the model reads, and inspects the result.

A chat template is a program in the tokenizer's folder. It may add a system message, drop ours, open a thought or write
today's date. Its arguments and its date are pinned here, and `report` names what a reader of the settings cannot see.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from functools import cached_property
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from grpo.errors import UserError, first_line
from grpo.settings import Config
from grpo.types import Problem

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Chat = list[dict[str, str]]
TIME_LIMIT_S = 5.0
"""Seconds that the template may take for one call of `prompts`; 1,000 prompts usually take 0.02"""
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
EMPTY_SYSTEM = {"role": "system", "content": ""}
QUESTION, ANSWER, NEXT = "first question", "first answer", "second question"
"""The chat that shows how a template writes turns"""
OTHER_DAY = date(2001, 2, 3)
CONTROL_TOKEN = re.compile(
    r"<[|｜][A-Za-z_▁]{3,40}[|｜]>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>"
    r"|\n\s*(?:#+ *)?(?:Assistant|ASSISTANT|Response) *:\s*\Z"
)
"""Turns of Llama, Mistral, Gemma, DeepSeek, Phi, ChatML and their relatives, and the last line of the older formats"""
MARKUP = re.compile(
    r"<[^\s<>]{1,40}>|\[/?[A-Z_]+\]|\b(?:system|user|developer|human)\b(?=\s*(?:[\n:<\[]|\Z))", re.IGNORECASE
)
"""The marks that a template writes around the text of a turn"""
TAG = re.compile(r"</?(?:think|reflection|answer)>")
SHOWN = 1500
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
        """The template as the run pins it."""
        return cls(tokenizer, config.template_args, config.template_date)

    # ---- rendering

    def render(self, chat: Chat) -> str:
        """The prompt, special tokens included. Raises UserError if the template cannot write this chat.

        Without a chat template the prompt is the tokenizer's BOS, then each message's text and a blank line.
        """
        if self.tokenizer.chat_template is None:
            return self.bos + "".join(f"{message['content']}\n\n" for message in chat)
        return self._apply(chat if chat[0]["role"] == "system" else [*self.no_system, *chat])

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

    def _apply(self, chat: Chat, generation: bool = True, day: date | None = None) -> str:
        """The template's own text; `generation` opens the assistant's turn."""
        pinned = dict(self.args)
        if "strftime_now" in self._source:  # transformers' template function for the clock
            pinned["strftime_now"] = datetime.combine(day or self.day, time()).strftime
        try:
            with _time_limit(TIME_LIMIT_S, 1):
                return self.tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=generation, **pinned
                )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise UserError(f"the model's chat template cannot write this prompt: {first_line(error)}") from error

    @cached_property
    def no_system(self) -> Chat:
        """The beginning of a chat without a system message: an empty one if the template then adds none of its own.

        Qwen2.5 and SmolLM2 add one unless the chat begins with a system message.
        """
        return [EMPTY_SYSTEM] if self.added_text([]) and not self.added_text([EMPTY_SYSTEM]) else []

    @cached_property
    def bos(self) -> str:
        """The BOS token that the tokenizer puts before a text by itself; "" if it puts none."""
        first = self.tokenizer("a")["input_ids"][:1]
        return self.tokenizer.bos_token if first == [self.tokenizer.bos_token_id] else ""

    # ---- inspection

    def check_reads(self, chat: Chat) -> None:
        """Raises UserError if the template writes nothing, or the same prompt whatever the question is."""
        last = chat[-1]
        other = [*chat[:-1], last | {"content": f"{NEXT} {last['content']}"}]
        text = self.render(chat)
        if text == self.render(other):
            content = f"the same for every question, {text[:80]!r}" if text else "nothing"
            raise UserError(
                f"the model's chat template writes {content}; fix its chat_template.jinja, or use another model"
            )

    def added_text(self, system: Chat) -> str:
        """Text of the template's own before the first user turn of a chat that begins with `system`; "" if unknown."""
        begin = [*system, {"role": "user", "content": QUESTION}]
        turns = [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": NEXT}]
        try:
            before = self._apply(begin).partition(QUESTION)[0]
            between = self._apply([*begin, *turns]).partition(ANSWER)[2].partition(NEXT)[0]
        except UserError:
            return ""
        for content in (message["content"].strip() for message in system):
            before = before.replace(content, " ") if content else before
        words, turn = (MARKUP.sub(" ", text).split() for text in (before, between))
        while words and turn and words[-1] == turn[-1]:  # written before every user turn
            words.pop(), turn.pop()
        text = " ".join(words)
        return text if re.search(r"[^\W\d_]{2}", text) else ""

    def is_dated(self, chat: Chat) -> bool:
        """True where the prompt depends on the day."""
        return "strftime_now" in self._source and self._apply(chat) != self._apply(chat, day=OTHER_DAY)

    def control_token(self, chat: Chat) -> str | None:
        """The first special token of the tokenizer inside a message: it would end or open a turn there."""
        return next((match[0] for message in chat if (match := self._special.search(message["content"]))), None)

    @cached_property
    def _special(self) -> re.Pattern:
        tokens = [token for token in self.tokenizer.all_special_tokens if token.strip() and not TAG.fullmatch(token)]
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    @cached_property
    def end_of_turn(self) -> tuple[str, int | None]:
        """The text after an assistant's turn, and its token id if its first part is one token."""
        if self.tokenizer.chat_template is None:
            return "", None
        chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
        try:
            _, answer, end = self._apply(chat, generation=False).rpartition(ANSWER)
        except UserError:
            return "", None
        end = end.strip() if answer else ""
        ids = self.tokenize([end])[0] if end else []
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


def show(problem: Problem, template: ChatTemplate, generation: GenerationConfig | None) -> Iterator[str]:
    """The prompt in lines, with the special tokens in it and those that end a completion."""
    tokenizer = template.tokenizer
    text = problem.prompt
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if re.fullmatch(r"\W.*\W", str(token))}
    special = added.union(tokenizer.all_special_ids)
    counts = Counter(tokenizer.convert_ids_to_tokens(i) for i in problem.prompt_ids if i in special)
    listed = ", ".join(f"{token} x {count}" for token, count in counts.items()) or "no special token"
    ends = ", ".join(tokenizer.convert_ids_to_tokens(list(stop_ids(tokenizer, generation))))
    yield f"first prompt, {len(problem.prompt_ids)} tokens ({listed}); a completion ends at {ends or 'its limit'}:"
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]}\n[... {len(text) - SHOWN} characters ...]\n{text[-SHOWN // 2 :]}"
    yield from (f"    {line}" for line in text.split("\n"))


def report(problem: Problem, template: ChatTemplate, system: str, generation: GenerationConfig | None) -> Iterator[str]:
    """One line for each way in which the prompt is not what the settings suggest; `system` is our system message."""
    tokenizer = template.tokenizer
    chat = problem.chat
    prompt = problem.prompt
    if tokenizer.chat_template is None:
        yield "the tokenizer has no chat template: the prompt is the messages as plain text"
        return
    if system and " ".join(system.split()) not in " ".join(prompt.split()):
        yield "our system message is missing from the prompt: the chat template drops it; put it into the questions"
    own_system = chat[:1] if chat[0]["role"] == "system" else template.no_system
    if text := template.added_text(own_system):
        yield f"the chat template adds a text of its own, {_short(text)!r}, and no system message replaces it"
    elif own_system == [EMPTY_SYSTEM]:
        text = template.added_text([])
        yield f"the chat template's own system message, {_short(text)!r}, is replaced by an empty one"
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
        yield f"the end of turn {name} is no stop token in the model's files; completions end at it all the same"
    elif token is None and end and not any(text in end for text in tokenizer.convert_ids_to_tokens(list(known))):
        yield f"the end of turn {_short(end)!r} is no single token, so it cannot stop a completion"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextlib.contextmanager
def _time_limit(seconds: float, count: int) -> Iterator[None]:
    """Raises UserError after `seconds`: a chat template is a foreign program, and an endless one must not hang the run.

    The outermost of nested limits holds. Signals reach the main thread only; in any other thread there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
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
