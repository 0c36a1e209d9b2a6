"""The same work by this trainer and by TRL's GRPOTrainer, turn by turn, and the ratio of their times.

    python benchmarks/versus_trl.py --trl-python ENV/bin/python [--case step|ragged|vocabulary] [--rounds 5]
    python benchmarks/versus_trl.py --trl-python ENV/bin/python --case laptop --model models/smollm2 --rounds 10

ENV has torch, transformers, peft and trl from PyPI. Both train the same model on the same prompts, group and number of
completion tokens, with OMP_NUM_THREADS threads each (1 unless set), TRL in its own process. Each takes a step when it
is its turn and waits otherwise, so that other programs slow down both; the ratio is taken pair by pair.

step        1M parameters, 16 problems x 8 completions x 64 tokens, EOS ignored: whole steps
ragged      the same model, 4 x 16 completions, lognormal lengths (mean 100, at most 512): the learner alone
vocabulary  151,936 tokens, hidden 256, 4 layers, 4 x 8 completions x 256 tokens, EOS ignored: whole steps, peak memory
laptop      preset laptop: LoRA on a real model, its reward, each trainer's own sampler, TRL with micro-batches of 16
            completions; also the seconds of training until half of the other products are right
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import AutoTokenizer

from benchmarks import common
from benchmarks.common import DEVICE, PROBLEMS
from grpo.advantage import compute_advantages
from grpo.chat_template import ChatTemplate
from grpo.engines.base import SamplingParams, make_engine
from grpo.evaluation.benchmarks import load
from grpo.packing import to_training_samples
from grpo.policy import load_policy
from grpo.problems import training_problems
from grpo.rollout import decode, draw, rollout, score
from grpo.settings import Config, build
from grpo.validation import sample_groups
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
    ragged: bool = False
    mean: float = 100
    preset: str | None = None
    trl_micro_batch: int | None = None
    """completions that pass TRL's model at once; None: all"""

    @property
    def lengths(self) -> list[int]:
        return common.lognormal_lengths(self.problems * self.group, self.mean, self.tokens)

    def config(self, model: str) -> Config:
        changes = {
            "data": PROBLEMS,
            "rollout.engine": "torch",
            "rollout.prompts_per_step": self.problems,
            "rollout.group_size": self.group,
            "rollout.max_new_tokens": self.tokens,
            "learner.logit_chunk": 128,
            "policy.gradient_checkpointing": self.ragged and DEVICE.type == "cuda",
        }
        return build(self.preset, {"model": model} | ({} if self.preset else changes))


CASES = {
    "step": Case("1m", 16, 8, 64),
    "ragged": Case("1m", 4, 16, 512, ragged=True),
    "vocabulary": Case("vocabulary", 4, 8, 256),
    "laptop": Case("", 4, 8, 40, preset="laptop", trl_micro_batch=16),
    "h100": Case("1.5b", 4, 32, 3072, ragged=True, mean=700, trl_micro_batch=4),  # on a GPU only
    "tiny": Case("tiny", 2, 4, 6),
    "tiny-ragged": Case("tiny", 2, 4, 12, ragged=True, mean=5),
}


class Others:
    """The test problems of a preset, of which a model in training answers more and more."""

    def __init__(self, config: Config, tokenizer):
        self.problems = load(config.eval.test, ChatTemplate.of_run(config, tokenizer), config.prompt)
        self.reward = make_reward("multi_signal", verifier=config.reward.verifier, workers=1)

    def accuracy(self, texts: Sequence[str]) -> float:
        scores = self.reward.score_batch(texts, [problem.ground_truth for problem in self.problems])
        return fmean(score.signals["verify"] for score in scores)


