"""What the learner asks of a card, counted without one: bytes, operations and the time they take at the least.

    python benchmarks/roofline.py [--preset l4 h100] [--top 12]

The preset's real policy and learner run on torch's meta device, where a tensor has a shape and no content, and every
operator is counted: the bytes of what it reads and writes, and the operations of matrix products. An operator takes
the longer of operations / rate and bytes / (85% of the bandwidth); the sum over operators is the roofline. One full
micro-batch for each optimiser step. The optimiser's own work is left out: its share depends on how many tokens a step
has. tests/plan/test_speed.py holds the figures.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import common
from grpo import attention, optim, policy
from grpo.plan.memory import causal_pairs, model_config
from grpo.plan.time import BANDWIDTH_SHARE, CARDS
from grpo.settings import Config, build
from grpo.types import Sample

PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1}
"""matrix products, and which argument is the first factor"""
NO_TRAFFIC = ("empty", "empty_like", "new_empty", "empty_strided", "detach", "alias", "_unsafe_view")
LOOK_UP = ("embedding", "index_select", "index", "gather")
"""operators that read as much of their table as they put out"""
COPY = ("copy_", "_foreach_copy_", "fill_", "zero_", "zeros_like", "zeros")


class Count(TorchDispatchMode):
    """Bytes and operations of everything that runs in it, by operator."""

    def __init__(self):
        super().__init__()
        self.bytes, self.flops = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = function._overloadpacket._qualified_op_name.partition("::")[2]
        if not function.is_view and name not in NO_TRAFFIC:
            read, written = (sum(map(_bytes, tree_leaves(x))) for x in ((args, kwargs), out))
            traffic = 2 * written if name in LOOK_UP else read if name in COPY and read else read + written
            self.bytes[name] += traffic
            if name in PRODUCTS:
                a, b = args[PRODUCTS[name] :][:2]
                self.flops[name] += 2 * a.numel() * b.shape[-1]
        return out

    def seconds(self, card: str) -> Counter:
        """By operator: the longer of its arithmetic, at the card's bfloat16 rate, and its traffic."""
        sheet = CARDS[card]
        traffic = Counter({name: n / (sheet.bandwidth * BANDWIDTH_SHARE) for name, n in self.bytes.items()})
        arithmetic = Counter({name: n / (sheet.flops * sheet.sustained) for name, n in self.flops.items()})
        return traffic | arithmetic  # the larger of the two, by operator


def _bytes(x: object) -> int:
    """Of a tensor, what memory it stands for: an expanded one is read once."""
    return min(x.numel() * x.itemsize, x.untyped_storage().nbytes()) if isinstance(x, torch.Tensor) else 0


class FlashAttention(torch.autograd.Function):
    """Stands for a flash kernel, which meta tensors have not: what it keeps, its operations and its traffic."""

    @staticmethod
    def forward(ctx, q, k, v, pairs, counter):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:2], dtype=torch.float32))
        ctx.pairs, ctx.counter = pairs, counter
        counter.flops["attention"] += 4 * q.shape[1] * q.shape[2] * pairs
        counter.bytes["attention"] += sum(map(_bytes, (q, k, v, out)))
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, _ = ctx.saved_tensors
        ctx.counter.flops["attention"] += 10 * q.shape[1] * q.shape[2] * ctx.pairs
        ctx.counter.bytes["attention"] += 2 * sum(map(_bytes, (q, k, v, out)))
        return *(torch.empty_like(tensor) for tensor in (q, k, v)), None, None


class FusedNorm(torch.autograd.Function):
    """Stands for the fused RMSNorm, which meta tensors take apart: read once and written once each way."""

    @staticmethod
    def forward(ctx, x, weight, counter):
        ctx.save_for_backward(x, weight)
        ctx.counter = counter
        counter.bytes["rms_norm"] += 2 * _bytes(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        ctx.counter.bytes["rms_norm"] += 3 * _bytes(x)
        return torch.empty_like(x), torch.empty_like(weight), None


class FusedAdamW(torch.optim.Optimizer):
    """Has the moments that fused AdamW has, and does nothing: meta tensors have no fused kernels."""

    def __init__(self, masters: list[torch.nn.Parameter]):
        super().__init__(masters, {})
        for master in masters:
            self.state[master] = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}

    def step(self):
        pass


