"""All settings: one typed tree, frozen once it is checked, and how it is filled.

The docstring under a field is its `--help` text. A preset holds only what differs from the defaults; a file of the
user's own and the command line are laid on top, in that order. A wrong setting is one UserError line that names the
nearest valid word.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable, Iterator
from datetime import date
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from grpo.errors import UserError
from rewards import weights_from_env


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class PolicyConfig(Section):
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision. auto: bfloat16 on a GPU, float32 on a CPU. float16 is reported to bring sampler and trainer
    closer (arXiv 2510.26788); it needs loss scaling, which is not built here, and is not offered."""
    attention: Literal["auto", "varlen", "flash_attention_2", "sdpa"] = "auto"
    """auto: flash_attention_2 where flash-attn is installed, else varlen (torch's own kernels on a GPU, an exact
    per-sequence loop on a CPU), else sdpa."""
    lora_rank: int = Field(0, ge=0)
    """Rank of the LoRA adapter on all linear layers. 0 trains all weights."""
    lora_alpha: float = Field(128.0, gt=0)
    """LoRA scaling: the adapter's product is multiplied by alpha / rank."""
    quant: Literal["none", "nf4", "auto"] = "none"
    """nf4: the frozen base under LoRA in 4-bit NormalFloat. auto: nf4 where the memory plan does not fit without."""
    gradient_checkpointing: bool | Literal["auto"] = False
    """Recompute each layer's activations in the backward pass: about a third more time, a fraction of the memory.
    auto: off where the memory plan fits without and is faster."""
    trust_remote_code: bool = False
    """Let a model repository run its own Python. Off unless you have read that code."""


class RolloutConfig(Section):
    engine: Literal["auto", "torch", "vllm"] = "auto"
    """auto: vllm where it is installed and can run, else the plain PyTorch sampler."""
    prompts_per_step: int = Field(128, ge=1)
    """Problems drawn per step; each becomes one group."""
    group_size: int = Field(8, ge=2, le=65_536)
    """Completions per problem. At least 2: the advantage of a group of one is undefined."""
    temperature: float = Field(1.0, gt=0, le=10)
    """The sampling temperature. The trainer's logprobs are of logits / temperature as well."""
    top_p: float = 1.0
    """Only 1: the loss differentiates the full distribution, so that is what must be sampled."""
    top_k: int = 0
    """Only 0 (off), for the same reason."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """A longer prompt is an error, never cut."""
    max_new_tokens: int = Field(3072, ge=1)
    """A completion that gets this long is cut and counted as truncated."""
    max_num_seqs: int = Field(512, ge=1)
    """Completions decoded at once; bounds the KV cache of the sampler."""
    logprob_diff_limit: float = Field(0.1, gt=0)
    """Stop when mean |sampler logprob - trainer logprob| passes this. Stale weights gave 0.2, clean bfloat16 0.03."""
    kv_gib: float | None = Field(None, gt=0)
    """vLLM: GiB of KV cache. none: what the memory plan leaves."""
    sleep: bool = True
    """vLLM on a GPU: hand the engine's memory to the learner between rollouts."""

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt with the longest completion."""
        return self.max_prompt_tokens + self.max_new_tokens

    @property
    def running_sequences(self) -> int:
        """Completions that are decoded at once."""
        return min(self.max_num_seqs, self.prompts_per_step * self.group_size)


class RewardConfig(Section):
    name: str = "multi_signal"
    """multi_signal, verify_only, format_only, random, hybrid, or package.module:function."""
    alpha: float = Field(1.0, ge=0)
    """Weight of verify: the answer equals the ground truth."""
    beta: float = Field(0.5, ge=0)
    """Weight of format: the layout that goes with reward.verifier."""
    gamma: float = Field(0.5, ge=0)
    """Weight of reflect: the last verdict word of the reflection on the own answer is true."""
    verifier: Literal["box", "last_number", "answer_tag"] = "box"
    """What the answer is, in training and in held-out figures: the last box (format: think, box and reflection, once
    each, in order), the last number (format: one box), or the last <answer> block (format: think, then answer)."""
    workers: int = Field(2, ge=1)
    """Verifier processes."""
    timeout_s: float = Field(2.0, gt=0)
    """Seconds of processor time one answer may take before its worker is killed and the answer counts as wrong."""
    random_needs_box: bool = False
    """random: nothing without exactly one box, so that the coin keeps the format alive."""
    call_limit_s: float | None = Field(None, gt=0)
    """package.module:function: seconds one call may take before the run stops and says so; none is no limit."""
    model: str = "nvidia/AceMath-7B-RM"
    """hybrid: the sequence-classification reward model."""
    hybrid_a: float = Field(0.5, ge=0, le=1)
    """hybrid: a wrong answer gets -a + 2 a s, with s the reward model's opinion from 0 to 1. a + b is at most 1."""
    hybrid_b: float = Field(0.5, ge=0, le=1)
    """hybrid: a right answer gets 1 - b + 2 b s."""
    hybrid_eps: float = Field(0.01, gt=0)
    """hybrid: added to the range of the warm-up's scores, by which s is scaled."""
    hybrid_warmup: int = Field(1024, ge=1)
    """hybrid: completions sampled before training whose scores set the scale."""
    hybrid_offload: bool = False
    """hybrid: keep the reward model in main memory between scorings."""


