"""The built-in base model: a 0.33M-parameter Qwen2 that can add with carries, and mostly does not bother to.

`python -m data.tiny_base` pre-trains it from nothing on `arithmetic.demonstration`s of mixed quality (about 3 minutes
on one core) and writes a Hugging Face folder of under 1 MB: bf16 weights and a tokenizer with its chat template. The
demonstrations are arranged so that careful work is present but under-used: reinforcement learning on this base selects
a mode it has; it does not teach it to add. data/tiny-base/README.md is its card; the tests measure its figures again.

The tokenizer knows 96 tokens: 83 characters, and 13 words that are one token each (tags, verdicts, roles), which halves
the length of a completion. Unknown characters are dropped, so any prompt can be tokenised.
"""

from __future__ import annotations

import random
import string
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch.nn.utils.rnn import pad_sequence
from tqdm import trange
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils import logging

from data import arithmetic

FOLDER = Path(__file__).resolve().parent / "tiny-base"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # dropped by skip_special_tokens; the other words are kept
TAGS = ("<think>", "</think>", "\\boxed{", "<reflection>", "</reflection>")
WORDS = (*TAGS, "correct", "wrong", "user", "assistant", "system")
CHARACTERS = string.ascii_letters + string.digits + " \n" + "+-*/=.,;:?!()<>{}'\""
POSITIONS = 4096  # the task needs 60; the rest is room to run any other prompt
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
STEPS = 600
BATCH = 128
PEAK_LR, WARMUP, FLAT_UNTIL, LAST_LR = 3e-3, 50, 0.6, 0.05
IGNORE = -100


def make_tokenizer() -> Qwen2Tokenizer:
    """96 tokens, ids in the order SPECIAL, WORDS, CHARACTERS.

    Built with Qwen2's own class and no merges: AutoTokenizer gives any `qwen2` model that class, whatever its
    tokenizer_config.json asks for, so a tokenizer of another kind would be changed by loading it.
    """
    characters = CHARACTERS.replace(" ", "Ġ").replace("\n", "Ċ")  # as byte-level BPE writes them in its vocabulary
    vocab = {token: i for i, token in enumerate((*SPECIAL, *WORDS, *characters))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=POSITIONS,
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    return tokenizer


def make_model(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """332,928 fresh fp32 parameters."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=1,
            intermediate_size=288,
            tie_word_embeddings=True,
            max_position_embeddings=POSITIONS,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            initializer_range=0.04,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def chat_prompt(tokenizer: Qwen2Tokenizer, pair: arithmetic.Pair) -> str:
    """The rendered chat prompt of one problem; 17 tokens whatever the pair."""
    message = {"role": "user", "content": arithmetic.question(pair)}
    return tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)


def draw_batch(tokenizer: Qwen2Tokenizer, rng: random.Random) -> list[tuple[list[int], list[int]]]:
    """BATCH fresh (prompt ids, completion ids), shortest first; a held-out pair is never among them."""
    pairs = [arithmetic.draw_pair(rng, from_held_out=False) for _ in range(BATCH)]
    prompts = tokenizer([chat_prompt(tokenizer, pair) for pair in pairs])["input_ids"]
    completions = tokenizer([arithmetic.demonstration(rng, pair)[1] for pair in pairs])["input_ids"]
    return sorted(zip(prompts, completions, strict=True), key=lambda sample: len(sample[1]))


def loss_sum(model: Qwen2ForCausalLM, samples: list[tuple[list[int], list[int]]], pad_id: int) -> torch.Tensor:
    """Summed cross-entropy of the completion tokens. Padded on the right, behind a causal mask: no mask is needed."""
    texts = [torch.tensor(prompt + completion) for prompt, completion in samples]
    learned = [torch.tensor([IGNORE] * len(prompt) + completion) for prompt, completion in samples]
    ids = pad_sequence(texts, batch_first=True, padding_value=pad_id)
    targets = pad_sequence(learned, batch_first=True, padding_value=IGNORE)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
    )


def learning_rate(step: int, steps: int) -> float:
    """Warm up, stay, and fall in a line to 5% of the peak."""
    if step < WARMUP:
        return PEAK_LR * (step + 1) / WARMUP
    fallen = max(0.0, (step / steps - FLAT_UNTIL) / (1 - FLAT_UNTIL))
    return PEAK_LR * (1 - (1 - LAST_LR) * fallen)


def pretrain(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, seed: int, steps: int = STEPS) -> None:
    """Fresh demonstrations every step; token mean over the batch, computed in a short and a long half."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.01)
    model.train()
    progress = trange(steps, desc="pre-training", unit="step")
    for step in progress:
        samples = draw_batch(tokenizer, rng)
        tokens = sum(len(completion) for _, completion in samples)
        total = 0.0
        for half in (samples[: BATCH // 2], samples[BATCH // 2 :]):
            loss = loss_sum(model, half, tokenizer.pad_token_id) / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{total:.3f}", refresh=False)
    model.eval()


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """A folder that AutoModelForCausalLM and AutoTokenizer open without trust_remote_code."""
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
    logging.disable_progress_bar()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    torch.set_num_threads(1)  # at this size a second thread costs more than it brings, most of all on a busy machine
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=0)
    pretrain(model, tokenizer, seed=0)
    save(model, tokenizer, FOLDER)


if __name__ == "__main__":
    main()
