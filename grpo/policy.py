"""The model that is trained: tokenizer, precision, LoRA, 4-bit base, reference, and the weights for a sampler."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
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
from grpo.errors import UserError, first_line
from grpo.linear import packs, product
from grpo.logprob import addmm, token_logprobs
from grpo.packing import Batch
from grpo.settings import Config

FILES = "give a folder with config.json and tokenizer.json, or a Hugging Face id and a network"
TRUST = (
    "read that code, then allow it on the command line: --policy.trust_remote_code true (train.py), "
    "--trust-remote-code (eval.py and tools)"
)
RMS_NORMS = ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


class Policy:
    """A causal LM with packed attention and one head for trainer and sampler, so that their log-probabilities match."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: Config | None = None,
        adapter: str | None = None,
        digest: str = "",
    ):
        """`adapter`: the folder of the LoRA adapter to continue. `digest`: SHA-256 of the starting weights."""
        config = config or Config()
        settings = config.policy
        _check_vocabulary(model, tokenizer)
        self.network = model
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids(tokenizer, model.generation_config)
        self.device = model.device
        self.dtype = model.dtype
        self.logit_chunk = config.learner.logit_chunk
        self.digest = digest
        self.quant = settings.quant
        self.logit_scale = logit_scale(model.config)
        self.lora = settings.lora_rank > 0
        # The reference of a LoRA policy is the policy with the adapter off; all weights need a frozen copy.
        copied = config.learner.kl_coef > 0 and not self.lora
        self._reference = copy.deepcopy(model).requires_grad_(False) if copied else None
        # The module that is trained: the network itself, or PEFT's wrapper around it.
        self.model = model
        if adapter:
            self.model = lora.open_adapter(model, adapter, settings.lora_rank, settings.lora_alpha)
        elif self.lora:
            self.model = lora.add_lora(model, settings.lora_rank, settings.lora_alpha)
        self.model.train()
        self.own_attention = model.config._attn_implementation
        self.kernel = attention.kernel(self.device.type, self.dtype, settings.attention)
        self.attention_note = attention.note(self.kernel, settings.attention, self.device.type)
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
        """[N] log-probability of each completion token at `temperature`; [N] entropy in nats, or None."""
        network = network or self.network
        hidden = self.hidden(network, batch)
        head = network.get_output_embeddings()
        weight = head.weight.to(hidden.dtype)
        bias = getattr(head, "bias", None)
        temperature = temperature / self.logit_scale
        return token_logprobs(hidden, weight, batch.targets, temperature, self.logit_chunk, with_entropy, bias)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, H] last hidden states -> [B, V] logits for a sampler: at least float32, as the trainer's own.

        The head's bias and the model's logit scale are in them; the temperature is not.
        """
        head = self.network.get_output_embeddings()
        if packs(head.weight):
            return head(hidden) if self.logit_scale == 1 else head(hidden).mul_(self.logit_scale)
        logits = hidden.new_empty(len(hidden), len(head.weight), dtype=torch.promote_types(hidden.dtype, torch.float32))
        addmm(logits, hidden, head.weight.T, beta=0, alpha=self.logit_scale)
        if (bias := getattr(head, "bias", None)) is not None:
            logits.add_(bias, alpha=self.logit_scale)
        return logits

    @torch.no_grad()
    def ref_logprobs(self, batch: Batch, temperature: float) -> torch.Tensor:
        """[N] log-probabilities under the reference, the weights before training: LoRA's base, or a frozen copy of all
        weights, which exists if learner.kl_coef is not 0."""
        if self.lora:
            with self.model.disable_adapter():
                return self.logprobs(batch, temperature, False)[0]
        if self._reference is None:
            raise RuntimeError("no reference was kept, because learner.kl_coef was 0 when the policy was made")
        return self.logprobs(batch, temperature, False, self._reference)[0]

    def hidden(self, network: PreTrainedModel, batch: Batch) -> torch.Tensor:
        """[N, H] input of the head: the last hidden state where each completion token is predicted."""
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
    def own_forward(self) -> Iterator[PreTrainedModel]:
        """The network as transformers wrote it, with its own attention and norms; for unpacked sequences."""
        fused = [module for module in self.network.modules() if is_rms_norm(module) and "forward" in vars(module)]
        for module in fused:
            del module.forward
        self.network.set_attn_implementation(self.own_attention)
        try:
            yield self.network
        finally:
            self.network.set_attn_implementation(attention.NAME)
            if fused:
                fuse_norms(self.network)

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Prepares the policy's own network for sampling: eval mode, LoRA's sums and packed weights computed once."""
        forwards = {}
        self.network.eval()
        try:
            for module, weight, bias in self._products():
                multiply = product(weight, bias)
                forwards[module] = vars(module).get("forward")
                module.forward = multiply
            yield
        finally:
            for module, forward in forwards.items():
                del module.forward
                if forward:
                    module.forward = forward
            self.network.train()

    def _products(self) -> Iterator[tuple[torch.nn.Module, torch.Tensor, torch.Tensor | None]]:
        """(layer, weight, bias) of the layers for which `sampling` replaces the product."""
        for name, module in self.network.named_modules():
            if isinstance(module, LoraLayer):
                yield module, lora.merged(module), module.base_layer.bias
            elif type(module) is torch.nn.Linear and packs(module.weight) and not lora.is_part(name):
                yield module, module.weight, module.bias

    def keep_sums(self) -> None:
        """Computes LoRA's sums once per optimiser step instead of three times per micro-batch, at the cost of one
        more copy of the linear layers."""
        lora.keep_sums(self.network, True)

    def update_retention(self) -> float:
        """The share of the adapter's change that survives rounding; 1 where nothing is rounded."""
        return lora.update_retention(self.model) if self.dtype is torch.bfloat16 else 1.0

    @torch.no_grad()
    def sampler_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, weight) of the plain model that samples as this policy does.

        LoRA is merged and a 4-bit base dequantised, as the policy's own passes do. A tied head is also yielded under
        its own name: vLLM's CPU build keeps a packed copy of it, and would sample with the new body and the old head.
        """
        for name, tensor in self.network.named_parameters(remove_duplicate=False):
            if ".lora_" in name:
                continue
            if name.endswith(".base_layer.weight"):
                layer = self.network.get_submodule(name.removesuffix(".base_layer.weight"))
                tensor = lora.merged(layer)
                layer.kept = None  # otherwise memory holds it twice while sampling
            yield name.replace(".base_layer", ""), tensor.detach().to(self.dtype)

    def save(self, folder: Path) -> None:
        """Hugging Face layout: a model or a PEFT adapter, with tokenizer and generation config."""
        if self.lora:
            adapter = self.model.peft_config[lora.ADAPTER]
            adapter.target_modules = sorted(adapter.target_modules)  # a set's order differs from process to process
            # PEFT would ask the hub whether the vocabulary has grown; no embedding is ever trained here.
            self.model.save_pretrained(folder, save_embedding_layers=False)
            if self.digest:
                base = adapter.base_model_name_or_path
                hub.write_origin(folder, base, self.digest, str(self.dtype).removeprefix("torch."), self.quant)
        else:
            self.model.save_pretrained(folder)
        self.network.generation_config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_policy(config: Config, device: torch.device) -> Policy:
    """The policy that a run starts from. UserError for a model that cannot be loaded.

    `config.model` may be an adapter: a LoRA run continues it, and where all weights are trained it is merged first. The
    reference of a continued adapter is its base.
    """
    disable_progress_bar()  # a run has its own
    settings = config.policy
    base = hub.base_of(config.model)
    tokenizer = load_tokenizer(config.model, settings.trust_remote_code)
    dtype = compute_dtype(config, device)
    if settings.lora_rank:
        if hub.read_origin(config.model).get("quant", settings.quant) != settings.quant:
            raise UserError(f"{config.model} was trained with another policy.quant than {settings.quant}; use that one")
        model = load_model(base, dtype, device, settings.quant, settings.trust_remote_code)
        hub.check_base(config.model)
    else:
        model = load_plain(config.model, dtype, device, settings.trust_remote_code)
    digest = hub.weights_digest(base)  # not earlier: loading may have brought the base from the hub
    if base != config.model and not settings.lora_rank:
        digest += hub.weights_digest(config.model)
    torch.manual_seed(config.seed)  # the adapter's initialisation
    adapter = config.model if settings.lora_rank and base != config.model else None
    return Policy(model, tokenizer, config, adapter, digest)


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The precision of the policy and its sampler: never float16, whatever the model's files have."""
    if config.policy.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.policy.dtype)


