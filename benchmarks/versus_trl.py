"""The same work by this trainer and by TRL's GRPOTrainer, turn by turn, and the ratio of their times.

    python benchmarks/versus_trl.py --trl-python ENV/bin/python [--case step|ragged|vocabulary] [--rounds 5]

ENV has torch, transformers and trl from PyPI. Both train the same random model on the same prompts, group and number
of completion tokens (EOS ignored), one thread each, TRL in a process of its own. Each takes a step when it is its turn
and waits otherwise, so both see the same weather; the ratio is taken pair by pair.

step        1M parameters, 16 problems x 8 completions x 64 tokens: whole steps
ragged      the same model, 4 x 16 completions, lognormal lengths (mean 100, at most 512): the learner alone
vocabulary  151,936 tokens, hidden 256, 4 layers, 4 x 8 completions x 256 tokens: whole steps and peak memory
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
from pathlib import Path
from statistics import median
from subprocess import DEVNULL, PIPE, Popen

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
from grpo.rollout import decode, draw, rollout, score
from grpo.settings import parse
from rewards import make_reward


@dataclass(frozen=True)
class Case:
    size: str
    problems: int
    group: int
    tokens: int
    ragged: bool = False
    mean: float = 100
    trl_micro_batch: int | None = None
    """completions that pass TRL's model at once; all of them where nothing is said"""

    @property
    def lengths(self) -> list[int]:
        return common.lognormal_lengths(self.problems * self.group, self.mean, self.tokens)


CASES = {
    "step": Case("1m", 16, 8, 64),
    "ragged": Case("1m", 4, 16, 512, ragged=True),
    "vocabulary": Case("vocabulary", 4, 8, 256),
    "h100": Case("1.5b", 4, 32, 3072, ragged=True, mean=700, trl_micro_batch=4),  # on a GPU only
    "tiny": Case("tiny", 2, 4, 6),
    "tiny-ragged": Case("tiny", 2, 4, 12, ragged=True, mean=5),
}


class Ours:
    """This trainer, a step at a time, in this process."""

    def __init__(self, case: Case, model: str, microbatch_tokens: int):
        torch.set_num_threads(1)
        self.config = parse(
            {
                "model": model,
                "policy.gradient_checkpointing": case.ragged and DEVICE.type == "cuda",
                "rollout.engine": "torch",
                "rollout.prompts_per_step": case.problems,
                "rollout.group_size": case.group,
                "rollout.max_new_tokens": case.tokens,
                "learner.microbatch_tokens": microbatch_tokens,
                "learner.logit_chunk": 128,
            }
        )
        self.policy, self.steps = load_policy(self.config, DEVICE), 0
        self.learner = common.make_learner(self.policy, self.config)
        made_up = common.make_samples(case.lengths, case.group, 17, 96)
        self.work = (lambda: self.learner.update(made_up)) if case.ragged else self._whole_step
        self.problems = load(PROBLEMS, ChatTemplate(self.policy.tokenizer), "plain")
        self.reward, self.engine = make_reward("multi_signal", workers=1), make_engine(self.config, DEVICE)
        self.engine.sync(self.policy)

    def step(self) -> dict[str, float]:
        self.steps += 1
        return common.stopwatch(self.work) | {"peak_gib": common.memory()["peak_gib"]}

    def _whole_step(self) -> None:
        """train.py's step without what it records, all completions at full length."""
        asked, how = self.config.rollout, self.config.learner
        drawn = draw(self.problems, asked.problems, self.config.seed, self.steps)
        sampling = SamplingParams(asked.max_new_tokens, asked.temperature, ignore_eos=True)
        groups = rollout(self.engine, drawn, asked.group, sampling, self.config.seed, self.steps)
        scores = score(self.reward, groups, decode(self.policy.tokenizer, groups))
        advantages = compute_advantages(scores, self.reward.weights, how.advantage)
        self.learner.update(to_training_samples(groups, advantages, how.mask_truncated))
        self.engine.sync(self.policy)

    def close(self) -> None:
        self.engine.close()
        self.reward.close()


