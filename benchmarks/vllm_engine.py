"""This trainer's vLLM engine beside bare vLLM: the same engine object without seeds and log-probabilities, in turns.

    python benchmarks/vllm_engine.py --model FOLDER

Prints the seconds of start-up, sync (which wakes the engine), a rollout by each, and sleep, as a line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro
from vllm import SamplingParams as BareParams

from benchmarks.common import DEVICE, Stopwatch
from grpo.engines.base import SamplingParams, make_engine
from grpo.policy import load_policy
from grpo.rollout import rollout
from grpo.settings import parse
from grpo.types import Problem


def main(model: str, problems: int = 128, group: int = 8, tokens: int = 512) -> None:
    sizes = {"prompts_per_step": problems, "group_size": group, "max_prompt_tokens": 64, "max_new_tokens": tokens}
    config = parse({"model": model, "rollout": {"engine": "vllm"} | sizes})
    policy = load_policy(config, DEVICE)
    prompts = [policy.tokenizer(f"{a}+{a + 1}=?")["input_ids"] for a in range(problems)]
    drawn = [Problem(index, "", tuple(ids), "0") for index, ids in enumerate(prompts)]
    bare_prompts = [{"prompt_token_ids": ids} for ids in prompts]
    bare = BareParams(n=group, max_tokens=tokens, ignore_eos=True, detokenize=False)
    sampling = SamplingParams(tokens, ignore_eos=True)
    watch = Stopwatch()
    engine = make_engine(config, DEVICE)
    seconds = {"start": watch.read()["seconds"]}
    for turn in range(3):  # the first turn warms up, the last is kept
        for name, work in {
            "sync": lambda: engine.sync(policy),
            "rollout": lambda turn=turn: rollout(engine, drawn, group, sampling, 0, turn),
            "bare rollout": lambda: engine._llm.generate(bare_prompts, bare, use_tqdm=False),
            "sleep": engine.sleep,
        }.items():
            watch = Stopwatch()
            work()
            seconds[name] = watch.read()["seconds"]
    engine.close()
    print(json.dumps(seconds | {"completion tokens": problems * group * tokens}))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