def load_plain(
    name: str, dtype: torch.dtype | None, device: torch.device, trusted: bool = False, quant: str = "none"
) -> PreTrainedModel:
    """Loads the weights that the policy computes with, as plain tensors in `dtype` (None: as trained).

    An adapter of this trainer is merged by the policy's own sum, in the precision and on the (dequantised) base that it
    was trained with. PEFT merges any other. `quant` is the precision of a base that is not an adapter.
    """
    origin = hub.read_origin(name)
    base = hub.base_of(name)
    quant = origin.get("quant", quant)
    trained = getattr(torch, origin["dtype"]) if origin else dtype
    model = load_model(base, trained, device, quant, trusted)
    hub.check_base(name)
    if quant == "nf4":
        model = model.dequantize()
    if origin:
        model = lora.merge(lora.open_adapter(model, name))
    elif base != name:
        model = PeftModel.from_pretrained(model, name).merge_and_unload()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # PEFT froze the base
        if trained is not dtype and dtype:  # and no buffer: RoPE's frequencies stay in float32
            parameter.data = parameter.data.to(dtype)
    return model


def load_model(
    name: str, dtype: torch.dtype | None, device: torch.device, quant: str = "none", trusted: bool = False
) -> PreTrainedModel:
    """A model of transformers in `dtype` (None: as its files have it). UserError if it cannot be loaded."""
    options: dict[str, Any] = {"dtype": dtype or "auto", "trust_remote_code": trusted}
    try:
        options["config"] = without_dropout(load_config(name, trusted))
        if quant == "nf4":
            nf4: dict[str, Any] = {
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_compute_dtype": dtype,
                "bnb_4bit_use_double_quant": True,
            }
            options |= {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **nf4), "device_map": {"": device}}
        model = AutoModelForCausalLM.from_pretrained(name, **options)
    except (OSError, ValueError, LookupError, TypeError, ImportError, SafetensorError) as error:
        raise UserError(f"cannot load the model {name}: {first_line(error)}") from error
    return model if quant == "nf4" else model.to(device)


