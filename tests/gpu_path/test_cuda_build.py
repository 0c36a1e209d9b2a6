"""The code that a GPU runs, without a GPU: vLLM's CUDA build on a faked platform (make test-gpu-path).

On a GPU vLLM takes another way than its CPU build: Model Runner V2, asynchronous scheduling, Triton's sampling kernels,
CUDA graphs, sleep. Here its configuration is made by the engine's own arguments, the kernels run under Triton's
interpreter, and the weights are handed over on CPU tensors. Not covered: the attention and graph kernels, and time.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import subprocess
from pathlib import Path

import pytest
import torch

from data.tiny_base import make_model, make_tokenizer
from grpo.engines import vllm_engine
from grpo.policy import load_policy
from grpo.settings import build, parse

pytestmark = pytest.mark.gpu_path
REPO = Path(__file__).resolve().parents[2]
GIB = 2**30
DRIVER_CALLS = (
    *("cuCtxGetCurrent", "cuCtxSetCurrent", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuGetErrorString"),
    *("cuGetProcAddress_v2", "cuMemAddressFree", "cuMemAddressReserve", "cuMemCreate", "cuMemGetAllocationGranularity"),
    *("cuMemMap", "cuMemRelease", "cuMemSetAccess", "cuMemUnmap", "cuPointerGetAttribute", "cuTensorMapEncodeTiled"),
)
"""what vLLM's libraries want of libcuda.so.1; each answers 100: no device"""


@pytest.fixture(scope="module")
def cuda_platform(tmp_path_factory):
    """vLLM's CUDA platform as on an L4 (8.9) or, with .capability changed, on another GPU."""
    versions = [d.version for d in importlib.metadata.distributions(name="vllm")]
    if not versions or "cpu" in versions[0] or os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs vLLM's CUDA build and Triton's interpreter: make test-gpu-path")
    folder = tmp_path_factory.mktemp("driver")
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    source.write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in DRIVER_CALLS))
    command = ["cc", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}

    from vllm import platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class FakePlatform(CudaPlatformBase):
        capability = (8, 9)

        @classmethod
        def get_device_capability(cls, device_id: int = 0):
            return DeviceCapability(*cls.capability)

        @classmethod
        def get_device_name(cls, device_id: int = 0):
            return "NVIDIA L4"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0):
            return 22 * GIB

        @classmethod
        def is_fully_connected(cls, device_ids):
            return True

        @classmethod
        def log_warnings(cls):
            pass

    platforms._current_platform = FakePlatform()
    return FakePlatform


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A Qwen2 with a tied head, as the presets' model has one."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), make_tokenizer()
    made = make_model(tokenizer, seed=1)
    assert made.config.tie_word_embeddings
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def vllm_config(monkeypatch, folder: Path, preset: str, **options):
    """vLLM's configuration from the preset's own arguments."""
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (20 * GIB, 22 * GIB))
    settings = {"model": str(folder), "policy.quant": "none", "rollout.kv_gib": 1.0} | options
    arguments = vllm_engine.engine_arguments(build(preset, settings), torch.device("cuda"))
    return EngineArgs(**arguments).create_engine_config()


@pytest.mark.parametrize(("preset", "capability"), [("l4", (8, 9)), ("h100", (9, 0)), ("l4-hour", (8, 9))])
def test_vllm_accepts_the_presets_arguments(cuda_platform, model, monkeypatch, preset, capability):
    monkeypatch.setattr(cuda_platform, "capability", capability)
    made = vllm_config(monkeypatch, model, preset)
    rollout = build(preset, {}).rollout
    assert made.use_v2_model_runner
    assert made.scheduler_config.async_scheduling
    assert made.model_config.logprobs_mode == "processed_logprobs"
    assert made.model_config.head_dtype is torch.float32
    assert made.model_config.dtype is torch.bfloat16
    assert made.model_config.enable_sleep_mode is rollout.sleep
    assert made.model_config.max_model_len == rollout.longest_sequence
    assert made.scheduler_config.max_num_seqs == rollout.running_sequences
    assert made.cache_config.enable_prefix_caching
    assert made.cache_config.kv_cache_memory_bytes == GIB
    assert made.compilation_config.cudagraph_mode.name == "FULL_AND_PIECEWISE"
    assert max(made.compilation_config.cudagraph_capture_sizes) >= min(rollout.running_sequences, 256)