@contextmanager
def meta_kernels(counter: Count) -> Iterator[None]:
    """What the meta device has not: attention and norms in one kernel each, fused AdamW, and numbers to read."""

    def attend(query, key, value, scaling, segments):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        k, v = k[segments.key_index], v[segments.key_index]
        pairs = sum(causal_pairs(own, seen - own) for own, seen in zip(segments.queries, segments.keys, strict=True))
        return FlashAttention.apply(q, k, v, pairs, counter)[None]

    with (
        patch.object(attention, "_run_by_run", attend),
        patch.object(policy, "_rms_norm", lambda norm, x: FusedNorm.apply(x, norm.weight, counter)),
        patch.object(optim, "_adamw", lambda masters, *_, **__: FusedAdamW(masters)),
        patch.object(torch.Tensor, "tolist", lambda tensor: [0.0] * tensor.numel()),
        torch.device("meta"),
    ):
        yield


def count(config: Config, layers: int | None = None) -> tuple[Count, int]:
    """What one rollout's passes take as a GPU learns from it, and its packed tokens.

    `layers`: of a shallower model of the same width; what is counted grows by the same amount with each layer.
    """
    shape = model_config(config.model)
    shape.num_hidden_layers = layers or shape.num_hidden_layers
    counter = Count()
    with meta_kernels(counter):
        whole = common.make_policy(shape, config, torch.device("meta"))
        for network in filter(None, (whole.network, whole._reference)):
            policy.fuse_norms(network)  # as the policy does on a GPU
        whole.arrived = lambda: 1.0  # a value, which meta tensors have not
        learner = common.make_learner(whole, config)
        groups = full_batches(config.learner.minibatches_per_rollout, config.learner.microbatch_tokens)
        with counter:
            learner.update(groups)
    return counter, common.packed_work(learner, groups)[0]


def settings(preset: str, **options: object) -> Config:
    """The preset as it is on a GPU that needs no 4-bit weights."""
    given = {name.replace("__", "."): value for name, value in options.items()}
    return build(preset, {"policy.quant": "none", "policy.dtype": "bfloat16"} | given)


def full_batches(batches: int, tokens: int, prompt: int = 256, completion: int = 768) -> list[list[Sample]]:
    """A group for each optimiser step that fills a micro-batch: one prompt, completions of about the planned length."""
    count = (tokens - prompt) // completion
    return common.make_samples([completion] * (count * batches), count, prompt, 96)


def per_token(counter: Count, tokens: int, card: str) -> dict[str, float]:
    seconds = counter.seconds(card)
    return {
        "megabytes": sum(counter.bytes.values()) / tokens / 1e6,
        "gigaflops": sum(counter.flops.values()) / tokens / 1e9,
        "microseconds": sum(seconds.values()) / tokens * 1e6,
        "microseconds_products": sum(seconds[name] for name in counter.flops) / tokens * 1e6,
    }


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--preset", nargs="+", default=["l4", "h100"])
    cli.add_argument("--top", type=int, default=12, help="operators that are shown")
    args = cli.parse_args()
    for preset in args.preset:
        card = preset if preset in CARDS else "h100"
        counter, tokens = count(settings(preset))
        print(f"\n{preset} on {card}, per token of {tokens}")
        common.show(per_token(counter, tokens, card))
        for name, spent in counter.seconds(card).most_common(args.top):
            print(f"  {name:34} {spent / tokens * 1e6:8.2f} us {counter.bytes[name] / tokens / 1e6:8.2f} MB")


if __name__ == "__main__":
    main()
