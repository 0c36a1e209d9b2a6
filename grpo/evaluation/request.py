"""The options of eval.py. Imports neither torch nor transformers, so help and mistakes are answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from grpo.cli import Parser
from grpo.errors import UserError
from grpo.evaluation import benchmarks
from grpo.settings import EngineName, Section, wrong_value
from rewards.signals import AnswerFrom

Names = Annotated[tuple[str, ...], BeforeValidator(lambda text: tuple(text.split(",")))]
SUBJECTS = ("model", "run", "list", "regrade", "compare")
"""Options that exclude each other"""
SETTINGS = {
    "template_args": "template_args", "template_date": "template_date", "data_dir": "data_dir",
    "verifier": "reward.verifier", "columns": "eval.columns",
}  # fmt: skip
"""Option -> the run's setting that it changes"""


class EvalRequest(Section):
    """Options of eval.py. Defaults: those of the model's run, else the paper's."""

    bench: Names = ()
    """Benchmarks (--list shows them), data files or Hugging Face data sets, with commas between [held-out sets of
    --run]."""
    model: Names = ()
    """Folder, adapter, checkpoint or id; several with commas between [Qwen/Qwen2.5-Math-1.5B]."""
    run: Path | None = None
    """A run's folder: its base model and every checkpoint, in one table and one plot."""
    list: bool = False
    """List the benchmarks with size and source."""
    regrade: Path | None = None
    """Grade the saved outputs under this folder again, without a model."""
    compare: tuple[Path, Path] | None = None
    """Two evaluations A B: the paired difference B - A, and the problems that flipped."""
    columns: str | None = None
    """Columns of prompt and ground truth in your own data, as question,answer [usual names]."""
    samples: int | None = Field(None, ge=1, le=10**4)
    """Completions per problem [the paper's: 1, and 8 for aime24, aime25, amc23]."""
    temperature: float | None = Field(None, ge=0, le=10)
    """0 is greedy [the benchmark's for its own number of samples, else 0.6 for several and 0 for one]."""
    max_new_tokens: int | None = Field(None, ge=1, le=10**6)
    """A longer completion is cut [the paper's: 3072; the run's on its own sets]."""
    prompts: Names = ()
    """Names from prompts/ or text files [the run's, else qwen25-math-cot; plain for arithmetic]."""
    template_args: str | None = None
    """Arguments of the chat template, as enable_thinking=false [the run's]."""
    template_date: str | None = None
    """The day that the chat template writes [the run's, else today]."""
    verifier: AnswerFrom | None = None
    """Where the answer is read: box, last_number or answer_tag [the run's, else box]."""
    audit_contamination: bool = False
    """Show the model 60% of each question and count exact continuations."""
    engine: EngineName = "auto"
    """auto: vllm if it is installed and can run, else torch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if there is one."""
    trust_remote_code: bool = False
    """Let a model run its own Python. Off unless you have read that code."""
    limit: int | None = Field(None, ge=1)
    """Only the first N problems; the figure is marked as a smoke figure."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the samples and of fresh_arithmetic's calculations."""
    data_dir: str | None = None
    """Folder with the benchmark files [$GRPO_DATA_DIR, else downloaded once]."""
    out: Path = Path("evals")
    """Where the results go."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a run that the request changes."""
        values = {setting: getattr(self, option) for option, setting in SETTINGS.items()}
        return {setting: value for setting, value in values.items() if value is not None}


def read_request(argv: Sequence[str], description: str | None) -> EvalRequest:
    """The checked options. Raises UserError with one line for a wrong one."""
    cli = Parser(prog="eval.py", description=description, argument_default=argparse.SUPPRESS)
    subjects = cli.add_mutually_exclusive_group()
    for name, field in EvalRequest.model_fields.items():
        words = [f"--{name.replace('_', '-')}", *(["--prompt"] if name == "prompts" else [])]
        kind: dict[str, Any] = {"action": "store_true"} if field.annotation is bool else {"metavar": "X"}
        if name == "compare":
            kind = {"nargs": 2, "metavar": ("A", "B")}
        group = subjects if name in SUBJECTS else cli
        group.add_argument(*words, dest=name, help=str(field.description).replace("%", "%%"), **kind)
    try:
        request = EvalRequest(**vars(cli.parse_args(argv)))
    except ValidationError as error:
        raise UserError(f"--{wrong_value(error)}") from None
    if not any(getattr(request, name) for name in ("bench", *SUBJECTS[1:])):
        raise UserError("which benchmark? For example --bench math500; --list shows all")
    if request.audit_contamination and (request.samples or request.temperature or request.prompts):
        raise UserError("--audit-contamination is greedy and has no prompt: no --samples, --temperature, --prompts")
    return request.model_copy(update={"bench": tuple(benchmarks.names(request.bench))})