@pytest.mark.parametrize("sequences", [512, 1024])
def test_every_batch_size_has_its_graph(cuda_platform, model, monkeypatch, sequences):
    made = vllm_config(monkeypatch, model, "h100", **{"rollout.max_num_seqs": sequences})
    assert max(made.compilation_config.cudagraph_capture_sizes) == sequences


def test_the_sampling_kernels_draw_what_they_report(cuda_platform):
    """Temperature, Gumbel noise and log-probabilities of 1,000 tokens: shares within 4 standard errors, 0.06."""
    from vllm.v1.worker.gpu.sample.gumbel import apply_temperature, gumbel_sample
    from vllm.v1.worker.gpu.sample.logprob import compute_token_logprobs

    count, temperature = 1000, 0.6
    z = torch.tensor([1.0, 0.3, -0.5, -2.0]).repeat(count, 1)
    logits, rows = z.clone(), torch.zeros(count, dtype=torch.int32)
    scale, seed = torch.tensor([temperature]), torch.tensor([7])
    apply_temperature(logits, rows, scale)
    assert torch.equal(logits, z / temperature)
    options = {"apply_temperature": False, "is_drafting": False}
    tokens = gumbel_sample(logits, rows, scale, seed, torch.arange(count), **options)
    expected = torch.softmax(z[0] / temperature, -1)
    shares = torch.bincount(tokens, minlength=4) / count
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all(), (shares, expected)
    reported = compute_token_logprobs(logits, tokens[:, None])[:, 0]
    torch.testing.assert_close(reported, torch.log_softmax(z / temperature, -1).gather(1, tokens[:, None])[:, 0])
    few = slice(0, 100)
    again = gumbel_sample(logits[few], rows[few], scale, seed, torch.arange(100), **options)
    assert torch.equal(tokens[few], again)  # the noise is a function of seed and position
    other = gumbel_sample(logits[few], rows[few], scale, seed + 1, torch.arange(100), **options)
    assert (tokens[few] != other).float().mean() > 0.2


@pytest.mark.parametrize("lora", [0, 4])
def test_reloading_puts_every_weight_in_its_place(cuda_platform, model, monkeypatch, lora):
    """Twice, with a tied head and a merged adapter: bit for bit what the policy hands over, at unchanged addresses."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.model_loader.reload.inplace import reload_weights
    from vllm.model_executor.model_loader.utils import initialize_model

    made = vllm_config(monkeypatch, model, "l4")
    made.device_config.device = torch.device("cpu")
    policy = load_policy(
        parse({"model": str(model), "policy": {"dtype": "bfloat16", "lora_rank": lora}}), torch.device("cpu")
    )
    with set_current_vllm_config(made):
        if not torch.distributed.is_initialized():
            init = "tcp://127.0.0.1:29531"
            parallel_state.init_distributed_environment(1, 0, init, 0, backend="gloo")
            parallel_state.initialize_model_parallel()
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        sampler = initialize_model(made)
        torch.set_default_dtype(default)
        names = vllm_engine.checkpoint_names(sampler)
        places = {name: p.data_ptr() for name, p in sampler.named_parameters()}
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in policy.trainable().values():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            weights = dict(policy.sampler_weights())
            assert set(weights) == names
            reload_weights(made, sampler, iter(weights.items()), None, True)
            assert places == {name: p.data_ptr() for name, p in sampler.named_parameters()}
            assert sampler.lm_head.weight is sampler.model.embed_tokens.weight
            assert torch.equal(
                sampler.model.embed_tokens.weight[: len(weights["model.embed_tokens.weight"])],
                weights["model.embed_tokens.weight"],
            )
            layer = sampler.model.layers[0]
            parts = [weights[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
            assert torch.equal(layer.self_attn.qkv_proj.weight, torch.cat(parts))
            parts = [weights[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up")]
            assert torch.equal(layer.mlp.gate_up_proj.weight, torch.cat(parts))
            assert torch.equal(layer.mlp.down_proj.weight, weights["model.layers.0.mlp.down_proj.weight"])
