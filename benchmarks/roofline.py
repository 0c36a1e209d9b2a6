"""What the learner asks of a card, counted without one: bytes, operations and the time they take at the least.

    python benchmarks/roofline.py [--preset l4 h100] [--card l4|h100] [--top 12] [--model DIR]

The preset's real policy and learner run on torch's meta device, where a tensor has a shape and no content, and every
operator is counted: the bytes of what it reads and writes, and the operations of matrix products. An operator takes
the longer of operations / rate and bytes / (85% of the bandwidth); the sum over operators is the roofline. One full
micro-batch for each optimiser step; the optimiser, whose share depends on how many tokens a step has, is counted apart.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from benchmarks import common
from data.tiny_base import make_tokenizer
from grpo import attention, optim, policy
from grpo.config import Config, build
from grpo.plan.duration import BANDWIDTH_SHARE, CARDS
from grpo.plan.memory import causal_pairs, model_config
from grpo.types import Sample

FP32 = {"l4": 18e12, "h100": 50e12}
"""float32 operations per second that the cards sustain, assumed; those in bfloat16 are in grpo/plan/duration.py"""
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1}
"""matrix products, and which argument is the first factor"""
NO_TRAFFIC = ("empty", "empty_like", "new_empty", "empty_strided", "detach", "alias", "_unsafe_view")
LOOK_UP = ("embedding", "index_select", "index", "gather")
"""operators that read as much of their table as they put out"""
COPY = ("copy_", "_foreach_copy_", "fill_", "zero_", "zeros_like", "zeros")


@dataclass
class Work:
    bytes: Counter = field(default_factory=Counter)
    flops: Counter = field(default_factory=Counter)
    """by (operator, precision)"""

    def seconds(self, card: str) -> Counter:
        """By operator: the longer of its arithmetic and its traffic."""
        bandwidth = CARDS[card].bandwidth * BANDWIDTH_SHARE
        spent = Counter({name: count / bandwidth for name, count in self.bytes.items()})
        arithmetic = Counter()
        for (name, precision), count in self.flops.items():
            arithmetic[name] += count / (
                CARDS[card].flops * CARDS[card].sustained if precision == "bf16" else FP32[card]
            )
        return spent | arithmetic  # the larger of the two, by operator

    def of(self, precision: str) -> float:
        return sum(count for (_, p), count in self.flops.items() if p == precision)


class Count(TorchDispatchMode):
    """Adds every operator to `work`, which may be exchanged while it counts."""

    def __init__(self):
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = function._overloadpacket._qualified_op_name.partition("::")[2]
        if not function.is_view and name not in NO_TRAFFIC:
            read, written = (sum(map(_bytes, tree_leaves(x))) for x in ((args, kwargs), out))
            traffic = 2 * written if name in LOOK_UP else read if name in COPY and read else read + written
            self.work.bytes[name] += traffic
            if name in PRODUCTS:
                a, b = args[PRODUCTS[name] :][:2]
                precision = "bf16" if a.dtype == torch.bfloat16 else "fp32"
                self.work.flops[name, precision] += 2 * a.numel() * b.shape[-1]
        return out


def _bytes(x: object) -> int:
    """Of a tensor, what memory it stands for: an expanded one is read once."""
    return min(x.numel() * x.itemsize, x.untyped_storage().nbytes()) if isinstance(x, torch.Tensor) else 0


class FlashAttention(torch.autograd.Function):
    """Stands for a flash kernel, which meta tensors have not: its operations and traffic are written down."""

    @staticmethod
    def forward(ctx, q, k, v, pairs, work):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:2], dtype=torch.float32))
        ctx.pairs, ctx.work = pairs, work
        work.flops["attention", "bf16"] += 4 * q.shape[1] * q.shape[2] * pairs
        work.bytes["attention"] += sum(map(_bytes, (q, k, v, out)))
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, _ = ctx.saved_tensors
        ctx.work.flops["attention", "bf16"] += 10 * q.shape[1] * q.shape[2] * ctx.pairs
        ctx.work.bytes["attention"] += 2 * sum(map(_bytes, (q, k, v, out)))
        return *(torch.empty_like(tensor) for tensor in (q, k, v)), None, None


class FusedNorm(torch.autograd.Function):
    """Stands for the fused RMSNorm, which meta tensors take apart: read once and written once each way."""

    @staticmethod
    def forward(ctx, x, weight, work):
        ctx.save_for_backward(x, weight)
        ctx.work = work
        work.bytes["rms_norm"] += 2 * _bytes(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        ctx.work.bytes["rms_norm"] += 3 * _bytes(x)
        return torch.empty_like(x), torch.empty_like(weight), None


class FusedAdamW(torch.optim.Optimizer):
    """The traffic of the fused kernel: weight, gradient and two moments read, all but the gradient written."""

    def __init__(self, masters: list[torch.nn.Parameter], counter: Count):
        super().__init__(masters, {})
        self.counter = counter

    @torch.no_grad()
    def step(self):
        self.counter.work.bytes["adamw"] += sum(28 * p.numel() for p in self.param_groups[0]["params"])


@contextmanager
def meta_kernels(counter: Count) -> Iterator[None]:
    """What the meta device has not: attention, norms and AdamW in one kernel each, and numbers to read."""

    def attend(query, key, value, scaling, segments):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        if segments.key_index is not None:
            k, v = k[segments.key_index], v[segments.key_index]
        pairs = sum(causal_pairs(b - a, d - c) for a, b, c, d in segments.spans)
        return FlashAttention.apply(q, k, v, pairs, counter.work)[None]

    with (
        patch.object(attention, "_run_by_run", attend),
        patch.object(policy, "_rms_norm", lambda norm, x: FusedNorm.apply(x, norm.weight, counter.work)),
        patch.object(optim, "_adamw", lambda masters, *_, **__: FusedAdamW(masters, counter)),
        patch.object(torch.Tensor, "tolist", lambda tensor: [0.0] * tensor.numel()),
        torch.device("meta"),
    ):
        yield


def count(config: Config, layers: int | None = None) -> tuple[Work, Work, int]:
    """(the passes, the optimiser's step, packed tokens) of one rollout as a GPU learns from it.

    `layers`: of a shallower model of the same width; what is counted grows by the same amount with each layer.
    """
    shape = model_config(config.model)
    shape.num_hidden_layers = layers or shape.num_hidden_layers
    counter, passes, stepping = Count(), Work(), Work()
    with meta_kernels(counter):
        network = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
        keep = config.learner.kl_coef > 0
        policy.fuse_norms(network)  # as the policy does on a GPU; its reference is a copy
        whole = policy.Policy(network, make_tokenizer(), config.policy, config.learner.logit_chunk, keep)
        whole.arrived = lambda: 1.0  # a value, which meta tensors have not
        learner = common.make_learner(whole, config)
        groups = full_batches(config.learner.minibatches_per_rollout, config.learner.token_budget)
        tokens = common.packed_work(learner, groups)[0]
        take_step = learner.optimizer.step

        def step_apart():
            counter.work = stepping
            take_step()
            counter.work = passes

        learner.optimizer.step, counter.work = step_apart, passes
        with counter:
            learner.update(groups)
    return passes, stepping, tokens


def settings(preset: str, **options: object) -> Config:
    """The preset as it is on a GPU that needs no 4-bit weights."""
    given = {name.replace("__", "."): value for name, value in options.items()}
    return build(preset, {"policy.quant": "none", "policy.dtype": "bfloat16"} | given)


def full_batches(batches: int, tokens: int, prompt: int = 256, completion: int = 768) -> list[list[Sample]]:
    """A group for each optimiser step that fills a micro-batch: one prompt, completions of about the planned length."""
    count = (tokens - prompt) // completion
    return common.make_samples([completion] * (count * batches), count, prompt, 96)


def per_token(passes: Work, tokens: int, card: str) -> dict[str, float]:
    seconds = passes.seconds(card)
    products = sum(seconds[name] for name in seconds if name in {name for name, _ in passes.flops})
    return {
        "megabytes": sum(passes.bytes.values()) / tokens / 1e6,
        "gigaflops_bf16": passes.of("bf16") / tokens / 1e9,
        "gigaflops_fp32": passes.of("fp32") / tokens / 1e9,
        "microseconds": sum(seconds.values()) / tokens * 1e6,
        "microseconds_products": products / tokens * 1e6,
    }


def main(argv: list[str]) -> dict[str, dict[str, float]]:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--preset", nargs="+", default=["l4", "h100"])
    cli.add_argument("--card", choices=FP32, help="[the preset's, else h100]")
    cli.add_argument("--top", type=int, default=12, help="operators that are shown")
    cli.add_argument("--model", help="another model's folder or id")
    args = cli.parse_args(argv)
    results = {}
    for preset in args.preset:
        card = args.card or (preset if preset in FP32 else "h100")
        passes, stepping, tokens = count(settings(preset, **({"model": args.model} if args.model else {})))
        results[preset] = per_token(passes, tokens, card)
        print(f"\n{preset} on {card}, per token of {tokens}")
        common.show(results[preset])
        seconds = passes.seconds(card)
        for name, spent in seconds.most_common(args.top):
            print(f"  {name:34} {spent / tokens * 1e6:8.2f} us {passes.bytes[name] / tokens / 1e6:8.2f} MB")
        print(f"the optimiser's step: {sum(stepping.seconds(card).values()):.3f} s")
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
