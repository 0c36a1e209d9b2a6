"""Tries every causal language model of transformers.

    python -m benchmarks.families > docs/measurements/2026-11-29-models.md
    python -m benchmarks.families llama mamba

Builds a tiny model with random weights of every causal-LM class and opens it as a run does, for sequences of at most 64
tokens (windows are 8 tokens). A model that passes the proof at load also writes greedy text, which has to be that of
transformers' own `generate`: an accepted model with another text is listed as WRONG, a crash outside of the proof as
TRACEBACK. Prints a table in Markdown. Exit code 1 where a model is WRONG or a TRACEBACK.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
import yaml
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from data.tiny_base import make_tokenizer
from grpo.engines.base import SamplingParams
from grpo.engines.torch_engine import TorchEngine
from grpo.errors import UserError, first_line
from grpo.model_check import prove
from grpo.policy import Policy, without_dropout
from grpo.settings import Config
from grpo.types import Request

VOCABULARY, LONGEST, MOST_PARAMETERS = 96, 64, 7_000_000
PROMPT, NEW_TOKENS = (5, 17, 33, 8, 61, 40), 24
SIZES: dict[int, list[str]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


class Row(NamedTuple):
    result: str
    """exact, refused, WRONG, TRACEBACK or not built"""
    note: str


def tiny_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with random weights that are large enough for every part of it to matter. ValueError: not built."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_buildable(family), dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 if len(parameter) == VOCABULARY else 1.2 * parameter.shape[-1] ** -0.5)
            elif "norm" not in name and "ln_" not in name:
                parameter.normal_(std=0.3)
        try:
            model(input_ids=torch.tensor([PROMPT]))
        except Exception as error:
            raise ValueError(first_line(error)) from error
    model.generation_config.eos_token_id = None
    return model.eval()


def _buildable(family: str) -> PreTrainedConfig:
    """The family's default configuration, made small. Numbers that it leaves open follow from the others or, where that
    does not build, are set as well."""
    errors = []
    for leave_open in (True, False):
        try:
            config = without_dropout(_small(CONFIG_MAPPING[family](), leave_open))
            with torch.device("meta"):
                size = AutoModelForCausalLM.from_config(copy.deepcopy(config)).num_parameters()
            if size <= MOST_PARAMETERS:
                return config
            errors.append(f"{size:,} parameters: it has sizes that this script does not know")
        except Exception as error:  # noqa: BLE001
            errors.append(first_line(error))
    raise ValueError(errors[0])


def _small(config: PreTrainedConfig, leave_open: bool) -> PreTrainedConfig:
    default = config.to_dict()
    small: dict[str, Any] = {name: size for size, names in SIZES.items() for name in names if name in default}
    small |= {name: 1 for name, value in default.items() if name.endswith("_token_id") and type(value) is int}
    kinds = default.get("layer_types")
    if kinds:
        small["layer_types"] = list(dict.fromkeys(kinds)) * 2
        small["num_hidden_layers"] = len(small["layer_types"])
    depth, layers = default.get("num_hidden_layers"), small.get("num_hidden_layers", 0)
    for name, value in default.items():  # lists with an entry for each layer
        if isinstance(value, list) and len(value) == depth and name != "layer_types":
            small[name] = value[:layers]
    if default.get("num_key_value_heads", 0) in (None, default.get("num_attention_heads")):
        small["num_key_value_heads"] = small.get("num_attention_heads")
    if leave_open:
        small = {name: value for name, value in small.items() if default[name] is not None}
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            small[name] = _small(part, leave_open)
    return type(config)(**small)


def survey(family: str) -> Row:
    try:
        model = tiny_model(family)
    except ValueError as error:
        return Row("not built", str(error))
    own = copy.deepcopy(model)
    try:
        policy = Policy(model, make_tokenizer(), Config())
        note = prove(policy, LONGEST)
    except UserError as error:
        return Row("refused", str(error))
    except Exception as error:  # noqa: BLE001
        return Row("TRACEBACK", f"{type(error).__name__}: {first_line(error)}")
    return Row("exact" if greedy(policy) == reference(own) else "WRONG", note)


def greedy(policy: Policy) -> list[int]:
    """Our sampler's greedy text."""
    engine = TorchEngine()
    engine.sync(policy)
    ((completion,),) = engine.generate([Request(PROMPT, 1, 0)], SamplingParams(NEW_TOKENS, 0.0, ignore_eos=True))
    return list(completion.ids)


def reference(model: PreTrainedModel) -> list[int]:
    """transformers' greedy text."""
    ids = torch.tensor([PROMPT])
    settings = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    written = model.generate(ids, settings, attention_mask=torch.ones_like(ids))
    return written[0, len(PROMPT) :].tolist()


def main(argv: Sequence[str]) -> int:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    print(f"# Every causal-LM class of transformers {transformers.__version__}\n\n{__doc__}")
    print("| family | result | differences or reason |\n|---|---|---|")
    for family in argv or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        row = survey(family)
        counts[row.result] += 1
        print(f"| {family} | {row.result} | {row.note.replace('|', '/')} |", flush=True)
    print("\n" + ", ".join(f"{count} {result}" for result, count in counts.items()))
    return int(counts["WRONG"] + counts["TRACEBACK"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
