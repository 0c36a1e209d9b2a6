"""The same work by this trainer and by TRL's GRPOTrainer, in turns, and the ratio of their times.

    python benchmarks/versus_trl.py --trl-python ENV/bin/python [--case step|ragged|vocabulary] [--rounds 5]
    python benchmarks/versus_trl.py --trl-python ENV/bin/python --case laptop --model models/smollm2 --rounds 10

ENV has torch, transformers, peft and trl from PyPI. Both trainers use the same model, prompts, group size, number of
completion tokens and OMP_NUM_THREADS threads (1 unless set), each in a process of its own. The cases:

step        1M parameters, 16 problems x 8 completions x 64 tokens, EOS ignored: whole steps
ragged      the same model, 4 x 16 completions, lognormal lengths (mean 100, at most 512): the learner alone
vocabulary  151,936 tokens, hidden 256, 4 layers, 4 x 8 completions x 256 tokens, EOS ignored: whole steps, peak memory
laptop      preset laptop: LoRA on a real model, its reward, each trainer's own sampler, TRL with micro-batches of 16
            completions; also the seconds of training until half of the other products are right
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import torch
import tyro
from execnet import Channel
from transformers import AutoTokenizer

from benchmarks import common
from benchmarks.common import DEVICE, PROBLEMS, Stopwatch
from grpo.advantage import compute_advantages
from grpo.chat_template import ChatTemplate
from grpo.engines.base import SamplingParams, make_engine
from grpo.evaluation.benchmarks import load
from grpo.learner import Learner
from grpo.packing import to_training_samples
from grpo.policy import load_policy
from grpo.problems import training_problems
from grpo.rollout import decode, draw, rollout, score
from grpo.settings import Config, build, parse
from grpo.types import Problem
from rewards import make_reward
from rewards.adapters import reward_func

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
HALF = 0.5


@dataclass(frozen=True)
class Case:
    size: str
    problems: int
    group: int
    tokens: int
    ragged_mean: float | None = None
    """mean of lognormal lengths; None: all completions have `tokens` tokens, or stop at EOS with a preset"""
    preset: str | None = None
    trl_micro_batch: int | None = None
    """completions that pass TRL's model at once; None: all"""

    @property
    def lengths(self) -> list[int]:
        return common.lognormal_lengths(self.problems * self.group, self.ragged_mean, self.tokens)

    def config(self, model: str) -> Config:
        if self.preset:
            return build(self.preset, {"model": model})
        rollout = {"prompts_per_step": self.problems, "group_size": self.group, "max_new_tokens": self.tokens}
        rollout["logprob_diff_limit"] = 1e9  # the random completions of a ragged case come from no sampler
        learner = {"logit_chunk": 128, "microbatch_tokens": 4096}
        return parse({"model": model, "data": PROBLEMS, "rollout": rollout, "learner": learner})


CASES = {
    "step": Case("1m", 16, 8, 64),
    "ragged": Case("1m", 4, 16, 512, ragged_mean=100),
    "vocabulary": Case("vocabulary", 4, 8, 256),
    "laptop": Case("", 4, 8, 40, preset="laptop", trl_micro_batch=16),
    "tiny": Case("tiny", 2, 4, 6),
    "tiny-ragged": Case("tiny", 2, 4, 12, ragged_mean=5),
}


@dataclass
class Options:
    trl_python: str = sys.executable
    """the Python of an environment with trl"""
    case: str = "step"
    model: str | None = None
    """a model's folder, for laptop; the other cases create their own"""
    rounds: int = 5


def figures(watch: Stopwatch, config: Config, tokenizer, write: Callable[[list[Problem]], Sequence[str]]) -> dict:
    """A step's seconds and, with a preset, the share of its test problems that the texts of `write` solve."""
    row = watch.read()
    if config.preset == "none":
        return row
    problems = load(config.eval.test, ChatTemplate.of_run(config, tokenizer), config.prompt)
    with closing(make_reward("multi_signal", verifier=config.reward.verifier, workers=1)) as reward:
        scores = reward.score_batch(write(problems), [problem.ground_truth for problem in problems])
    return row | {"accuracy": fmean(score.correct for score in scores)}


def ours(channel: Channel, name: str, model: str) -> None:
    """Answers each message with the figures of one step of this trainer."""
    torch.set_num_threads(THREADS)
    case = CASES[name]
    config = case.config(model)
    policy = load_policy(config, DEVICE)
    tokenizer = policy.tokenizer
    learner = Learner(policy, config)
    engine = make_engine(config, DEVICE)
    problems, _ = training_problems(config, tokenizer)
    reward = make_reward(**config.reward.model_dump() | {"workers": 1})
    sampling = SamplingParams(case.tokens, config.rollout.temperature, ignore_eos=not case.preset)
    random = case.ragged_mean and common.make_samples(case.lengths, case.group, 17, 96)
    engine.sync(policy)

    def whole_step(step: int) -> None:
        """train.py's step without its records."""
        drawn = draw(problems, case.problems, config.seed, step)
        groups = rollout(engine, drawn, case.group, sampling, config.seed, step)
        scores = score(reward, groups, decode(tokenizer, groups))
        advantages = compute_advantages(scores, reward.weights, config.learner.advantage)
        learner.update(to_training_samples(groups, advantages, config.learner.mask_truncated))
        engine.sync(policy)

    def write(problems: list[Problem]) -> list[str]:
        return [text for (text,) in decode(tokenizer, rollout(engine, problems, 1, sampling, config.seed))]

    channel.send("ready")
    for step, _ in enumerate(channel, start=1):
        watch = Stopwatch()
        learner.update(random) if random else whole_step(step)
        channel.send(figures(watch, config, tokenizer, write))