class LearnerConfig(Section):
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate. With LoRA the step goes with policy.lora_alpha x lr, whatever the rank; published RL runs use
    3e-4 to 3e-3 for this product."""
    schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: constant, or linear: falls by equal amounts, and would be zero one step after the last. A
    skipped step counts."""
    warmup: int = Field(0, ge=0)
    """Optimiser steps over which the rate rises from zero."""
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
    """Weight of the k3 KL to the reference. 0 runs no reference pass."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    advantage: Literal["grpo", "dr_grpo", "rloo", "maxrl", "none", "gdpo"] = "grpo"
    """grpo: (r - mean) / std of the group. dr_grpo: r - mean. rloo: r - mean of the others. maxrl: (r - mean) / mean,
    for rewards of at least 0. none: r. gdpo: each signal as in grpo, then weighted. docs/losses.md compares them."""
    loss: Literal["grpo", "gspo", "cispo", "reinforce"] = "grpo"
    """grpo: clipped ratio of each token. gspo: clipped ratio of the whole completion. cispo: log-probability times the
    clipped ratio. reinforce: log-probability. With one minibatch per rollout all four have the same gradient."""
    loss_aggregation: Literal["token-mean", "seq-mean", "dr_grpo"] = "token-mean"
    """token-mean: mean over all completion tokens. seq-mean: mean of completion means. dr_grpo: sum / (completions x
    max_new_tokens)."""
    minibatches_per_rollout: int = Field(1, ge=1)
    """Optimiser steps per rollout, each on its own share of the problems. With 1 the ratio is exactly 1."""
    microbatch_tokens: int = Field(16384, ge=1)
    """Tokens (prompt and completion) in a micro-batch; one longer sequence still goes alone. Changes memory and speed,
    not the result."""
    logit_chunk: int = Field(1024, ge=1)
    """Completion tokens whose logits exist at a time: chunk x vocabulary is the peak of the head."""
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
    """Evaluate every so many steps, and before the first and after the last. 0: never."""
    data: tuple[str, ...] = ()
    """Problems for the curve during training (validation): one set or several, with commas between. What eval.py takes
    as --bench: the names of benchmarks, all, .parquet and .jsonl files."""
    test: str | None = None
    """Problems scored once before and once after training, and used for nothing else."""
    sampling: Literal["both", "greedy"] = "both"
    """both: each problem once at the training temperature and once greedily. greedy: half the time."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many problems of each file: a smoke figure, and marked as one."""
    columns: str | None = None
    """Columns of prompt and ground truth in files and data sets of one's own, as question,answer. none: found by their
    usual names."""

    @field_validator("data", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """A text is one name, or several with commas between."""
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


class CheckpointConfig(Section):
    every: int = Field(0, ge=0)
    """Save every so many steps. 0: only after the last."""
    keep: int = Field(2, ge=1)
    """Keep the newest so many."""


def _share(value: Any) -> Any:
    return 0.0 if value == "error" else value


def _pairs(value: object) -> object:
    """'enable_thinking=false, level=2' -> {"enable_thinking": False, "level": 2}"""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",")]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise ValueError("expected NAME=VALUE, several with commas between: enable_thinking=false")
    return {name.strip(): yaml.safe_load(text) for name, _, text in pairs}


def _day(value: object) -> str:
    """YYYY-MM-DD of a day or of its text. Raises ValueError for anything else."""
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise ValueError("expected a day as 2026-11-29") from None


class BadRowsConfig(Section):
    limit: Annotated[float, BeforeValidator(_share)] = Field(0.05, ge=0, lt=1)
    """Share of the training rows that may be left out because they cannot be used. error, or 0: none."""


