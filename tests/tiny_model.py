"""A model small enough to check by hand, for tests in every folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parent.parent
since_torch_2_13 = pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="without data, torch below 2.13 has no bfloat16 product that gives float32"
)


def make_tiny_model(tied: bool = True, dtype: torch.dtype = torch.float64, vocabulary: int = 40):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        initializer_range=0.4,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config).to(dtype)
    if dtype == torch.float64:  # transformers' norm always computes in float32, which would hide errors below 1e-7
        for name, module in list(model.named_modules()):
            if type(module).__name__ == "Qwen2RMSNorm":
                exact = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=dtype)
                model.set_submodule(name, exact)
    return model
