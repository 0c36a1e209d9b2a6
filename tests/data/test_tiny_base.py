"""The tiny base: its tokenizer loses nothing that a completion needs, its folder loads, its build repeats itself."""

from __future__ import annotations

import random
import re

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from data import arithmetic, tiny_base

CAREFUL = "<think>\n7+6=13;6+7+1=14;5+8+1=14</think>\\boxed{1443}<reflection>correct</reflection>"
PAIR = (567, 876)
MAX_NEW_TOKENS = 40  # careful work needs 33 to 36


@pytest.fixture(scope="module")
def tokenizer():
    """As users get it: from the committed folder, by AutoTokenizer."""
    return AutoTokenizer.from_pretrained(tiny_base.FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(tiny_base.FOLDER, dtype=torch.float32)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def test_loading_gives_the_tokenizer_that_was_made(tokenizer):
    # AutoTokenizer builds Qwen2's class from the saved vocabulary; a tokenizer of another kind would not survive that.
    made = tiny_base.make_tokenizer()
    text = tiny_base.chat_prompt(made, PAIR) + CAREFUL + "<|im_end|>" + tiny_base.CHARACTERS
    assert tokenizer.get_vocab() == made.get_vocab()
    assert ids_of(tokenizer, text) == ids_of(made, text)
    assert tokenizer.chat_template == made.chat_template
    assert {i: token.special for i, token in tokenizer.added_tokens_decoder.items()} == {
        i: token.special for i, token in made.added_tokens_decoder.items()
    }


def test_vocabulary_is_96_tokens_all_in_use(tokenizer, model):
    assert len(tokenizer) == model.config.vocab_size == 96
    assert sorted(tokenizer.get_vocab().values()) == list(range(96))


def test_every_word_and_character_is_one_token_and_comes_back(tokenizer):
    for piece in (*tiny_base.SPECIAL, *tiny_base.WORDS, *tiny_base.CHARACTERS):
        ids = ids_of(tokenizer, piece)
        assert len(ids) == 1, piece
        assert tokenizer.decode(ids) == piece


def test_demonstrations_round_trip(tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        text = arithmetic.demonstration(rng, arithmetic.draw_pair(rng, from_held_out=False))[1]
        assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_dropping_special_tokens_keeps_what_rewards_read(tokenizer):
    ids = ids_of(tokenizer, "<|im_start|>" + CAREFUL + "<|im_end|><|endoftext|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == CAREFUL
    assert set(tokenizer.all_special_tokens) == set(tiny_base.SPECIAL)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_prompt_is_17_tokens_and_careful_work_fits_the_limit(tokenizer):
    assert len(ids_of(tokenizer, tiny_base.chat_prompt(tokenizer, PAIR))) == 17
    assert len(ids_of(tokenizer, CAREFUL + "<|im_end|>")) <= MAX_NEW_TOKENS


def test_unknown_characters_are_left_out(tokenizer):
    assert tokenizer.decode(ids_of(tokenizer, "a\\frac{é}$\t∑b")) == "afrac{}b"
    assert ids_of(tokenizer, "∑$") == []


def test_a_long_latex_prompt_can_be_tokenised(tokenizer, data_dir):
    (text,) = {row["prompt"][0]["content"] for row in pq.read_table(data_dir / "pi1_r128.parquet").to_pylist()}
    messages = [{"role": "system", "content": "Think, box, reflect. " * 20}, {"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert 100 < len(ids_of(tokenizer, prompt)) < 1024


def test_chat_template_with_and_without_a_system_message(tokenizer):
    user, system = {"role": "user", "content": "1+2=?"}, {"role": "system", "content": "Be brief."}
    assistant = {"role": "assistant", "content": CAREFUL}
    open_turn = "<|im_start|>user\n1+2=?<|im_end|>\n<|im_start|>assistant\n"

    def render(*messages, generate=True):
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate)

    assert render(user) == open_turn
    assert render(system, user) == "<|im_start|>system\nBe brief.<|im_end|>\n" + open_turn
    assert render(user, assistant, generate=False) == open_turn + CAREFUL + "<|im_end|>\n"


def test_tokenising_a_rendered_prompt_adds_nothing(tokenizer):
    prompt = tiny_base.chat_prompt(tokenizer, PAIR)
    messages = [{"role": "user", "content": arithmetic.question(PAIR)}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids_of(tokenizer, prompt) == rendered


def test_folder_is_small_and_says_where_to_stop(model):
    assert sum(path.stat().st_size for path in tiny_base.FOLDER.iterdir()) < 1_000_000
    assert sum(parameter.numel() for parameter in model.parameters()) == 332_928
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings == 4096
    generation = GenerationConfig.from_pretrained(tiny_base.FOLDER)
    assert generation.eos_token_id == [2, 0]
    assert generation.pad_token_id == 0
    assert AutoModelForCausalLM.from_pretrained(tiny_base.FOLDER).dtype == torch.bfloat16


@torch.inference_mode()
def complete(model, tokenizer, pairs, **how) -> list[str]:
    """One completion a pair, the stop token in the text. All prompts are equally long: no padding."""
    ids = torch.tensor(tokenizer([tiny_base.chat_prompt(tokenizer, pair) for pair in pairs])["input_ids"])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW_TOKENS, **how)
    return [text.rstrip().split("<|endoftext|>")[0] for text in tokenizer.batch_decode(out[:, ids.shape[1] :])]


def test_the_card_states_what_is_measured(model, tokenizer):
    questions = [row["prompt"][0]["content"] for row in arithmetic.datasets()["test"]]
    pairs = [tuple(map(int, re.findall(r"\d+", question))) for question in questions]

    def right(texts) -> float:
        boxes = [re.findall(r"\\boxed\{(\d+)\}", text)[-1:] for text in texts]
        return 100 * sum(box == [str(sum(pair))] for box, pair in zip(boxes, pairs, strict=True)) / len(pairs)

    torch.manual_seed(0)
    sampled = complete(model, tokenizer, pairs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    greedy = complete(model, tokenizer, pairs, do_sample=False)
    card = (tiny_base.FOLDER / "README.md").read_text()
    stated = re.search(r"right answer \| ([\d.]+)% \| ([\d.]+)%", card).groups()
    # The card: 600 sums, here the second half. Two standard errors: 2 sqrt(.28 * .72 / 300), 2 sqrt(.02 * .98 / 300).
    assert right(sampled) == pytest.approx(float(stated[0]), abs=5.2)
    assert right(greedy) == pytest.approx(float(stated[1]), abs=1.6)
    form = r"<think>[^<]*</think>\\boxed\{\d+\}<reflection>(correct|wrong)</reflection><\|im_end\|>"
    assert sum(re.fullmatch(form, text) is not None for text in greedy) > 0.9 * len(greedy)


def test_learning_rate_warms_up_stays_and_falls():
    rates = [tiny_base.learning_rate(step, 600) for step in range(600)]
    assert rates[0] == pytest.approx(3e-3 / 50)
    assert set(rates[49:361]) == {3e-3}
    assert rates[480] == pytest.approx(3e-3 * (1 - 0.95 * 0.5))  # half way down
    assert rates[599] == pytest.approx(3e-3 * (1 - 0.95 * 239 / 240))


def test_loss_counts_completion_tokens_only(tokenizer, model):
    prompt = ids_of(tokenizer, tiny_base.chat_prompt(tokenizer, PAIR))
    short, long = (ids_of(tokenizer, text + "<|im_end|>") for text in ("\\boxed{1443}", CAREFUL))
    by_hand = 0.0
    for completion in (short, long):
        logprobs = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        for i, token in enumerate(completion):
            by_hand -= logprobs[len(prompt) + i - 1, token].item()
    together = tiny_base.loss_sum(model, [(prompt, short), (prompt, long)], tokenizer.pad_token_id)
    assert together.item() == pytest.approx(by_hand, rel=1e-4)


def test_a_two_step_build_repeats_itself_and_a_seed_changes_it(tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_base, "BATCH", 8)

    def build(seed: int) -> torch.Tensor:
        fresh = tiny_base.make_model(tokenizer, seed)
        before = fresh.model.embed_tokens.weight.detach().clone()
        tiny_base.pretrain(fresh, tokenizer, seed, steps=2)
        assert not torch.equal(before, fresh.model.embed_tokens.weight)
        return torch.cat([parameter.detach().flatten() for parameter in fresh.parameters()])

    first = build(0)
    assert torch.equal(first, build(0))
    assert not torch.equal(first, build(1))


def test_pretraining_never_sees_a_held_out_pair(tokenizer):
    text = [tokenizer.decode(prompt) for prompt, _ in tiny_base.draw_batch(tokenizer, random.Random(0))]
    pairs = [tuple(map(int, re.search(r"(\d+)\+(\d+)=", prompt).groups())) for prompt in text]
    assert len(pairs) == tiny_base.BATCH
    assert not any(map(arithmetic.held_out, pairs))
