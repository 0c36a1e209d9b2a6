"""How far sampler and trainer are apart in 16 bits, with the logits of each rounded to 16 bits or left in float32.

    python benchmarks/mismatch.py --model DIR [--dtype bfloat16] [--group 4] [--tokens 64] [--json]

vLLM samples completions of 16 one-digit products at temperatures 1 and 0.6, once with each head; each completion is
scored by the trainer's network with both heads. Printed: mean and root mean square of |sampler logprob - trainer
logprob| over all tokens. --model names a folder with a chat template.

    python benchmarks/mismatch.py --model DIR --updates 1 3 10

How much of a LoRA update survives the rounding of W + s B A to bfloat16: after so many updates of preset l4 (its rank,
alpha and rate; advantages of 1 and -1 at random) the slope of the rounded model's change in log-probability on the
unrounded one's, and the root mean square of the rest. Only the weights are rounded; the arithmetic is float32. Where
vLLM is installed, also the change in vLLM: dithered weights, and all arithmetic in bfloat16 but the logits.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import common
from grpo import lora
from grpo.config import Config, build, parse
from grpo.learner import Learner
from grpo.packages import installed
from grpo.packing import Batch, pack
from grpo.policy import Policy, load_policy
from grpo.rollout import Sampling, make_engine, vllm_engine
from grpo.rollout.torch_engine import TorchEngine
from grpo.types import Completion, Request, Sample

CPU = torch.device("cpu")
TEMPERATURES = (1.0, 0.6)
DITHERED = lora.rounded
HEADS = ("16 bits", "float32")
IN_VLLM = "dithered, in vLLM"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", required=True)
    cli.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16", help="of the weights")
    cli.add_argument("--group", type=int, default=4, help="completions a prompt")
    cli.add_argument("--tokens", type=int, default=64, help="completion tokens")
    cli.add_argument("--updates", type=int, nargs="*", help="measure LoRA's rounding after so many instead")
    cli.add_argument("--json", action="store_true")
    arguments = cli.parse_args()
    if arguments.updates:
        common.show(lora_rounding(arguments.model, arguments.updates), arguments.json)
        return
    rollout = {"engine": "vllm", "problems": 16, "group": arguments.group, "max_new_tokens": arguments.tokens}
    rollout |= {"max_prompt_tokens": 64, "mismatch_limit": 1.0}
    config = parse({"model": arguments.model, "rollout": rollout})
    in_16_bits = config.policy.model_copy(update={"dtype": arguments.dtype})  # float16 is not offered as a setting
    config = config.model_copy(update={"policy": in_16_bits})
    policy = load_policy(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    figures = {}
    for head in HEADS:
        figures |= measure(config, policy, head)
    common.show(figures, arguments.json)


def measure(config: Config, policy: Policy, vllm_head: str) -> dict[str, str]:
    """Both trainer heads on completions that vLLM samples with one of its own."""
    vllm_engine.HEAD_DTYPE = "model" if vllm_head == "16 bits" else "float32"
    engine = make_engine(config, policy.device)
    engine.sync(policy)
    figures = {}
    for temperature in TEMPERATURES:
        requests = products(policy, config.rollout.group)
        groups = engine.generate(requests, Sampling(config.rollout.max_new_tokens, temperature))
        gaps = [gap(policy, r.prompt_ids, group, temperature) for r, group in zip(requests, groups, strict=True)]
        for trainer_head, gap_of_head in zip(HEADS, torch.cat(gaps, 1), strict=True):
            name = f"T {temperature}, vLLM {vllm_head}, trainer {trainer_head}"
            mean, rms = gap_of_head.mean().item(), gap_of_head.square().mean().sqrt().item()
            figures[name] = f"mean {mean:.4f} rms {rms:.4f}"
    engine.close()
    return figures


def products(policy: Policy, group: int) -> list[Request]:
    questions = [f"What is {a} times {b}?" for a in range(2, 6) for b in range(6, 10)]
    texts = [
        policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in questions
    ]
    return [Request(tuple(policy.tokenizer(t)["input_ids"]), group, seed=1000 * i) for i, t in enumerate(texts)]


@torch.no_grad()
def gap(policy: Policy, prompt: tuple[int, ...], completions: list[Completion], temperature: float) -> torch.Tensor:
    """[2 heads, tokens] |sampler logprob - trainer logprob|, the trainer's logits in each of HEADS."""
    samples = [Sample(prompt, c.ids, c.sampler_logprobs, advantage=0.0) for c in completions]
    (batch,) = pack(samples, [1.0] * len(samples), sum(sample.length for sample in samples))
    batch = batch.to(policy.device)
    network = policy.network
    hidden = getattr(network, network.base_model_prefix)(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        use_cache=False,
        segments=batch.segments,
    ).last_hidden_state[0, batch.predictors]
    exact = hidden.float() @ network.get_output_embeddings().weight.float().T
    logits = torch.stack([exact.to(policy.dtype).float(), exact])
    logp = torch.log_softmax(logits / temperature, -1)[:, torch.arange(len(hidden)), batch.targets]
    return (logp - batch.sampler_logprobs).abs()


