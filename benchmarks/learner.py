"""Seconds of the learner alone, on completions of given lengths.

    python benchmarks/learner.py --model DIR --lengths FILE|lognormal [--problems 4] [--group 16] [--unshared] [--json]

--unshared gives every completion a prompt of its own and the same length: what sharing a group's prompt is worth.
The first update warms up; figures are medians over the others. --model names a folder or a size (benchmarks/common.py).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import common
from grpo.config import Config, parse
from grpo.learner import Learner
from grpo.plan.duration import causal_pairs, training_flops
from grpo.policy import Policy, load_policy
from grpo.types import Sample


def make_samples(
    lengths: list[int], group: int, prompt_tokens: int, vocabulary: int, shared: bool = True
) -> list[list[Sample]]:
    """Groups of random completions of these lengths, with advantages of +1 and -1."""
    rng = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(count))

    groups = []
    for start in range(0, len(lengths), group):
        prompt = ids(prompt_tokens)
        groups.append(
            [
                Sample(prompt if shared else ids(prompt_tokens), ids(n), (0.0,) * n, rng.choice([-1.0, 1.0]))
                for n in lengths[start : start + group]
            ]
        )
    return groups


def make_learner(policy: Policy, config: Config) -> Learner:
    return Learner(
        policy,
        config.learner,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        mismatch_limit=1e9,  # the completions were not sampled from this model
        steps=config.steps,
    )


def work(learner: Learner, groups: list[list[Sample]]) -> tuple[int, int]:
    """Tokens that pass through the layers in one update, and the operations that takes."""
    samples = [sample for group in groups for sample in group]
    batches = learner._micro_batches(samples)
    tokens = sum(len(batch.input_ids) for batch in batches)
    pairs = sum(
        causal_pairs(end - start, prefix_end - prefix)
        for batch in batches
        for start, end, prefix, prefix_end in batch.segments.spans
    )
    policy = learner.policy
    predicted = sum(len(batch.targets) for batch in batches)
    return tokens, training_flops(policy.network.config, tokens, pairs, predicted, frozen=policy.lora)


def main(argv: list[str]) -> dict[str, float]:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", required=True)
    cli.add_argument("--lengths", default="lognormal")
    cli.add_argument("--mean", type=float, default=100)
    cli.add_argument("--longest", type=int, default=512)
    cli.add_argument("--problems", type=int, default=4)
    cli.add_argument("--group", type=int, default=16)
    cli.add_argument("--prompt-tokens", type=int, default=17)
    cli.add_argument("--unshared", action="store_true")
    cli.add_argument("--updates", type=int, default=5)
    cli.add_argument("--token-budget", type=int, default=16384)
    cli.add_argument("--logit-chunk", type=int, default=128)
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--json", action="store_true")
    args = cli.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lengths = common.read_lengths(args.lengths, args.problems * args.group, args.mean, args.longest)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model if args.model not in common.SIZES else str(common.make_model(args.model, Path(folder)))
        settings = {"learner.token_budget": args.token_budget, "learner.logit_chunk": args.logit_chunk}
        config = parse({"model": model, "steps": args.updates + 1}, settings)
        policy = load_policy(config, device)
    vocabulary = policy.network.config.vocab_size
    groups = make_samples(lengths, args.group, args.prompt_tokens, vocabulary, shared=not args.unshared)
    learner = make_learner(policy, config)
    tokens, operations = work(learner, groups)
    runs = [common.stopwatch(lambda: learner.update(groups)) for _ in range(args.updates + 1)][1:]
    figures = common.medians(runs)
    figures |= {
        "completions": len(lengths),
        "completion_tokens": sum(lengths),
        "packed_tokens": tokens,
        "tokens_per_second": sum(lengths) / figures["seconds"],
        "utilisation": operations / figures["seconds"] / common.matmul_flops(device, seconds=1),
        "peak_gib": common.peak_gib(),
    }
    common.show(figures, args.json)
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
