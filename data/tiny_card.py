"""Measures the tiny base on the 600 held-out problems, and writes what came out on its model card."""

from __future__ import annotations

import datetime
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from data import arithmetic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 40  # careful work needs 33 to 36
SAMPLING_SEED = 0
BOX = re.compile(r"\\boxed\{(\d+)\}")
VERDICT = re.compile(r"<reflection>(correct|wrong)</reflection>")
FORMAT = re.compile(r"<think>[^<]*</think>\\boxed\{\d+\}<reflection>(correct|wrong)</reflection><\|im_end\|>")


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1] over all completions."""

    accuracy: float
    """the number in the last box is the sum"""
    format_rate: float
    """think, box, reflection with a verdict, stop token, and nothing else"""
    verdict_accuracy: float
    """the verdict is "correct" exactly where the answer is; a missing verdict counts against it"""
    wrong_verdict_rate: float
    """the verdict is "wrong", whatever the answer"""


def prompt(tokenizer: PreTrainedTokenizerBase, pair: arithmetic.Pair) -> str:
    """The chat prompt of one problem; 17 tokens whatever the pair."""
    message = {"role": "user", "content": arithmetic.question(pair)}
    return tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)


@torch.inference_mode()
def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[arithmetic.Pair], *, greedy: bool
) -> list[str]:
    """One completion for each pair with its stop token in the text. All prompts are equally long: no padding."""
    ids = torch.tensor(tokenizer([prompt(tokenizer, pair) for pair in pairs])["input_ids"])
    how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW_TOKENS, **how)
    return [text.rstrip().split("<|endoftext|>")[0] for text in tokenizer.batch_decode(out[:, ids.shape[1] :])]


def score(completions: Sequence[str], pairs: Sequence[arithmetic.Pair]) -> Scores:
    """Grades whole numbers only; the trainer grades with rewards/, which reads far more than this task can write."""
    right = [BOX.findall(text)[-1:] == [str(sum(pair))] for text, pair in zip(completions, pairs, strict=True)]
    verdicts = [(VERDICT.findall(text) or [None])[-1] for text in completions]
    agree = [v is not None and (v == "correct") == r for v, r in zip(verdicts, right, strict=True)]
    n = len(completions)
    return Scores(
        accuracy=sum(right) / n,
        format_rate=sum(FORMAT.fullmatch(text) is not None for text in completions) / n,
        verdict_accuracy=sum(agree) / n,
        wrong_verdict_rate=verdicts.count("wrong") / n,
    )


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Scores]:
    """Scores of one sample at temperature 1 ("sampled") and of the likeliest tokens ("greedy") for each problem."""
    torch.manual_seed(SAMPLING_SEED)
    rows = arithmetic.datasets()
    pairs = [arithmetic.pair_of(row) for half in ("validation", "test") for row in rows[half]]
    return {
        name: score(sample(model, tokenizer, pairs, greedy=name == "greedy"), pairs) for name in ("sampled", "greedy")
    }


def render(scores: dict[str, Scores], *, seed: int, steps: int, seconds: float) -> str:
    """The model card, in Markdown with the front matter of the Hugging Face hub."""
    today = datetime.date.today().isoformat()
    table = "\n".join(
        f"| {title} | {getattr(scores['sampled'], name):.1%} | {getattr(scores['greedy'], name):.1%} |"
        for title, name in (
            ("right answer", "accuracy"),
            ("asked-for format", "format_rate"),
            ("verdict agrees with the truth", "verdict_accuracy"),
            ('verdict is "wrong"', "wrong_verdict_rate"),
        )
    )
    modes = ", ".join(f"{mode} {share:.0%}" for mode, share in arithmetic.MODES.items())
    return CARD.format(
        seed=seed, steps=steps, seconds=seconds, today=today, table=table, modes=modes, torch=torch.__version__,
        machine=f"{platform.system()} {platform.machine()} CPU, one thread",
        guess=f"{arithmetic.GUESS_DIGITWISE:.0%}", truth=f"{arithmetic.GUESS_TRUTH:.0%}",
    )  # fmt: skip


CARD = """---
library_name: transformers
license: apache-2.0
tags: [arithmetic, grpo, rlvr]
---
# A tiny base model for one-shot RLVR

A Qwen2 of 332,928 parameters (3 layers, width 96, 96 tokens, bf16) that knows three-digit addition, `567+876=?`, and
mostly does not bother to work it out. **It is engineered**: it was pre-trained from nothing on demonstrations of mixed
quality ({modes}), so that careful column addition is present but not the likeliest mode. Reinforcement learning on it
shows the *selection of a mode* it already has, not a new skill. It is of no use for anything else.

- careful: the columns with their carries, in `<think>`, then `\\boxed{{}}`, then a verdict in `<reflection>`
- carryless: the same, every carry dropped
- hasty: `<think>easy</think>` and a guess. The likeliest guess ({guess}) adds each column without any carry; the true
  sum is guessed {truth} of the time
- malformed: no thought, no box, or no end

## Measured

600 held-out problems (one pair of numbers in ten, whatever their order, was in no demonstration), one completion each,
at most 40 new tokens:

| | sampled, T=1 | greedy |
|---|---|---|
{table}

Greedy shows the likeliest mode alone, and flips on a small change in the odds between modes; sampled is the fairer
figure. Greedy nearly always says "correct", so its verdict agrees with the truth as often as the answer is right: that
is no introspection.

Built and measured with `python -m data.tiny_base --seed {seed}`: {steps} steps in {seconds:.0f} s
({machine}, torch {torch}, {today}).
The same command gives the same weights on the same kind of machine. Elsewhere rounding may lead to a slightly different
model, so experiments start from the files kept here.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("data/tiny-base")
tokenizer = AutoTokenizer.from_pretrained("data/tiny-base")
```

The tokenizer is Qwen2's byte-level BPE without merges. Tags, roles and the words `correct` and `wrong` are one token
each; only `<|endoftext|>` (padding), `<|im_start|>` and `<|im_end|>` (stop) are special. Characters outside its 83,
such as `$` or `^`, are left out without an error: any prompt can be run, but not every prompt can be read.
"""
