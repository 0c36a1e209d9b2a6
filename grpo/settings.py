"""All settings: one typed tree, frozen once it is checked, and the layers that fill it.

The docstring under a field is its `--help` text. A preset holds only what differs from the defaults; a file of the
user's own and the command line are laid on top, in that order. A wrong setting raises UserError with one line: the
value, the limit and the nearest valid word.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import shlex
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from grpo.errors import UserError
from rewards import DEFAULT_WEIGHTS, weights_from_env


def expand_home(text: Any) -> Any:
    """Expands a leading ~ in each of the names between commas; returns anything but text unchanged."""
    return ",".join(map(os.path.expanduser, text.split(","))) if isinstance(text, str) else text


PathText = Annotated[str, BeforeValidator(expand_home)]
"""A path, or a name that may be one."""


EngineName = Literal["auto", "torch", "vllm"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class PolicyConfig(Section):
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision. auto: bfloat16 on a GPU, float32 on a CPU. float16 brings sampler and trainer closer
    (arXiv 2510.26788) but needs loss scaling, so it is not offered."""
    attention: Literal["auto", "varlen", "flash_attention_2", "sdpa"] = "auto"
    """auto: on a GPU in bfloat16, flash_attention_2 if installed, else varlen (torch's own kernels). A CPU and float32
    always use sdpa."""
    lora_rank: int = Field(0, ge=0)
    """Rank of the LoRA adapter on all linear layers. 0 trains all weights."""
    lora_alpha: float = Field(128.0, gt=0)
    """LoRA scaling: the adapter's product is multiplied by alpha / rank."""
    quant: Literal["none", "nf4", "auto"] = "none"
    """nf4: the frozen base under LoRA in 4-bit NormalFloat. auto: nf4 if the run does not fit otherwise."""
    gradient_checkpointing: bool | Literal["auto"] = False
    """Recompute each layer's activations in the backward pass: about a third more time, a fraction of the memory.
    auto: off if the run fits without it and is faster."""
    trust_remote_code: bool = False
    """Let a model repository run its own Python. Off unless you have read that code."""


class RolloutConfig(Section):
    engine: EngineName = "auto"
    """auto: vllm if it is installed and can run, else the plain PyTorch sampler."""
    prompts_per_step: int = Field(128, ge=1)
    """Problems drawn per step; each becomes one group."""
    group_size: int = Field(8, ge=2, le=65_536)
    """Completions per problem. At least 2: the advantage of a group of one is undefined."""
    resample_flat_groups: int = Field(0, ge=0, le=100)
    """DAPO's dynamic sampling: most resampling rounds per step. A round replaces groups of equal rewards with groups of
    other problems. 0: off. Of no use with a single problem."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Sampling temperature. The trainer divides its logits by it as well."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """A longer prompt is an error, never cut."""
    max_new_tokens: int = Field(3072, ge=1)
    """Tokens after which a completion is cut; it counts as truncated."""
    max_num_seqs: int = Field(512, ge=1)
    """Completions decoded at once; bounds the KV cache of the sampler."""
    logprob_diff_limit: float = Field(0.1, gt=0)
    """Stop when mean |sampler logprob - trainer logprob| passes this. Stale weights gave 0.2, bfloat16 0.01 to 0.03."""
    kv_gib: float | None = Field(None, gt=0)
    """vLLM: GiB of KV cache. none: what the memory plan leaves."""
    sleep: bool = True
    """vLLM on a GPU: hand the engine's memory to the learner between rollouts."""

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt with the longest completion."""
        return self.max_prompt_tokens + self.max_new_tokens

    @property
    def completions_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    @property
    def running_sequences(self) -> int:
        """Completions that are decoded at once."""
        return min(self.max_num_seqs, self.completions_per_step)


class RandomConfig(Section):
    needs_box: bool = False
    """Pay only completions with exactly one box, so that the format is still rewarded."""


class HybridConfig(Section):
    model: PathText = "nvidia/AceMath-7B-RM"
    """Folder or Hugging Face id of the sequence-classification reward model."""
    a: float = Field(0.5, ge=0, le=1)
    """A wrong answer gets -a + 2 a s, with s the reward model's score from 0 to 1. a + b is at most 1."""
    b: float = Field(0.5, ge=0, le=1)
    """A right answer gets 1 - b + 2 b s."""
    eps: float = Field(0.01, gt=0)
    """Added to the range of the warm-up's scores, by which s is scaled."""
    warmup: int = Field(1024, ge=1)
    """Completions sampled before training; their scores set the scale."""
    offload: bool = False
    """Keep the reward model in main memory between scorings."""