def trl(case: Case, model: str) -> None:
    """TRL's defaults but for what makes the work the same."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = [problem.prompt for problem in load(PROBLEMS, ChatTemplate(tokenizer), "plain")]
    lengths, micro_batch = iter(case.lengths * 1000), case.trl_micro_batch or case.problems * case.group

    def given_lengths(prompts: list[str], trainer) -> dict:
        """In place of sampling: random completions of the lengths that we train on too."""
        ids = [torch.randint(3, 90, (next(lengths),)).tolist() for _ in prompts]
        return {"prompt_ids": tokenizer(prompts)["input_ids"], "completion_ids": ids, "logprobs": None}

    class Trainer(GRPOTrainer):
        sampling = 0.0, 0.0

        def _generate_and_score_completions(self, inputs):
            start, cpu = time.perf_counter(), time.process_time()
            try:
                return super()._generate_and_score_completions(inputs)
            finally:
                self.sampling = time.perf_counter() - start, time.process_time() - cpu

    class Turns(TrainerCallback):
        def on_step_begin(self, *_, **__):
            if not sys.stdin.readline():
                os._exit(0)
            self.start, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *_, **__):
            spent = [time.perf_counter() - self.start, time.process_time() - self.cpu]
            if case.ragged:  # the learner alone
                spent = [a - b for a, b in zip(spent, trainer.sampling, strict=True)]
            row = {"seconds": spent[0], "cpu_seconds": spent[1], "peak_gib": common.memory()["peak_gib"]}
            print("#" + json.dumps(row), flush=True)

    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(
            model=model,
            reward_funcs=lambda completions, **_: [float(len(text) % 3) for text in completions],
            args=GRPOConfig(
                output_dir=out,
                per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=case.problems * case.group // micro_batch,
                num_generations=case.group,
                max_completion_length=case.tokens,
                generation_kwargs={"min_new_tokens": case.tokens},
                temperature=1.0,
                top_k=0,
                beta=0.0,
                learning_rate=1e-6,
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
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            callbacks=[Turns()],
            rollout_func=given_lengths if case.ragged else None,
        )
        print("ready", flush=True)
        trainer.train()


class Trl:
    """TRL in a process of its own: a step for every line that it is sent."""

    def __init__(self, python: str, case: str, model: str):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [python, str(Path(__file__).resolve()), "--worker", model, "--case", case]
        self.process = Popen(command, text=True, env=environment, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        self._read("ready")

    def step(self) -> dict[str, float]:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return json.loads(self._read("#")[1:])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _read(self, start: str) -> str:
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise RuntimeError(f"TRL ended with code {self.process.wait()}; run its --worker command by hand")


def summarise(case: str, ours: Sequence[dict], trl: Sequence[dict]) -> dict:
    """Medians of both sides, and of the ratio, which is taken pair by pair."""
    figures = {"case": case, "rounds": len(ours)}
    figures |= {f"ours/{key}": median(row[key] for row in ours) for key in ours[0]}
    figures |= {f"trl/{key}": median(row[key] for row in trl) for key in trl[0]}
    for key in ("seconds", "cpu_seconds"):
        ratios = sorted(b[key] / a[key] for a, b in zip(ours, trl, strict=True))
        figures |= {f"ratio/{key}": median(ratios), f"ratio/{key}_range": f"{ratios[0]:.2f} to {ratios[-1]:.2f}"}
    return figures | {"ratio/peak": figures["trl/peak_gib"] / figures["ours/peak_gib"]}


def main(argv: list[str]) -> dict | None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--trl-python", help="the Python of an environment that has trl")
    cli.add_argument("--case", choices=CASES, default="step")
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--token-budget", type=int, default=16384, help="tokens in a micro-batch of ours")
    cli.add_argument("--worker", metavar="MODEL", help=argparse.SUPPRESS)
    args = cli.parse_args(argv)
    if args.worker:
        return trl(CASES[args.case], args.worker)
    if not args.trl_python:
        cli.error("--trl-python names the Python of an environment that has torch, transformers and trl")
    case = CASES[args.case]
    with tempfile.TemporaryDirectory() as folder:
        common.save_model(common.make_config(case.size), Path(folder), torch.float32, torch.device("cpu"))
        sides = [Ours(case, folder, args.microbatch_tokens), Trl(args.trl_python, args.case, folder)]
        rounds = [[side.step() for side in sides] for _ in range(args.rounds + 1)]
        for side in sides:
            side.close()
    figures = summarise(args.case, *zip(*rounds[1:], strict=True))  # the first round warms up
    common.show(figures)
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
