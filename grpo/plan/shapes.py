"""The sizes that memory and time depend on: `ModelShape` of a model, `RunShape` of a run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from grpo import hub
from grpo.engines.base import Engine, kv_elements
from grpo.plan.hardware import KNOWN, Hardware
from grpo.policy import load_config
from grpo.settings import Config


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model."""

    parameters: int
    """a tied head counted once"""
    body: int
    """parameters without a head of its own"""
    linear: tuple[tuple[int, int], ...]
    """(in, out) of every linear layer but the head: what LoRA adapts and NF4 packs"""
    layers: int
    hidden: int
    inner: int
    """width of the feed-forward layers"""
    queries: int
    """heads x head dimension; not always the hidden size (Qwen3)"""
    kv_elements: int
    """keys and values of one token in all layers"""
    vocabulary: int
    context: int | None
    """the longest sequence that the model was made for"""

    @property
    def linear_elements(self) -> int:
        return sum(n_in * n_out for n_in, n_out in self.linear)

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter of `rank` on all linear layers."""
        return sum(rank * (n_in + n_out) for n_in, n_out in self.linear)


@cache
def model_shape(name: str, trust_remote_code: bool = False) -> ModelShape:
    """The shape of a model built on the meta device, without data. Raises UserError without a configuration."""
    config = model_config(name, trust_remote_code)
    with torch.device("meta"):
        return shape_of(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))


def shape_of(model: PreTrainedModel) -> ModelShape:
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    linear = (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        body=sum(p.numel() for p in model.base_model.parameters()),
        linear=tuple((m.in_features, m.out_features) for m in linear),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,  # older families do not write it
        queries=text.num_attention_heads * head_width,
        kv_elements=kv_elements(text),
        vocabulary=text.vocab_size,
        context=getattr(text, "max_position_embeddings", None),
    )


def model_config(name: str, trust_remote_code: bool = False, known: bool = True) -> PreTrainedConfig:
    """The configuration, from hardware.yaml (if `known`), a folder, cache or hub; an adapter has its base's."""
    name = hub.base_of(name)
    if known and name in KNOWN["models"] and not Path(name).is_dir():
        return AutoConfig.for_model(**KNOWN["models"][name])
    hub.require([name])
    return load_config(name, trust_remote_code)


@dataclass(frozen=True)
class RunShape:
    """A run of `config`, in which nothing is auto, with `model` and `engine` on `hardware`."""

    config: Config
    model: ModelShape
    hardware: Hardware
    engine: type[Engine]
    reward_model: ModelShape | None = None
    """of the hybrid reward"""
    keep_sums: bool = False
    """LoRA: keep W + s B A between the passes of a step"""

    @property
    def element(self) -> int:
        """Bytes of a number in compute precision."""
        dtype = self.config.policy.dtype
        return 4 if dtype == "float32" or (dtype == "auto" and self.hardware.is_cpu) else 2

    @property
    def lora(self) -> bool:
        return self.config.policy.lora_rank > 0

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return self.model.adapter(self.config.policy.lora_rank) if self.lora else self.model.parameters

    @property
    def sleep(self) -> bool:
        """True if the engine releases its memory while the learner works."""
        return self.config.rollout.sleep and self.engine.costs.sleeps and not self.hardware.is_cpu

    @property
    def microbatch_tokens(self) -> int:
        """Tokens of a micro-batch, at least the longest sequence."""
        tokens = self.config.learner.microbatch_tokens
        assert tokens != "auto"
        return max(tokens, self.config.rollout.longest_sequence)

    @property
    def completions(self) -> int:
        """Completions of a step."""
        return self.config.rollout.prompts_per_step * self.config.rollout.group_size

    @property
    def prompt_tokens(self) -> float:
        return expected(self.config.rollout.max_prompt_tokens)

    @property
    def new_tokens(self) -> float:
        return expected(self.config.rollout.max_new_tokens)


def expected(limit: int) -> float:
    """Assumed tokens of prompts or completions before any is seen: a quarter of a long limit, all of a short one."""
    return min(limit, max(48, limit / 4))