def trl_settings(case: Case, lr: float) -> dict[str, Any]:
    """Arguments of TRL's GRPOConfig: its defaults, except where the work would differ."""
    micro_batch = case.trl_micro_batch or case.problems * case.group
    return {
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": case.problems * case.group // micro_batch,
        "num_generations": case.group,
        "max_completion_length": case.tokens,
        "generation_kwargs": {} if case.preset else {"min_new_tokens": case.tokens},
        "learning_rate": lr,
        "lr_scheduler_type": "constant",
        "max_steps": 1000,
        "gradient_checkpointing": DEVICE.type == "cuda",
        "bf16": DEVICE.type == "cuda",
        "use_cpu": DEVICE.type == "cpu",
        "model_init_kwargs": {"dtype": "float32"},
        "logging_steps": 10**6,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def trl(channel: Channel, name: str, model: str) -> None:
    """Answers each message with the figures of one step of TRL."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(THREADS)
    case = CASES[name]
    config = case.config(model)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    problems, _ = training_problems(config, tokenizer)
    rank, alpha = config.policy.lora_rank, config.policy.lora_alpha
    adapter = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")

    def random_completions(prompts: list[str], trainer) -> dict:
        """Replaces sampling by random completions of this trainer's lengths."""
        ids = [torch.randint(3, 90, (length,)).tolist() for length in case.lengths]
        return {"prompt_ids": tokenizer(prompts)["input_ids"], "completion_ids": ids, "logprobs": None}

    @torch.no_grad()
    def write(problems: list[Problem]) -> list[str]:
        prompts = tokenizer([problem.prompt for problem in problems], return_tensors="pt", padding=True)
        ids = trainer.model.generate(**prompts, do_sample=True, top_k=0, max_new_tokens=case.tokens)
        return tokenizer.batch_decode(ids[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)

    class Trainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            outputs = super()._generate_and_score_completions(inputs)
            if case.ragged_mean:
                turns.watch = Stopwatch()  # the learner alone
            return outputs

    class Turns(TrainerCallback):
        def on_train_begin(self, *_, **__):
            channel.send("ready")

        def on_step_begin(self, *_, **__):
            channel.receive()
            self.watch = Stopwatch()

        def on_step_end(self, *_, **__):
            channel.send(figures(self.watch, config, tokenizer, write))

    turns = Turns()
    rows = [{"prompt": problem.prompt, "ground_truth": problem.ground_truth} for problem in problems]
    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(
            model=model,
            reward_funcs=reward_func(make_reward(**config.reward.model_dump() | {"workers": 1})),
            args=GRPOConfig(output_dir=out, **trl_settings(case, config.learner.lr)),
            train_dataset=Dataset.from_list(rows * case.problems),
            processing_class=tokenizer,
            peft_config=adapter if rank else None,
            callbacks=[turns],
            rollout_func=random_completions if case.ragged_mean else None,
        )
        trainer.train()


def seconds_until_half(rows: pd.DataFrame) -> pd.Series:
    """Each side's seconds of training until half of the test problems are right; NaN: they never are."""
    spent = rows.groupby("side", sort=False)["seconds"].cumsum()
    return spent.where(rows["accuracy"] >= HALF).groupby(rows["side"], sort=False).min()


def measure(options: Options, model: str) -> pd.DataFrame:
    pythons = {"ours": sys.executable, "trl": options.trl_python}
    sides = {
        name: common.start_side(python, f"versus_trl.{name}", options.case, model) for name, python in pythons.items()
    }
    preset = CASES[options.case].preset
    if not preset:
        common.take_turns(sides, 1, {})  # warms up
    rows = common.take_turns(sides, options.rounds, {})
    table = common.compare(rows)
    print(table.to_string())
    if preset:
        print(seconds_until_half(pd.DataFrame(rows)).to_string())
    return table


def main(argv: list[str]) -> pd.DataFrame:
    options = tyro.cli(Options, args=argv, description=__doc__)
    case = CASES[options.case]
    if case.preset and not options.model:
        sys.exit("--case laptop needs --model, the folder of a real model")
    with tempfile.TemporaryDirectory() as folder:
        return measure(options, options.model or common.save_model(common.make_config(case.size), Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
