"""A tokenizer whose tokens are bytes, with the special tokens and the chat template that a test gives it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_byte_tokenizer(
    template: str | None = CHATML,
    special: Sequence[str] = ("<|im_start|>",),
    eos: str = "<|im_end|>",
    bos: str | None = None,
) -> PreTrainedTokenizerFast:
    """Every byte is a token, as in GPT-2's alphabet. With `bos` the tokenizer puts it before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, **({"bos_token": bos} if bos else {}))
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    if bos:
        core = tokenizer.backend_tokenizer
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = template
    return tokenizer
