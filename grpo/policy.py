"""The model that is trained: tokenizer, precision, LoRA, 4-bit base, reference, and what a sampler needs of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from grpo import attention, hub, lora
from grpo.chat_template import stop_ids
from grpo.errors import UserError
from grpo.logprob import addmm, token_logprobs
from grpo.packing import Batch
from grpo.settings import Config

RMS_NORMS = ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
UNSUPPORTED = ("attn_logit_softcapping", "final_logit_softcapping")


class Policy:
    """A causal language model with everything that makes its log-probabilities differ from the sampler's taken out."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Config | None = None):
        config = config or Config()
        settings = config.policy
        _check_supported(model)
        _no_dropout(model)
        self.network, self.tokenizer, self.stop_ids = model, tokenizer, stop_ids(tokenizer, model.generation_config)
        self.device, self.dtype, self.logit_chunk = model.device, model.dtype, config.learner.logit_chunk
        self.logit_scale = logit_scale(model.config)
        self.lora = settings.lora_rank > 0
        # The reference of a LoRA policy is the policy with the adapter off; all weights need a frozen copy.
        copied = config.learner.kl_coef > 0 and not self.lora
        self._reference = copy.deepcopy(model).requires_grad_(False) if copied else None
        # What is trained: the network itself, or PEFT's wrapper around it.
        self.model = lora.add_lora(model, settings.lora_rank, settings.lora_alpha) if self.lora else model
        self.model.train()
        self.kernel = attention.kernel(self.device.type, self.dtype, settings.attention)
        self.attention_note = attention.LOST.get(self.kernel) if self.device.type == "cuda" else None
        for network in filter(None, (model, self._reference)):
            network.set_attn_implementation(attention.NAME)
            if self.device.type == "cuda" and self.dtype is torch.bfloat16:
                fuse_norms(network)
        if settings.gradient_checkpointing:  # not reentrant: that one gives no gradient to LoRA's first layers
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def logprobs(
        self, batch: Batch, temperature: float, with_entropy: bool = True, network: PreTrainedModel | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[N] log-probability of each completion token at `temperature`, [N] entropy in nats (else None)."""
        network = network or self.network
        hidden, head = self.hidden(network, batch), network.get_output_embeddings()
        temperature = temperature / self.logit_scale
        bias = getattr(head, "bias", None)
        return token_logprobs(hidden, head.weight, batch.targets, temperature, self.logit_chunk, with_entropy, bias)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, H] last hidden states -> [B, V] logits for a sampler: at least float32, as the trainer's own.

        The head's bias and the model's logit scale are in them; the temperature is not.
        """
        head = self.network.get_output_embeddings()
        logits = hidden.new_empty(len(hidden), len(head.weight), dtype=torch.promote_types(hidden.dtype, torch.float32))
        addmm(logits, hidden, head.weight.T, beta=0, alpha=self.logit_scale)
        if (bias := getattr(head, "bias", None)) is not None:
            logits.add_(bias, alpha=self.logit_scale)
        return logits

    @torch.no_grad()
    def ref_logprobs(self, batch: Batch, temperature: float) -> torch.Tensor:
        """[N] the same under the reference, the weights that training started from: LoRA's base, or the copy of all
        weights that is kept where learner.kl_coef is not 0."""
        if self.lora:
            with self.model.disable_adapter():
                return self.logprobs(batch, temperature, False)[0]
        if self._reference is None:
            raise RuntimeError("no reference was kept, because learner.kl_coef was 0 when the policy was made")
        return self.logprobs(batch, temperature, False, self._reference)[0]

    def hidden(self, network: PreTrainedModel, batch: Batch) -> torch.Tensor:
        """[N, H] what the head reads: the last hidden state where each completion token is predicted."""
        backbone = getattr(network, network.base_model_prefix)
        # use_cache=True, the default, would let packed sequences see each other.
        states = backbone(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            segments=batch.segments,
            packed_kernel=self.kernel,
        ).last_hidden_state[0]
        return states[batch.logit_positions]

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """For generating with the policy's own network: eval mode, and LoRA's sums made once."""
        self.network.eval()
        adapted = lora.layers(self.network) if self.lora else []
        try:
            for layer in adapted:
                layer.frozen = lora.merged(layer)
            yield
        finally:
            for layer in adapted:
                layer.frozen = None
            self.network.train()

    def arrived(self) -> float:
        """The share of the adapter's change that the rounded weights have; 1 where nothing is rounded."""
        return lora.arrived(self.model) if self.dtype is torch.bfloat16 else 1.0

    @torch.no_grad()
    def sampler_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, weight) of the plain model that samples as this policy does.

        LoRA is merged and a 4-bit base dequantised, as the policy's own passes do. A tied head comes under its own name
        as well, because a sampler may keep a copy of it.
        """
        for name, tensor in self.network.named_parameters(remove_duplicate=False):
            if ".lora_" in name:
                continue
            if name.endswith(".base_layer.weight"):
                tensor = lora.merged(self.network.get_submodule(name.removesuffix(".base_layer.weight")))
            yield name.replace(".base_layer", ""), tensor.detach().to(self.dtype)

    def save(self, folder: Path) -> None:
        """Hugging Face layout: a model or a PEFT adapter, with tokenizer and generation config."""
        if self.lora:
            adapter = self.model.peft_config[lora.ADAPTER]
            adapter.target_modules = sorted(adapter.target_modules)  # a set's order differs from process to process
            # PEFT would ask the hub whether the vocabulary has grown; no embedding is ever trained here.
            self.model.save_pretrained(folder, save_embedding_layers=False)
        else:
            self.model.save_pretrained(folder)
        self.network.generation_config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_policy(config: Config, device: torch.device) -> Policy:
    """The policy that a run starts from. Raises UserError for a model that cannot be loaded."""
    disable_progress_bar()  # the run has one of its own
    model, tokenizer = load_model(config, device)
    torch.manual_seed(config.seed)  # the adapter's initialisation
    return Policy(model, tokenizer, config)


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The policy's precision, and its sampler's: whatever the model's files say, never float16."""
    if config.policy.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.policy.dtype)