class Config(Section):
    """A whole run."""

    preset: str = "none"
    """Which file of configs/ the defaults come from."""
    model: str = "Qwen/Qwen2.5-Math-1.5B"
    """Folder or Hugging Face id of a causal language model."""
    data: str = "pi1_r128.parquet"
    """Training problems: a .parquet, .jsonl or .json file, a published set by its bare name, or a Hugging Face dataset
    as owner/name:configuration:split (a folder in that form, too)."""
    data_dir: str | None = None
    """Folder with local copies of the published data sets (also: GRPO_DATA_DIR)."""
    data_columns: str | None = None
    """Columns of prompt and ground truth, as question,answer. none: found by their usual names."""
    data_limit: int | None = Field(None, ge=1)
    """Train on the first so many rows only."""
    prompt: str = "multi-signal"
    """System message: a name from prompts/ or a path to a text file. plain: none."""
    template_args: Annotated[dict[str, str | int | float | bool], BeforeValidator(_pairs)] = {}
    """Arguments of the model's chat template, as enable_thinking=false; several with commas between."""
    template_date: Annotated[str, BeforeValidator(_day)] = Field(default_factory=lambda: _day(date.today()))
    """The day that a chat template which writes the date takes for today. A run keeps the day of its start."""
    mode: Literal["ultra-quick", "quick", "dry-run", "full"] = "full"
    """How much of the preset: 1, 15, 58 or all of its steps, the short ones with fewer problems and completions each.
    What is set beside it wins."""
    steps: int = Field(500, ge=1)
    """Rollouts to train on."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Data order, sampling and initialisation follow from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one. The presets cpu and laptop set cpu."""
    threads: int = Field(0, ge=0, le=1024)
    """torch's CPU threads. 0: torch's own choice. Two threads beside another busy process are slower than one."""
    name: str | None = Field(None, pattern=r"^[\w-][\w.-]*$", max_length=100)
    """The run's folder is out/name. none: preset, data and time."""
    out: str = "runs"
    """Where run folders are made."""
    quiet: bool = False
    """One line a step instead of a progress bar and samples."""
    show_every: int = Field(10, ge=1)
    """Steps between showing one good and one bad completion."""
    tracker: Literal["none", "wandb", "trackio"] = "none"
    """Also log to Weights & Biases (offline without a key) or to trackio (on this machine)."""
    bad_rows: BadRowsConfig = BadRowsConfig()
    policy: PolicyConfig = PolicyConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


ENGINES: tuple[str, ...] = get_args(RolloutConfig.model_fields["engine"].annotation)[1:]
"""Without auto; each is grpo/engines/NAME_engine.py. auto prefers the later ones."""
PRESETS = Path(__file__).resolve().parent.parent / "configs"
MODES = {
    "ultra-quick": {"steps": 1, "rollout.prompts_per_step": 4, "rollout.group_size": 4, "eval.limit": 16},
    "quick": {"steps": 15, "rollout.prompts_per_step": 8, "rollout.group_size": 8, "eval.limit": 32},
    "dry-run": {"steps": 58, "rollout.prompts_per_step": 16, "rollout.group_size": 8, "eval.limit": 128},
    "full": {},
}
"""What a mode leaves of a preset, at most."""


# ---- layers


def build(preset: str | None, overrides: dict[str, Any]) -> Config:
    """The preset's file, as much of it as the mode leaves, and the overrides on top; checked."""
    config = parse(_preset(preset)) if preset is not None else Config()
    values = flat(config)
    limits = MODES.get(overrides.get("mode", config.mode), {})  # of a mode that does not exist the check will tell
    return changed(config, {name: min(limit, values[name] or limit) for name, limit in limits.items()} | overrides)


def changed(config: Config, overrides: dict[str, Any]) -> Config:
    """The same settings but for these (dotted name -> value, or the text of it), checked again."""
    return parse(flat(config) | overrides)


def env_weights() -> dict[str, float]:
    """REWARD_WEIGHTS as dotted settings; empty where it is not set."""
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
        built_in = PRESETS.parent / settings.get(key, "")  # seen from where the run is started
        if key in settings and built_in.exists() and not Path(settings[key]).exists():
            settings[key] = str(built_in)
    return settings | {"preset": name}


# ---- files


def read_settings(path: str | Path) -> dict[str, Any]:
    """Dotted name -> value of a YAML file; UserError where it holds no settings or one that does not exist."""
    settings, known = dotted(read_yaml(path)), fields()
    if strange := [name for name in settings if name not in known]:
        raise UserError(f"{path}: {unknown('setting', strange[0], known)}")
    return settings


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of named values; UserError with one line for anything else. A byte order mark is read over."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a ValueError: not UTF-8, or no date
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"{path} holds no settings; write them as in configs/cpu.yaml, one a line: steps: 60")
    return tree