def load_config(name: str, trusted: bool = False) -> PreTrainedConfig:
    """The configuration of a model in a folder, the cache or on the hub. UserError if it cannot be read."""
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trusted)
    except (OSError, ValueError, LookupError, TypeError, ImportError) as error:
        problem = f"cannot read the configuration of the model {name}: {first_line(error)}"
        raise UserError(f"{problem}; {_cure(error)}") from error


def _cure(error: Exception) -> str:
    """By the words of transformers, which raises ValueError for all of these."""
    cures = {
        "trust_remote_code": TRUST,
        "not recognize this architecture": "use another model, or a newer transformers",
    }
    return next((cure for words, cure in cures.items() if words in str(error)), FILES)


def generation_config(name: str) -> GenerationConfig | None:
    """The model's generation config, None if it has none."""
    try:
        return GenerationConfig.from_pretrained(name)
    except OSError:
        return None


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    base = hub.base_of(name)
    hub.require([base])
    try:
        if not (Path(name) / "tokenizer_config.json").is_file():  # an adapter's own may have another chat template
            name = base
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        if not tokenizer("0", add_special_tokens=False)["input_ids"]:  # transformers: the file is missing
            raise ValueError("there is no tokenizer in it, only a model")
        return tokenizer
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read model and tokenizer from {name}: {first_line(error)}; {_cure(error)}") from error


def logit_scale(config: PreTrainedConfig) -> float:
    """The factor that the model puts on its head's output: Cohere multiplies by it, Granite divides."""
    text = config.get_text_config()
    return (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    name = model.config.name_or_path or model.config.model_type
    if model.get_output_embeddings() is None:
        raise UserError(f"{name} has no output head: it is not a causal language model")
    largest = max(tokenizer.get_vocab().values(), default=0)
    rows = len(model.get_input_embeddings().weight)
    if largest >= rows:
        raise UserError(
            f"the tokenizer of {name} has token ids up to {largest}, but the model has embeddings for {rows} tokens; "
            "call resize_token_embeddings on the model and save it, or use the tokenizer that it came with"
        )


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """Returns the configuration with every dropout and router jitter at 0: the first ratio must be 1.

    Called before the model is built: some models store the number and pass it to F.dropout.
    """
    for section in {id(part): part for part in (config, config.get_text_config())}.values():
        random = [name for name in vars(section) if "drop" in name or "jitter" in name]
        for name in random:
            if type(getattr(section, name)) is float:
                setattr(section, name, 0.0)
    return config


def fuse_norms(network: torch.nn.Module) -> None:
    """RMSNorm in one kernel instead of six passes over memory, rounded to bfloat16 once.

    The models' own code rounds before the multiplication with the weight and again after it.
    """
    for module in network.modules():
        if is_rms_norm(module):
            module.forward = partial(_rms_norm, module)


def is_rms_norm(module: torch.nn.Module) -> bool:
    return type(module).__name__ in RMS_NORMS


def _rms_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)
