"""A real language model all the way: SmolLM2-135M-Instruct is trained with both engines, exported, and read by others.

`make test-vllm` builds models/smollm2 first (tools/smollm2.py); without it these tests are skipped.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import REPO
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import prompts
import train
from grpo.engines.vllm_engine import _on_cpu, _trainer_undisturbed
from grpo.policy import load_tokenizer
from grpo.problems import training_problems
from grpo.run.files import read_rows
from grpo.saved import open_policy, single
from grpo.settings import build

pytestmark = pytest.mark.vllm
CPU = torch.device("cpu")
SMOLLM2 = REPO / "models" / "smollm2"
QUESTION, ANSWER = "What is 9 times 2?", " The product of 9 and 2 is \\boxed{18}"
TINY = {
    "steps": "2",
    "rollout.prompts_per_step": "2",
    "rollout.group_size": "4",
    "rollout.max_new_tokens": "8",
    "rollout.kv_gib": "0.25",
    "reward.name": "small_runs:spread_reward",  # tells any two completions apart, so that every step has a gradient
    "eval.every": "0",
    "eval.data": "none",
    "eval.test": "none",
    "quiet": "true",
}
"""Preset laptop, cut to seconds."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    pytest.importorskip("vllm.version", reason="make test-vllm makes an environment with vLLM's CPU build")
    if not SMOLLM2.is_dir():
        pytest.skip("models/smollm2 could not be built: python -m tools.smollm2 --out models/smollm2 says why")
    out = tmp_path_factory.mktemp("runs")
    for engine in ("torch", "vllm"):
        chosen = TINY | {"preset": "laptop", "model": str(SMOLLM2), "out": str(out), "name": engine}
        chosen["rollout.engine"] = engine
        assert train.main([word for key, value in chosen.items() for word in (f"--{key}", value)]) == 0
    return out


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_two_steps_move_the_model_and_the_sampler_with_it(runs, engine: str):
    steps = [row for row in read_rows(runs / engine / "metrics.jsonl") if row["step"] > 0]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["policy/grad_norm"] > 0
        assert row["logprob_diff/mean"] < 1e-4  # float32 in two implementations, before and after a sync of new weights
    saved = load_file(adapter(runs / engine) / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in saved.items() if "lora_B" in name)  # which start at 0


def test_a_prompt_is_the_chat_template_once_in_the_tokenizers_own_ids(runs):
    (problem, *_), _ = training_problems(build("laptop", {"model": str(SMOLLM2)}), load_tokenizer(str(SMOLLM2)))
    text = (
        f"<|im_start|>system\n{prompts.load('products')}<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert problem.prompt == text
    assert problem.prompt_ids == tuple(Tokenizer.from_file(str(SMOLLM2 / "tokenizer.json")).encode(text).ids)


@pytest.mark.parametrize(
    ("dtype", "most", "mean"),
    [
        # Sums of 600 to 1,500 products in another order: 30 layers of roundings of 6e-8. 2e-5 at most was measured.
        ("float32", 1e-4, 2e-5),
        # Roundings of 2^-9 in other places, of the logits too, here up to 20: 0.3 at most and below 0.1 on average.
        ("bfloat16", 1.0, 0.2),
    ],
)
def test_an_exported_checkpoint_is_the_same_model_elsewhere(runs, dtype: str, most: float, mean: float, tmp_path):
    """The adapter as PEFT applies it, beside the merged folder in transformers and in a vLLM that reads it itself."""
    checkpoint = adapter(runs / "vllm")
    open_policy(single(str(checkpoint)), CPU, 64).save(tmp_path)
    with_adapter, merged = (answer_logprobs(folder, dtype) for folder in (checkpoint, tmp_path))
    in_vllm = vllm_logprobs(tmp_path, dtype)
    assert (merged - with_adapter).abs().max() < most
    assert (in_vllm - merged).abs().max() < most
    assert (in_vllm - merged).abs().mean() < mean


def adapter(run):
    return run / "checkpoints" / "step_000002"


def ids(folder) -> tuple[list[int], int]:
    """Prompt and answer, and where the answer starts."""
    tokenizer = load_tokenizer(str(folder))
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    start = len(tokenizer(prompt)["input_ids"])
    return tokenizer(prompt + ANSWER)["input_ids"], start


@torch.no_grad()
def answer_logprobs(folder, dtype: str = "float32") -> torch.Tensor:
    tokens, start = ids(SMOLLM2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    logp = model(torch.tensor([tokens])).logits[0, start - 1 : -1].float().log_softmax(-1)
    return logp.gather(-1, torch.tensor(tokens[start:])[:, None])[:, 0]


def vllm_logprobs(folder, dtype: str) -> torch.Tensor:
    from vllm import LLM, SamplingParams

    tokens, start = ids(folder)
    with _trainer_undisturbed(CPU):
        own = {"max_model_len": 256, "kv_cache_memory_bytes": 2**27, **_on_cpu(["LlamaForCausalLM"])}
        llm = LLM(str(folder), dtype=dtype, **own)
        (output,) = llm.generate([{"prompt_token_ids": tokens}], SamplingParams(max_tokens=1, prompt_logprobs=0))
        llm.llm_engine.engine_core.shutdown()
    return torch.tensor([output.prompt_logprobs[i][tokens[i]].logprob for i in range(start, len(tokens))])