# ---- one tree, and the dotted names of its leaves


def parse(settings: dict[str, Any]) -> Config:
    """A checked Config from settings in sections or with dotted names. Raises UserError with one line."""
    tree: dict[str, Any] = {}
    known = fields()
    for name, value in dotted(settings).items():
        if name not in known:
            raise UserError(unknown("setting", name, known))
        if value in ("none", None) and known[name].default in (None, (), {}):
            value = known[name].default
        section, _, leaf = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = value
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_one_line(error)) from None
    if conflict := next(conflicts(config), None):
        raise UserError(conflict)
    return config


def conflicts(config: Config) -> Iterator[str]:
    """A line for each pair of settings that are good by themselves and exclude each other."""
    r, o, p = config.rollout, config.learner, config.policy
    if r.top_p != 1 or r.top_k != 0:
        yield f"rollout.top_p is {r.top_p}, rollout.top_k {r.top_k}: leave them at 1 and 0; the loss assumes that"
    if r.prompts_per_step % o.minibatches_per_rollout:
        parts = f"learner.minibatches_per_rollout {o.minibatches_per_rollout}"
        prompts = f"rollout.prompts_per_step {r.prompts_per_step}"
        yield f"{prompts} does not divide into {parts} equal parts; change one of them"
    if p.quant != "none" and p.lora_rank == 0:
        yield f"policy.quant is {p.quant}, but 4-bit weights have no gradient; set policy.lora_rank 64 or quant none"
    if o.skip_zero_variance and (o.kl_coef or o.entropy_coef):
        terms = f"kl_coef {o.kl_coef} and entropy_coef {o.entropy_coef}"
        yield f"learner.skip_zero_variance drops groups that {terms} act on; set both to 0 or do not skip"
    if o.loss == "gspo" and o.sampler_correction.startswith("token"):
        mode = o.sampler_correction.removeprefix("token")
        yield (
            f"learner.sampler_correction {o.sampler_correction} weighs single tokens, but learner.loss gspo has one "
            f"ratio for a whole completion; use sequence{mode} or none"
        )
    if o.advantage == "maxrl" and config.reward.name == "hybrid" and config.reward.hybrid_a > 0:
        yield (
            f"learner.advantage maxrl needs rewards of at least 0, but reward.hybrid_a {config.reward.hybrid_a} makes "
            "wrong answers negative; set reward.hybrid_a 0, or learner.advantage rloo"
        )
    if config.eval.every and not config.eval.data:
        yield f"eval.every is {config.eval.every} but eval.data names no file"


def dotted(settings: dict[str, Any]) -> dict[str, Any]:
    """{"learner": {"lr": 1}} -> {"learner.lr": 1}"""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and key != "template_args":
            leaves |= {f"{key}.{leaf}": one for leaf, one in value.items()}
        else:
            leaves[str(key)] = value
    return leaves


@cache
def fields() -> dict[str, FieldInfo]:
    """Dotted name -> pydantic field, for every leaf."""
    return dotted(
        {
            name: getattr(field.annotation, "model_fields", field)  # a section has fields of its own
            for name, field in Config.model_fields.items()
        }
    )


def flat(config: Config) -> dict[str, Any]:
    """Dotted name -> value, for every leaf."""
    return {name: attrgetter(name)(config) for name in fields()}


def short(config: Config) -> str:
    """One line: the preset and whatever differs from it, as it would be typed."""
    plain = flat(Config() if config.preset == "none" else parse(_preset(config.preset)))
    words = [f"--{name} {typed(value)}" for name, value in flat(config).items() if value != plain[name]]
    return " ".join([f"--preset {config.preset}", *words])


def typed(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    if isinstance(value, dict):
        return ",".join(f"{name}={typed(item)}" for name, item in value.items()) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# ---- what is wrong, in one line


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """The line for a name that does not exist: its new name where it had another, else the nearest that does."""
    leaf = word.lstrip("-").rpartition(".")[2]
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]  # --lr: --learner.lr
    return f"unknown {kind} {word}{nearest(word, same_leaf, cutoff=0) or nearest(word, known)}"


def nearest(word: str, words: Iterable[str], cutoff: float = 0.4) -> str:
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    message = f"{name} is {reprlib.repr(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] == "literal_error":
        message += nearest(str(first["input"]), get_args(fields()[name].annotation))
    return message
