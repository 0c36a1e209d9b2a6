"""The sizes that memory and time depend on: `ModelShape` of a model, `RunShape` of a run's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from grpo import hub
from grpo.engines.base import EngineCosts, kv_elements
from grpo.errors import UserError, first_line
from grpo.plan.hardware import KNOWN, Hardware
from grpo.settings import Config, flat


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model's weights, from its configuration."""

    config: PreTrainedConfig
    parameters: int
    """a tied head counted once"""
    linear: tuple[tuple[int, int], ...]
    """(in, out) of every linear layer but the head: what LoRA adapts and NF4 packs"""

    @property
    def text(self) -> PreTrainedConfig:
        return self.config.get_text_config()

    @property
    def context(self) -> int | None:
        """The longest sequence that the model was made for."""
        return getattr(self.text, "max_position_embeddings", None)

    @property
    def attention_width(self) -> int:
        """Heads x head dimension; not always the hidden size (Qwen3)."""
        c = self.text
        head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return c.num_attention_heads * head

    @property
    def kv_elements(self) -> int:
        """Keys and values of one token in all layers."""
        return kv_elements(self.text)

    @property
    def key_width(self) -> int:
        """Key heads x head dimension."""
        return self.kv_elements // (2 * self.text.num_hidden_layers)

    @property
    def linear_elements(self) -> int:
        return sum(n_in * n_out for n_in, n_out in self.linear)

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter of `rank` on all linear layers."""
        return sum(rank * (n_in + n_out) for n_in, n_out in self.linear)


@cache
def model_shape(name: str, trust_remote_code: bool = False) -> ModelShape:
    """From a model built on the meta device, where tensors have no data. Raises UserError without a configuration."""
    config = model_config(name, trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    linear = (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    parameters = sum(p.numel() for p in model.parameters())
    return ModelShape(config, parameters, tuple((m.in_features, m.out_features) for m in linear))


def model_config(name: str, trust_remote_code: bool = False, known: bool = True) -> PreTrainedConfig:
    """From a folder, the cache, hardware.yaml (unless not `known`), or the hub, in this order; an adapter's base's."""
    name = hub.base_of(name)
    try:
        return _completed(AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=trust_remote_code))
    except (OSError, ValueError):
        if known and name in KNOWN["models"]:
            return AutoConfig.for_model(**KNOWN["models"][name])
    hub.require([name])
    try:
        return _completed(AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the configuration of the model {name}: {first_line(error)}; give a folder with config.json, "
            "or a Hugging Face id and a network"
        ) from error


def _completed(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with the sizes that older families (GPT-2, BLOOM) lack: a key head for each head, and
    feed-forward layers four times as wide as the model."""
    text = config.get_text_config()
    if getattr(text, "num_key_value_heads", None) is None:
        text.num_key_value_heads = text.num_attention_heads
    if getattr(text, "intermediate_size", None) is None:
        text.intermediate_size = getattr(text, "n_inner", None) or 4 * text.hidden_size
    return config


@dataclass(frozen=True, slots=True)
class RunShape:
    """The settings that decide memory and time, by the last part of their names."""

    engine: EngineCosts
    element: int
    """bytes of a number in compute precision"""
    sleep: bool
    """the engine gives its memory back while the learner works"""
    older: int
    """evaluated steps whose weights alone are kept"""
    steps: int
    prompts_per_step: int
    group_size: int
    max_prompt_tokens: int
    max_new_tokens: int
    max_num_seqs: int
    kv_gib: float | None
    lora_rank: int
    quant: str
    gradient_checkpointing: bool
    optimizer: str
    kl_coef: float
    entropy_coef: float
    minibatches_per_rollout: int
    microbatch_tokens: int
    logit_chunk: int
    offload: bool
    """of hybrid's reward model"""
    keep: int
    keep_sums: bool
    """LoRA: W + s B A is kept from pass to pass while the learner works"""

    @classmethod
    def of(cls, config: Config, hardware: Hardware, engine: EngineCosts) -> RunShape:
        """auto counts as its mildest value: checkpointing on, micro-batches of one sequence, whole weights."""
        both = math.lcm(config.eval.every, config.checkpoint.every)  # 0: one of them never happens
        bf16 = config.policy.dtype == "bfloat16" or (config.policy.dtype == "auto" and not hardware.is_cpu)
        tokens, longest = config.learner.microbatch_tokens, config.rollout.longest_sequence
        values = {name.rpartition(".")[2]: value for name, value in flat(config).items()} | {
            "engine": engine,
            "keep_sums": False,
            "element": 2 if bf16 else 4,
            "sleep": config.rollout.sleep and engine.sleeps and not hardware.is_cpu,
            "older": max(0, config.steps // both - config.checkpoint.keep) if both else 0,
            "gradient_checkpointing": config.policy.gradient_checkpointing is not False,
            "microbatch_tokens": longest if tokens == "auto" else max(tokens, longest),
        }
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def longest_sequence(self) -> int:
        return self.max_prompt_tokens + self.max_new_tokens

    @property
    def completions(self) -> int:
        """of a step"""
        return self.prompts_per_step * self.group_size

    @property
    def running(self) -> int:
        """Completions that are decoded at once."""
        return min(self.max_num_seqs, self.completions)

    @property
    def prompt_tokens(self) -> float:
        return expected(self.max_prompt_tokens)

    @property
    def new_tokens(self) -> float:
        return expected(self.max_new_tokens)


def expected(limit: int) -> float:
    """Tokens that prompts or completions are assumed to have before any is seen: a quarter of a long limit, all of a
    short one."""
    return min(limit, max(48, limit / 4))