class Ours:
    """This trainer, a step at a time, in this process."""

    def __init__(self, case: Case, model: str, microbatch_tokens: int):
        torch.set_num_threads(THREADS)
        self.case, self.config, self.steps = case, case.config(model), 0
        self.policy = load_policy(self.config, DEVICE)
        self.learner = common.make_learner(self.policy, self.config)
        self.learner.microbatch_tokens = microbatch_tokens
        self.problems, _ = training_problems(self.config, self.policy.tokenizer)
        self.others = Others(self.config, self.policy.tokenizer) if case.preset else None
        options = self.config.reward.model_dump() | {"workers": 1}
        self.reward, self.engine = make_reward(**options), make_engine(self.config, DEVICE)
        self.engine.sync(self.policy)

    def turn(self) -> dict[str, float]:
        self.steps += 1
        made_up = common.make_samples(self.case.lengths, self.case.group, 17, 96) if self.case.ragged else None
        work = (lambda: self.learner.update(made_up)) if made_up else self._whole_step
        return common.stopwatch(work) | {"peak_gib": common.memory()["peak_gib"]}

    def _whole_step(self) -> None:
        """train.py's step without what it records."""
        how, seed = self.config.rollout, self.config.seed
        drawn = draw(self.problems, how.prompts_per_step, seed, self.steps)
        sampling = SamplingParams(how.max_new_tokens, how.temperature, ignore_eos=not self.case.preset)
        groups = rollout(self.engine, drawn, how.group_size, sampling, seed, self.steps)
        scores = score(self.reward, groups, decode(self.policy.tokenizer, groups))
        advantages = compute_advantages(scores, self.reward.weights, self.config.learner.advantage)
        self.learner.update(to_training_samples(groups, advantages, self.config.learner.mask_truncated))
        self.engine.sync(self.policy)

    def accuracy(self) -> float:
        sampling = SamplingParams(self.case.tokens, 1.0)
        groups = sample_groups(self.engine, self.others.problems, 1, sampling, self.config.seed)
        return self.others.accuracy([text for (text,) in decode(self.policy.tokenizer, groups)])

    def close(self) -> None:
        self.engine.close()
        self.reward.close()