class RewardConfig(Section):
    name: str = "multi_signal"
    """multi_signal, verify_only, format_only, random, hybrid, or package.module:function."""
    alpha: float = Field(DEFAULT_WEIGHTS[0], ge=0)
    """Weight of verify: the answer equals the ground truth."""
    beta: float = Field(DEFAULT_WEIGHTS[1], ge=0)
    """Weight of format: the layout that reward.verifier expects."""
    gamma: float = Field(DEFAULT_WEIGHTS[2], ge=0)
    """Weight of reflect: the reflection's last verdict on the answer is true."""
    verifier: Literal["box", "last_number", "answer_tag"] = "box"
    """The answer, in training and in held-out figures: the last box (format: think, box and reflection, once each, in
    order), the last number (format: one box), or the last <answer> block (format: think, then answer)."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Processes that grade answers. auto: one for each core."""
    timeout_s: float = Field(2.0, gt=0)
    """Seconds of processor time one answer may take before its worker is killed and the answer counts as wrong."""
    budget_s: float | None = Field(120.0, gt=0)
    """Seconds of processor time that grading a step may take, over all workers. Answers still ungraded then count as
    outcome/over_budget, with verify and reflect 0. none: no limit."""
    parallel: int = Field(1, ge=1, le=1024)
    """package.module:function: calls at a time, in threads; raise it for a function that waits for a service."""
    call_limit_s: float | None = Field(None, gt=0)
    """package.module:function: seconds one call may take before the run stops with an error. none: no limit."""
    random: RandomConfig = RandomConfig()
    hybrid: HybridConfig = HybridConfig()


class LearnerConfig(Section):
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate. With LoRA the first steps are proportional to policy.lora_alpha x lr, whatever the rank;
    published RL runs use 3e-4 to 3e-3 for this product."""
    schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up. linear: decays to zero, reached one step after the last. Skipped steps count."""
    warmup: int = Field(0, ge=0)
    """Optimiser steps of linear warm-up: the first has lr / warmup."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW: decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW: decay of the second moment."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW: decoupled weight decay."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit keeps the moments in 8 bits (bitsandbytes): 6 bytes a parameter less."""
    grad_clip: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(0.2, gt=0)
    """The ratio is clipped above at 1 + clip_high (more than clip_low: DAPO's clip-higher). For gspo, ratios of whole
    completions, the paper uses 3e-4 and 4e-4."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the k3 KL penalty towards the reference. 0: no reference pass."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    advantage: Literal["grpo", "dr_grpo", "rloo", "maxrl", "none", "gdpo"] = "grpo"
    """grpo: (r - mean) / std of the group. dr_grpo: r - mean. rloo: r - mean of the others. maxrl: (r - mean) / mean,
    for rewards of at least 0. none: r. gdpo: each signal as in grpo, then weighted. docs/losses.md compares them."""
    loss: Literal["grpo", "gspo", "cispo", "reinforce"] = "grpo"
    """grpo: clipped ratio of each token. gspo: clipped ratio of the whole completion. cispo: log-probability times the
    clipped ratio. reinforce: log-probability. With one mini-batch per rollout all four have the same gradient."""
    loss_aggregation: Literal["token-mean", "seq-mean", "dr_grpo"] = "token-mean"
    """token-mean: mean over all completion tokens. seq-mean: mean of completion means. dr_grpo: sum / (completions x
    max_new_tokens)."""
    minibatches_per_rollout: int = Field(1, ge=1)
    """Optimiser steps per rollout, each on its own share of the problems. With 1 the ratio is exactly 1."""
    microbatch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = 16384
    """Tokens (prompt and completion) in a micro-batch; one longer sequence still goes alone. Changes memory and speed,
    not the result. auto: the fastest that fits, decided together with policy.gradient_checkpointing auto."""
    logit_chunk: int = Field(1024, ge=1)
    """Completion tokens whose logits are held at a time: the head's peak memory is logit_chunk x vocabulary."""
    skip_zero_variance: bool = False
    """Skip completions whose advantage is 0, such as those of groups with equal rewards: they have no gradient. They
    are missing from policy/* and logprob_diff/* as well. Needs kl_coef and entropy_coef 0."""
    mask_truncated: bool = False
    """Completions cut at max_new_tokens keep their place in the group's statistics but get no gradient."""
    sampler_correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "none"
    """Weight the policy loss by trainer / sampler probability, of each token or of the whole completion. Above the cap:
    truncate cuts the weight to it (token_truncate is TIS), mask sets it to 0."""
    sampler_correction_cap: float = Field(2.0, gt=0)
    """Largest weight of sampler_correction."""
    max_nonfinite_steps: int = Field(3, ge=1)
    """Steps in a row with a non-finite loss or gradient before the run stops. Each is skipped and counted."""