def load_model(config: Config, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    dtype, quant, trusted = compute_dtype(config, device), config.policy.quant, config.policy.trust_remote_code
    tokenizer = load_tokenizer(config.model, trusted)
    options = {"dtype": dtype, "trust_remote_code": trusted}
    try:
        if quant == "nf4":
            nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype, "bnb_4bit_use_double_quant": True}
            options |= {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **nf4), "device_map": {"": device}}
        model = AutoModelForCausalLM.from_pretrained(config.model, **options)
    except (OSError, ValueError, ImportError) as error:  # ImportError: bitsandbytes is missing
        raise UserError(f"cannot load the model {config.model}: {_first_line(error)}") from error
    return (model if quant == "nf4" else model.to(device)), tokenizer


def generation_config(name: str) -> GenerationConfig | None:
    """The model's generation config, None if it has none."""
    try:
        return GenerationConfig.from_pretrained(name)
    except OSError:
        return None


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    hub.require([name])
    try:
        AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        if not tokenizer("0", add_special_tokens=False)["input_ids"]:  # what transformers makes of a missing file
            raise ValueError("there is no tokenizer in it, only a model")
        return tokenizer
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot read model and tokenizer from {name}: {_first_line(error)}; "
            "give a folder with config.json and tokenizer.json, or a Hugging Face id and a network"
        ) from error


def logit_scale(config: PreTrainedConfig) -> float:
    """The factor that the model puts on its head's output: Cohere multiplies by it, Granite divides."""
    text = config.get_text_config()
    return (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)


def _check_supported(model: PreTrainedModel) -> None:
    text = model.config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    strange = [name for name in UNSUPPORTED if getattr(text, name, None) not in (None, 1, 1.0)]
    if layers != {"full_attention"} or strange or model.get_output_embeddings() is None:
        uses = ", ".join(sorted(layers - {"full_attention"}) + strange) or "no head"
        raise UserError(
            f"{model.config.model_type} uses {uses}, which packed training does not compute; use a model with plain "
            "causal attention (Qwen2, Qwen3, Llama)"
        )


def _no_dropout(model: PreTrainedModel) -> None:
    """Dropout would make the first ratio differ from 1. (Packed attention has none, whatever the settings say.)"""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def fuse_norms(network: torch.nn.Module) -> None:
    """RMSNorm in one kernel instead of six passes over memory, rounded to bfloat16 once.

    The models' own code rounds before the multiplication with the weight and again after it.
    """
    for module in network.modules():
        if type(module).__name__ in RMS_NORMS:
            module.forward = partial(_rms_norm, module)


def _rms_norm(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