def trl(case: Case, model: str) -> None:
    """TRL's defaults but for what makes the work the same."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(THREADS)
    config, tokenizer = case.config(model), AutoTokenizer.from_pretrained(model, padding_side="left")
    problems, _ = training_problems(config, tokenizer)
    lengths, micro_batch = iter(case.lengths * 1000), case.trl_micro_batch or case.problems * case.group
    rank, alpha = config.policy.lora_rank, config.policy.lora_alpha
    adapter = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")

    def given_lengths(prompts: list[str], trainer) -> dict:
        """In place of sampling: random completions of the lengths that we train on too."""
        ids = [torch.randint(3, 90, (next(lengths),)).tolist() for _ in prompts]
        return {"prompt_ids": tokenizer(prompts)["input_ids"], "completion_ids": ids, "logprobs": None}

    @torch.no_grad()
    def accuracy() -> float:
        others = Others(config, tokenizer)
        texts = tokenizer([problem.prompt for problem in others.problems], return_tensors="pt", padding=True)
        drawn = {"do_sample": True, "top_k": 0, "max_new_tokens": case.tokens}
        ids = trainer.model.generate(**texts, **drawn)[:, texts["input_ids"].shape[1] :]
        return others.accuracy(tokenizer.batch_decode(ids, skip_special_tokens=True))

    class Trainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            start, cpu = time.perf_counter(), time.process_time()
            try:
                return super()._generate_and_score_completions(inputs)
            finally:
                self.sampling = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}

    class Turns(TrainerCallback):
        def on_step_begin(self, *_, **__):
            while (line := sys.stdin.readline().strip()) == "accuracy":
                print("#" + json.dumps({"accuracy": accuracy()}), flush=True)
            if not line:
                os._exit(0)
            self.start, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *_, **__):
            row = {"seconds": time.perf_counter() - self.start, "cpu_seconds": time.process_time() - self.cpu}
            if case.ragged:  # the learner alone
                row = {key: value - trainer.sampling[key] for key, value in row.items()}
            print("#" + json.dumps(row | {"peak_gib": common.memory()["peak_gib"]}), flush=True)

    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(
            model=model,
            reward_funcs=reward_func(make_reward(**config.reward.model_dump() | {"workers": 1})),
            args=GRPOConfig(
                output_dir=out,
                per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=case.problems * case.group // micro_batch,
                num_generations=case.group,
                max_completion_length=case.tokens,
                generation_kwargs={} if case.preset else {"min_new_tokens": case.tokens},
                temperature=1.0,
                top_k=0,
                beta=0.0,
                learning_rate=config.learner.lr,
                lr_scheduler_type="constant",
                max_steps=1000,
                gradient_checkpointing=DEVICE.type == "cuda",
                bf16=DEVICE.type == "cuda",
                use_cpu=DEVICE.type == "cpu",
                model_init_kwargs={"dtype": "float32"},
                logging_steps=10**6,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(
                [{"prompt": problem.prompt, "ground_truth": problem.ground_truth} for problem in problems]
                * case.problems
            ),
            processing_class=tokenizer,
            peft_config=adapter if rank else None,
            callbacks=[Turns()],
            rollout_func=given_lengths if case.ragged else None,
        )
        print("ready", flush=True)
        trainer.train()


class Trl:
    """TRL in a process of its own."""

    def __init__(self, python: str, case: str, model: str):
        self.worker = common.Worker(
            [python, str(Path(__file__).resolve()), "--worker", "--model", model, "--case", case]
        )
        self.turn, self.close = self.worker.turn, self.worker.close

    def accuracy(self) -> float:
        return self.worker.turn("accuracy")["accuracy"]


def summarise(case: str, ours: Sequence[dict], trl: Sequence[dict]) -> dict:
    """Medians of both sides, and of the ratio, which is taken pair by pair."""
    figures = {"case": case, "rounds": len(ours)}
    for side, rows in {"ours": ours, "trl": trl}.items():
        figures |= {f"{side}/{key}": median(row[key] for row in rows) for key in rows[0] if key != "accuracy"}
        if "accuracy" in rows[0]:
            figures[f"{side}/accuracy"] = [round(row["accuracy"], 3) for row in rows]
            figures[f"{side}/seconds_until_half"] = until_half(rows)
    for key in ("seconds", "cpu_seconds"):
        ratios = sorted(b[key] / a[key] for a, b in zip(ours, trl, strict=True))
        figures |= {f"ratio/{key}": median(ratios), f"ratio/{key}_range": f"{ratios[0]:.2f} to {ratios[-1]:.2f}"}
    return figures | {"ratio/peak": figures["trl/peak_gib"] / figures["ours/peak_gib"]}


def until_half(rows: Sequence[dict]) -> float | None:
    """Seconds of training until half of the other problems are right; None: they never are."""
    spent = accumulate(row["seconds"] for row in rows)
    return next((seconds for seconds, row in zip(spent, rows, strict=True) if row["accuracy"] >= HALF), None)


def main(argv: list[str]) -> dict | None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--trl-python", help="the Python of an environment that has trl")
    cli.add_argument("--case", choices=CASES, default="step")
    cli.add_argument("--model", help="a model's folder, for laptop; the other cases make their own")
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--microbatch-tokens", type=int, default=2048, help="tokens in a micro-batch of ours")
    cli.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = cli.parse_args(argv)
    case = CASES[args.case]
    if args.worker:
        return trl(case, args.model)
    if not args.trl_python or (case.preset and not args.model):
        cli.error("--trl-python names the Python of an environment that has trl; --case laptop needs --model as well")
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or common.save_model(
            common.make_config(case.size), Path(folder), torch.float32, torch.device("cpu")
        )
        sides = [Ours(case, model, args.microbatch_tokens), Trl(args.trl_python, args.case, model)]
        rounds = []
        for _ in range(args.rounds + (not case.preset)):
            rows = [side.turn() for side in sides]
            if case.preset:
                rows = [row | {"accuracy": side.accuracy()} for row, side in zip(rows, sides, strict=True)]
                print(json.dumps(rows), flush=True)
            rounds.append(rows)
        for side in sides:
            side.close()
    figures = summarise(args.case, *zip(*(rounds if case.preset else rounds[1:]), strict=True))  # the first warms up
    common.show(figures)
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
