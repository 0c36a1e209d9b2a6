"""One torch thread for every test: two threads beside another busy process are several times slower than one."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)
REPO = Path(__file__).resolve().parent.parent
BESIDE = REPO.parent / "shared" / "data" / "one-shot-rlvr"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data-dir", help="folder with the One-Shot RLVR data sets (see python -m data list)")


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    """The real data sets, which are never committed: --data-dir, $GRPO_DATA_DIR, or the folder beside the checkout."""
    named = request.config.getoption("--data-dir") or os.environ.get("GRPO_DATA_DIR")
    folder = Path(named) if named else BESIDE
    if not folder.is_dir():
        pytest.skip("no real data: pass --data-dir DIR or set GRPO_DATA_DIR (python -m data fetch gets it)")
    return folder


@pytest.fixture
def tiny_model():
    """A two-layer float64 Qwen2 with random weights and a 40-token vocabulary; every call of it gives the same one."""
    return make_tiny_model()


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
