"""How far sampler and trainer are apart in 16 bits, with the logits of each rounded to 16 bits or left in float32.

    python benchmarks/mismatch.py --model DIR [--dtype bfloat16] [--group 4] [--tokens 64] [--json]

vLLM samples completions of 16 one-digit products at temperatures 1 and 0.6, once with each head; each completion is
scored by the trainer's network with both heads. Printed: mean, root mean square and maximum of |sampler logprob -
trainer logprob| over all tokens. --model names a folder with a chat template.

    python benchmarks/mismatch.py --model DIR --updates 1 3 10

How much of a LoRA update survives the rounding of W + s B A to bfloat16: after so many updates of preset l4 (its rank,
alpha and rate; advantages of 1 and -1 at random) the slope of the rounded model's change in log-probability on the
unrounded one's, and the root mean square of the rest. Only the weights are rounded; the arithmetic is float32.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import common
from grpo import lora
from grpo.config import Config, build, parse
from grpo.learner import Learner
from grpo.packing import Batch, pack
from grpo.policy import Policy, load_policy
from grpo.rollout import Sampling, make_engine, vllm_engine
from grpo.rollout.torch_engine import TorchEngine
from grpo.types import Completion, Request, Sample

TEMPERATURES = (1.0, 0.6)
DITHERED = lora.rounded
HEADS = {"16 bits": "model", "float32": "float32"}
"""of the trainer -> vLLM's name for it"""


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", required=True)
    cli.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16", help="of the weights")
    cli.add_argument("--group", type=int, default=4, help="completions a prompt")
    cli.add_argument("--tokens", type=int, default=64, help="completion tokens")
    cli.add_argument("--updates", type=int, nargs="*", help="measure LoRA's rounding after so many instead")
    cli.add_argument("--json", action="store_true")
    args = cli.parse_args()
    common.show(lora_rounding(args) if args.updates else heads(args), args.json)


def heads(args: argparse.Namespace) -> dict[str, float]:
    rollout = {"engine": "vllm", "problems": 16, "group": args.group, "max_new_tokens": args.tokens}
    config = parse({"model": args.model, "rollout": rollout | {"max_prompt_tokens": 64, "mismatch_limit": 1.0}})
    in_16_bits = config.policy.model_copy(update={"dtype": args.dtype})  # float16 is not offered as a setting
    config = config.model_copy(update={"policy": in_16_bits})
    policy = load_policy(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    figures = {}
    for name, head in HEADS.items():
        vllm_engine.HEAD_DTYPE = head
        figures |= {f"vLLM {name}, trainer {key}": value for key, value in measure(config, policy).items()}
    return figures


def measure(config: Config, policy: Policy) -> dict[str, float]:
    """Mean, root mean square and largest |sampler logprob - trainer logprob| of the config's engine, by the trainer's
    head and temperature."""
    engine = make_engine(config, policy.device)
    engine.sync(policy)
    requests, figures = products(policy, config.rollout.group), {}
    for temperature in TEMPERATURES:
        groups = engine.generate(requests, Sampling(config.rollout.max_new_tokens, temperature))
        gaps = [gap(policy, r.prompt_ids, group, temperature) for r, group in zip(requests, groups, strict=True)]
        for head, values in zip(HEADS, torch.cat(gaps, 1).double(), strict=True):
            figures[f"{head}, T {temperature}, mean"] = values.mean().item()
            figures[f"{head}, T {temperature}, rms"] = values.square().mean().sqrt().item()
            figures[f"{head}, T {temperature}, max"] = values.max().item()
    engine.close()
    return figures


def products(policy: Policy, group: int) -> list[Request]:
    chats = [[{"role": "user", "content": f"What is {a} times {b}?"}] for a in range(2, 6) for b in range(6, 10)]
    texts = policy.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    return [Request(tuple(policy.tokenizer(t)["input_ids"]), group, seed=1000 * i) for i, t in enumerate(texts)]


@torch.no_grad()
def gap(policy: Policy, prompt: tuple[int, ...], completions: list[Completion], temperature: float) -> torch.Tensor:
    """[2 heads, tokens] |sampler logprob - trainer logprob|, the trainer's logits in each of HEADS."""
    samples = [Sample(prompt, c.ids, c.sampler_logprobs, advantage=0.0) for c in completions]
    (batch,) = pack(samples, [1.0] * len(samples), 10**9)
    batch = batch.to(policy.device)
    rounded = rounded_logits(policy, batch) / temperature
    logprobs = torch.log_softmax(rounded, -1).gather(-1, batch.targets[:, None])[:, 0]
    return (torch.stack([logprobs, policy.logprobs(batch, temperature)[0]]) - batch.sampler_logprobs).abs()


def rounded_logits(policy: Policy, batch: Batch) -> torch.Tensor:
    """[tokens, vocabulary] logits that the head's product has rounded to the weights' precision."""
    head = policy.network.get_output_embeddings().weight
    return (policy.hidden(policy.network, batch) @ head.T).float()


def lora_rounding(args: argparse.Namespace) -> dict[str, float]:
    options = {"model": args.model, "policy.dtype": "float32", "policy.gradient_checkpointing": "false"}
    options |= {"rollout.temperature": 1.0, "rollout.mismatch_limit": 1.0, "learner.token_budget": 4096}
    config = build("l4", options)
    policy = load_policy(config, torch.device("cpu"))
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
    (batch,) = pack([s for group in samples for s in group], [1.0] * 4 * len(samples), 10**9)
    learner = Learner(policy, config)
    roundings = {
        "none": lambda exact, _: exact,
        "to nearest": lambda exact, _: exact.bfloat16().float(),
        "dithered": lambda exact, _: DITHERED(exact, torch.bfloat16).float(),
    }

    @torch.no_grad()
    def logprobs(rounding: str) -> torch.Tensor:
        lora.rounded = roundings[rounding]
        with policy.sampling():
            found = policy.logprobs(batch, 1.0)[0].double()
        lora.rounded = roundings["none"]
        return found

    start, figures = logprobs("none"), {}
    for update in range(1, max(args.updates) + 1):
        learner.update(samples)
        wanted = logprobs("none") - start
        for rounding in roundings if update in args.updates else ():
            change = logprobs(rounding) - start
            slope = (change @ wanted / (wanted @ wanted)).item()
            figures[f"{update} updates, {rounding}: slope"] = slope
            figures[f"{update} updates, {rounding}: rest"] = (change - slope * wanted).square().mean().sqrt().item()
    return figures


if __name__ == "__main__":
    main()
