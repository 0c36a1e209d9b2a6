"""How far sampler and trainer are apart in 16 bits, with the logits of each rounded to 16 bits or left in float32.

    python benchmarks/mismatch.py --model DIR [--dtype bfloat16] [--group 4] [--tokens 64]

vLLM samples completions of 16 one-digit products at temperatures 1 and 0.6, once with each head; each completion is
scored by the trainer's network with both heads. Printed: mean, root mean square and maximum of |sampler logprob -
trainer logprob| over all tokens. --model names a folder with a chat template.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import common
from grpo.engines import vllm_engine
from grpo.engines.base import SamplingParams, make_engine
from grpo.packing import pack
from grpo.policy import Policy, load_policy
from grpo.settings import Config, parse
from grpo.types import Completion, Request, Sample

TEMPERATURES = (1.0, 0.6)
HEADS = {"16 bits": "model", "float32": "float32"}
"""of the trainer -> vLLM's name for it"""


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", required=True)
    cli.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16", help="of the weights")
    cli.add_argument("--group", type=int, default=4, help="completions a prompt")
    cli.add_argument("--tokens", type=int, default=64, help="completion tokens")
    args = cli.parse_args()
    rollout = {"engine": "vllm", "problems": 16, "group": args.group, "max_new_tokens": args.tokens}
    # The sync's proof must not stop what is to be measured.
    config = parse({"model": args.model, "rollout": rollout | {"max_prompt_tokens": 64, "logprob_diff_limit": 1.0}})
    in_16_bits = config.policy.model_copy(update={"dtype": args.dtype})  # float16 is not offered as a setting
    config = config.model_copy(update={"policy": in_16_bits})
    policy = load_policy(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for name, head in HEADS.items():
        vllm_engine.HEAD_DTYPE = head
        common.show({f"vLLM {name}, trainer {of}": value for of, value in gaps(config, policy).items()})


def gaps(config: Config, policy: Policy) -> dict[str, float]:
    """Mean, root mean square and largest |sampler logprob - trainer logprob|, by the trainer's head and temperature."""
    engine = make_engine(config, policy.device)
    engine.sync(policy)
    chats = [[{"role": "user", "content": f"What is {a} times {b}?"}] for a in range(2, 6) for b in range(6, 10)]
    texts = policy.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    prompts = [tuple(policy.tokenizer(text)["input_ids"]) for text in texts]
    requests = [Request(ids, config.rollout.group_size, seed=1000 * i) for i, ids in enumerate(prompts)]
    figures = {}
    for temperature in TEMPERATURES:
        groups = engine.generate(requests, SamplingParams(config.rollout.max_new_tokens, temperature))
        found = [gap(policy, ids, group, temperature) for ids, group in zip(prompts, groups, strict=True)]
        for head, values in zip(HEADS, torch.cat(found, 1).double(), strict=True):
            figures[f"{head}, T {temperature}, mean"] = values.mean().item()
            figures[f"{head}, T {temperature}, rms"] = values.square().mean().sqrt().item()
            figures[f"{head}, T {temperature}, max"] = values.max().item()
    engine.close()
    return figures


@torch.no_grad()
def gap(policy: Policy, prompt: tuple[int, ...], completions: list[Completion], temperature: float) -> torch.Tensor:
    """[2 heads, tokens] |sampler logprob - trainer logprob|, the trainer's logits in each of HEADS."""
    samples = [Sample(prompt, c.ids, c.sampler_logprobs, advantage=0.0) for c in completions]
    (batch,) = pack(samples, [1.0] * len(samples), 10**9)
    batch = batch.to(policy.device)
    head = policy.network.get_output_embeddings().weight
    rounded = (policy.hidden(policy.network, batch) @ head.T).float() / temperature  # [tokens, vocabulary]
    logprobs = torch.log_softmax(rounded, -1).gather(-1, batch.targets[:, None])[:, 0]
    return (torch.stack([logprobs, policy.logprobs(batch, temperature)[0]]) - batch.sampler_logprobs).abs()


if __name__ == "__main__":
    main()