def lora_rounding(model: str, updates: list[int]) -> dict[str, str]:
    options = {"model": model, "policy.dtype": "float32", "policy.gradient_checkpointing": "false"}
    options |= {"rollout.temperature": 1.0, "rollout.mismatch_limit": 1.0, "learner.token_budget": 4096}
    config = build("l4", options)
    policy = load_policy(config, CPU)
    with torch.no_grad():
        for weight in policy.network.parameters():
            if not weight.requires_grad:
                weight.copy_(weight.bfloat16())
    engine = TorchEngine()
    engine.sync(policy)
    requests, chance = products(policy, 4)[::2], random.Random(0)
    samples = [
        [Sample(r.prompt_ids, c.ids, c.sampler_logprobs, chance.choice((-1.0, 1.0))) for c in group]
        for r, group in zip(requests, engine.generate(requests, Sampling(24)), strict=True)
    ]
    (batch,) = packed(samples)
    learner = Learner(policy, config)
    roundings = {
        "none": lambda exact, _: exact,
        "to nearest": lambda exact, _: exact.bfloat16().float(),
        "dithered": lambda exact, _: DITHERED(exact, torch.bfloat16).float(),
    }

    sampler = bfloat16_engine(config) if installed("vllm") else None

    @torch.no_grad()
    def logprobs(rounding: str) -> torch.Tensor:
        lora.rounded = roundings.get(rounding, roundings["dithered"])
        if rounding == IN_VLLM:
            found = vllm_logprobs(sampler, policy, samples)
        else:
            with policy.sampling():
                found = policy.logprobs(batch, 1.0)[0].double()
        lora.rounded = roundings["none"]
        return found

    compared = [*roundings, *([IN_VLLM] if sampler else [])]
    start, figures = {name: logprobs(name) for name in compared}, {}
    for update in range(1, max(updates) + 1):
        learner.update(samples)
        wanted = logprobs("none") - start["none"]
        for rounding in compared if update in updates else ():
            change = logprobs(rounding) - start[rounding]
            slope = (change @ wanted / (wanted @ wanted)).item()
            rest = (change - slope * wanted).square().mean().sqrt().item()
            figures[f"{update} updates, rounded {rounding}"] = f"slope {slope:.3f} rest {rest:.4f}"
            print(f"{update} {rounding} {figures[f'{update} updates, rounded {rounding}']}", flush=True)
    return figures


def packed(samples: list[list[Sample]]) -> list[Batch]:
    flat = [sample for group in samples for sample in group]
    return pack(flat, [1.0] * len(flat), 10**9)


def bfloat16_engine(config: Config) -> vllm_engine.VLLMEngine:
    rollout = {"engine": "vllm", "max_prompt_tokens": 128, "max_new_tokens": 64, "kv_gib": 0.5}
    return make_engine(parse({"model": config.model, "policy": {"dtype": "bfloat16"}, "rollout": rollout}), CPU)


def vllm_logprobs(engine: vllm_engine.VLLMEngine, policy: Policy, samples: list[list[Sample]]) -> torch.Tensor:
    """[N] as vLLM reads the completions with the policy's present weights, in the order of the packed batch."""
    from vllm import SamplingParams

    engine._load(policy.sampler_weights())
    engine._llm.reset_prefix_cache()
    flat = [sample for group in samples for sample in group]
    prompts = [{"prompt_token_ids": [*sample.prompt_ids, *sample.completion_ids]} for sample in flat]
    outputs = engine._llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    read = []
    for sample, prompt, output in zip(flat, prompts, outputs, strict=True):
        ids, start = prompt["prompt_token_ids"], len(sample.prompt_ids)
        found = tuple(output.prompt_logprobs[i][ids[i]].logprob for i in range(start, len(ids)))
        read.append(replace(sample, sampler_logprobs=found))
    return packed([read])[0].sampler_logprobs.double()


if __name__ == "__main__":
    main()