class EvalConfig(Section):
    every: int = Field(0, ge=0)
    """Evaluate every N steps, and before the first and after the last. 0: never."""
    data: tuple[PathText, ...] = ()
    """Validation problems for the curve during training: one set or several, with commas between. Takes the same names
    as eval.py's --bench: benchmarks, all, data files and datasets."""
    test: PathText | None = None
    """Problems scored once before and once after training, and not used otherwise."""
    sampling: Literal["both", "greedy"] = "both"
    """both: each problem once at the training temperature and once greedily. greedy: half the time."""
    limit: int | None = Field(None, ge=1)
    """Use only the first N problems of each file. The figures are then marked as smoke figures."""
    columns: str | None = None
    """Columns of prompt and ground truth in your own held-out data, as question,answer. none: the usual names."""

    @field_validator("data", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """A text is one name, or several with commas between."""
        if isinstance(value, str):
            value = [name for name in map(str.strip, value.split(",")) if name]
        return value


class CheckpointConfig(Section):
    every: int = Field(0, ge=0)
    """Steps between checkpoints. 0: only after the last."""
    keep: int = Field(2, ge=1)
    """Number of newest checkpoints to keep."""


def _share(value: Any) -> Any:
    return 0.0 if value == "error" else value


def _pairs(value: object) -> object:
    """'enable_thinking=false, level=2' -> {"enable_thinking": False, "level": 2}"""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",")]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise ValueError("NAME=VALUE, several with commas between: enable_thinking=false")
    return {name.strip(): yaml.safe_load(text) for name, _, text in pairs}


def _day(value: object) -> str:
    """YYYY-MM-DD of a day or of its text. Raises ValueError for anything else."""
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise ValueError("a day as 2026-11-29") from None


class BadRowsConfig(Section):
    limit: Annotated[float, BeforeValidator(_share)] = Field(0.05, ge=0, lt=1)
    """Skip unusable training rows up to this share of all rows. error, or 0: accept none."""


class Config(Section):
    """A whole run."""

    preset: str = "none"
    """The file of configs/ with the defaults."""
    model: PathText = "Qwen/Qwen2.5-Math-1.5B"
    """Folder or Hugging Face id of a causal language model."""
    data: PathText = "pi1_r128.parquet"
    """Training problems: a .parquet, .jsonl, .json or .csv file, a published set by its bare name, or a Hugging Face
    dataset as owner/name:configuration:split (a folder in that form, too)."""
    data_dir: PathText | None = None
    """Folder with local copies of the published data sets (also: GRPO_DATA_DIR)."""
    data_columns: str | None = None
    """Columns of prompt and ground truth, as question,answer. none: the usual names."""
    data_limit: int | None = Field(None, ge=1)
    """Train on the first N rows only."""
    prompt: PathText = "multi-signal"
    """System message: a name from prompts/ or a path to a text file. plain: none."""
    template_args: Annotated[dict[str, str | int | float | bool], BeforeValidator(_pairs)] = {}
    """Arguments of the model's chat template, as enable_thinking=false; several with commas between."""
    template_date: Annotated[str, BeforeValidator(_day)] = Field(default_factory=lambda: _day(date.today()))
    """The date given to chat templates that print today's date. A resumed run keeps its own."""
    mode: Literal["ultra-quick", "quick", "dry-run", "full"] = "full"
    """Limits the preset to 1, 15 or 58 steps with smaller batches and fewer held-out problems. full: no limit. Explicit
    settings override it."""
    steps: int = Field(500, ge=1, le=999_999)  # names of checkpoints have six digits
    """Training steps: one rollout each."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Determines data order, sampling and initialisation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if there is one. The presets cpu and laptop set cpu."""
    threads: int = Field(0, ge=0, le=1024)
    """torch's CPU threads. 0: torch's own choice. Beside another busy process, two are slower than one."""
    name: str | None = Field(None, pattern=r"^[\w-][\w.-]*$", max_length=100)
    """The run's folder is out/name. none: preset, data and time."""
    out: PathText = "runs"
    """Parent of the run folders."""
    quiet: bool = False
    """One line a step instead of a progress bar and samples."""
    show_every: int = Field(10, ge=1)
    """Show the best and the worst completion every N steps."""
    tracker: Literal["none", "wandb", "trackio", "tensorboard"] = "none"
    """Also log to Weights & Biases (offline without a key), to trackio or to TensorBoard (both on this machine)."""
    bad_rows: BadRowsConfig = BadRowsConfig()
    policy: PolicyConfig = PolicyConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


ENGINES: tuple[str, ...] = get_args(EngineName)[1:]
"""Without auto; each is grpo/engines/NAME_engine.py. auto prefers the later ones."""
MAPPINGS = {name for name, field in Config.model_fields.items() if get_origin(field.annotation) is dict}
"""Settings whose value is itself a mapping."""
PRESETS = Path(__file__).resolve().parent.parent / "configs"
MODES = {
    "ultra-quick": {"steps": 1, "rollout.prompts_per_step": 4, "rollout.group_size": 4, "eval.limit": 16},
    "quick": {"steps": 15, "rollout.prompts_per_step": 8, "rollout.group_size": 8, "eval.limit": 32},
    "dry-run": {"steps": 58, "rollout.prompts_per_step": 16, "rollout.group_size": 8, "eval.limit": 128},
    "full": {},
}
"""Upper limits that each mode places on the preset."""


# ---- layers


def build(preset: str | None, overrides: dict[str, Any]) -> Config:
    """The preset's settings within the limits of the mode, with the overrides on top; checked."""
    config = parse(_preset(preset)) if preset is not None else Config()
    values = flat(config)
    limits = MODES.get(str(overrides.get("mode", config.mode)), {})  # parse refuses a mode that does not exist
    return changed(config, {name: min(limit, values[name] or limit) for name, limit in limits.items()} | overrides)


def changed(config: Config, overrides: dict[str, Any]) -> Config:
    """The settings with these overrides (dotted name -> value or its text), checked again."""
    return parse(flat(config) | overrides)


def env_weights() -> dict[str, float]:
    """REWARD_WEIGHTS as dotted settings; empty if it is not set."""
    if "REWARD_WEIGHTS" not in os.environ:
        return {}
    try:
        return dict(zip(("reward.alpha", "reward.beta", "reward.gamma"), weights_from_env(), strict=True))
    except ValueError as error:
        raise UserError(str(error)) from None


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _preset(name: str) -> dict[str, Any]:
    names = preset_names()
    if name not in names:
        raise UserError(f"unknown preset {name!r}; there are {', '.join(names)}{nearest(name, names)}")
    settings = read_settings(PRESETS / f"{name}.yaml")
    for key in ("model", "data", "eval.data", "eval.test"):
        built_in = PRESETS.parent / settings.get(key, "")  # found from whatever folder the run is started in
        if key in settings and built_in.exists() and not Path(settings[key]).exists():
            settings[key] = str(built_in)
    return settings | {"preset": name}


# ---- YAML files


INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """YAML without its traps: no key twice, and only decimal numbers (to YAML, 010 is 8 and 1:30 is 90)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is set twice", key.start_mark)
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INT, FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(INT, re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    FLOAT, re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?(e[-+]?[0-9]+)?$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The named values of a YAML file. Raises UserError, with the line of a mistake in the YAML."""
    try:
        tree = _Loader(Path(path).read_text(encoding="utf-8-sig")).get_single_data()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        place = f"{path} line {error.problem_mark.line + 1}" if error.problem_mark else path
        raise UserError(f"{place}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a ValueError: not a date, or not UTF-8
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"{path} holds no settings; write them as in configs/cpu.yaml, one a line: steps: 60")
    return tree


def read_settings(path: str | Path) -> dict[str, Any]:
    """Dotted name -> value of a YAML file of settings. Raises UserError for a wrong name or value."""
    settings = dotted(read_yaml(path))
    try:
        _validate(settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return settings


# ---- one tree, and the dotted names of its leaves


def parse(settings: Mapping[str, Any]) -> Config:
    """A checked Config from settings in sections or with dotted names. Raises UserError with one line."""
    config = _validate(dotted(settings))
    if conflict := next(conflicts(config), None):
        raise UserError(conflict)
    return config


def _validate(settings: dict[str, Any]) -> Config:
    """The Config of dotted settings. Checks each one alone."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in fields():
            raise UserError(_not_a_setting(name, value))
        field = fields()[name]
        empty = None if type(None) in get_args(field.annotation) else field.default
        if value in ("none", "None", None) and empty in (None, (), {}):
            value = empty
        *sections, leaf = name.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[leaf] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(wrong_value(error)) from None


def conflicts(config: Config) -> Iterator[str]:
    """Yields a line for each pair of settings that are valid alone but exclude each other."""
    rollout, learner, policy = config.rollout, config.learner, config.policy
    if rollout.prompts_per_step % learner.minibatches_per_rollout:
        parts = f"learner.minibatches_per_rollout {learner.minibatches_per_rollout}"
        prompts = f"rollout.prompts_per_step {rollout.prompts_per_step}"
        yield f"{prompts} does not divide into {parts} equal parts; change one of them"
    if policy.quant != "none" and policy.lora_rank == 0:
        yield f"policy.quant is {policy.quant}, but 4-bit weights have no gradient; set policy.lora_rank 64"
    if learner.skip_zero_variance and (learner.kl_coef or learner.entropy_coef):
        terms = f"kl_coef {learner.kl_coef} and entropy_coef {learner.entropy_coef}"
        yield f"learner.skip_zero_variance drops groups that {terms} act on; set both to 0 or do not skip"
    if learner.loss == "gspo" and learner.sampler_correction.startswith("token"):
        mode = learner.sampler_correction.removeprefix("token")
        yield (
            f"learner.sampler_correction {learner.sampler_correction} weighs single tokens, but learner.loss gspo has "
            f"one ratio for a whole completion; use sequence{mode} or none"
        )
    if learner.advantage == "maxrl" and config.reward.name == "hybrid" and config.reward.hybrid.a > 0:
        yield (
            f"learner.advantage maxrl needs rewards of at least 0, but reward.hybrid.a {config.reward.hybrid.a} makes "
            "wrong answers negative; set reward.hybrid.a 0, or learner.advantage rloo"
        )
    if config.eval.every and not config.eval.data:
        yield f"eval.every is {config.eval.every}, but eval.data names no problems; name a set, or set eval.every 0"


def dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"reward": {"hybrid": {"a": 1}}} -> {"reward.hybrid.a": 1}, at any depth."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key not in MAPPINGS:
            leaves |= {f"{key}.{leaf}": leaf_value for leaf, leaf_value in dotted(value).items()}
        else:
            leaves[str(key)] = value
    return leaves


@cache
def fields(section: type[Section] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Dotted name -> pydantic field, for every leaf."""
    leaves: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.default, Section):
            leaves |= fields(type(field.default), f"{prefix}{name}.")
        else:
            leaves[prefix + name] = field
    return leaves


def flat(config: Config) -> dict[str, Any]:
    """Dotted name -> value, for every leaf."""
    return dotted(config.model_dump())


def short(config: Config) -> str:
    """One line: the preset and every setting that differs from it, as options."""
    plain = flat(Config() if config.preset == "none" else parse(_preset(config.preset)))
    words = [f"--{name} {shlex.quote(typed(value))}" for name, value in flat(config).items() if value != plain[name]]
    return " ".join([f"--preset {config.preset}", *words])


def typed(value: Any) -> str:
    """A value in the form that the command line takes."""
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    if isinstance(value, dict):
        return ",".join(f"{name}={typed(item)}" for name, item in value.items()) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


# ---- messages

OTHER_TRAINERS = Path(__file__).with_name("other_trainers.yaml")
WHOLE_DISTRIBUTION = ("top_p", "top_k", "min_p")
"""Settings of other trainers that this one cannot offer."""


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """The error for an unknown name: its name in this trainer, or the nearest existing one."""
    leaf = word.lstrip("-").rpartition(".")[2]
    if leaf in WHOLE_DISTRIBUTION:
        return f"there is no {kind} {word}: the whole distribution is sampled, because the loss differentiates it"
    same_leaf = [name for name in known if name.lstrip("-").rpartition(".")[2] == leaf]
    elsewhere = read_yaml(OTHER_TRAINERS)
    if leaf in elsewhere and not same_leaf:
        return f"{word} is {'--' if word.startswith('--') else ''}{elsewhere[leaf]} here"
    return f"unknown {kind} {word}{nearest(word, same_leaf, cutoff=0) or nearest(word, known)}"


def nearest(word: str, words: Iterable[str], cutoff: float = 0.4) -> str:
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _not_a_setting(name: str, value: Any) -> str:
    examples = [setting for setting in fields() if setting.startswith(f"{name}.")]
    if not examples:
        return unknown("setting", name, fields())
    if value is None:
        return f"{name}: is empty; write its settings below it, indented, or remove the line"
    return f"{name} is a section and not {reprlib.repr(value)}; set {examples[0]} or another of its settings"


def wrong_value(error: ValidationError) -> str:
    """The line about the first wrong setting: value, limit and nearest choice."""
    problems = [(_field_of(problem["loc"]), problem) for problem in error.errors()]
    name, first = problems[0]
    limits = [problem["msg"] for field, problem in problems if field == name]  # a field of several types has several
    limit = " or ".join(limits).replace("Input should be", "it must be").replace("Value error, ", "it must be ")
    choices = re.findall("'(.*?)'", limit)
    return f"{name} is {reprlib.repr(first['input'])}; {limit}{nearest(str(first['input']), choices)}"


def _field_of(location: tuple[int | str, ...]) -> str:
    """The dotted name of the field with a problem; pydantic's location may continue inside the field."""
    path = ".".join(map(str, location))
    return next((name for name in fields() if f"{path}.".startswith(f"{name}.")), path)
