"""The checks of exercises 1 to 4 and 7: cases, the right formula, and the usual wrong ones with a hint for each.

The right formulas are written here once more and not taken from the repository, so that the two check each other.
"""

from __future__ import annotations

import torch

from course.exercises.judge import Wrong, call, judge, judge_gradient


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def check_advantage(module) -> None:
    def std(r, dim=-1, unbiased=True):
        return r.std(dim, keepdim=True, unbiased=unbiased)

    def mean(r, dim=-1):
        return r.mean(dim, keepdim=True)

    wrong = {
        "your std is the population's, divided by n; GRPO takes the sample's, divided by n - 1": lambda r: (
            (r - mean(r)) / (std(r, unbiased=False) + 1e-6)
        ),
        "you subtract the mean but do not divide by the standard deviation (that is Dr. GRPO)": lambda r: r - mean(r),
        "you divide by the variance; take its square root, the standard deviation": lambda r: (
            (r - mean(r)) / (std(r) ** 2 + 1e-6)
        ),
        "your mean and std are over all rewards; each group has its own": lambda r: (r - r.mean()) / (r.std() + 1e-6),
        "your mean is the group's, but your std is over all rewards": lambda r: (r - mean(r)) / (r.std() + 1e-6),
        "your std is the group's, but your mean is over all rewards": lambda r: (r - r.mean()) / (std(r) + 1e-6),
        "you do not subtract the mean: the worst completion of a group would be praised": lambda r: r / (std(r) + 1e-6),
        "the sign is turned: better than the mean must be positive": lambda r: (mean(r) - r) / (std(r) + 1e-6),
        "a group in which all rewards are equal gives 0 / 0, nan: add 1e-6 to the std": lambda r: (
            (r - mean(r)) / std(r)
        ),
        "the 1e-6 stands under the square root; it is added to the std": lambda r: (
            (r - mean(r)) / (std(r) ** 2 + 1e-6).sqrt()
        ),
        "you compare along the columns; a row is a group (dim=-1)": lambda r: (r - mean(r, 0)) / (std(r, 0) + 1e-6),
        "you divide by std and add 1e-6 afterwards: it belongs into the denominator, (std + 1e-6)": lambda r: (
            (r - mean(r)) / std(r) + 1e-6
        ),
    }
    cases = [
        (tensor((1, 0, 0, 0), (0.5, 1.5, 2, 0), (0.7, 0.7, 0.7, 0.7)),),
        (tensor((2, 1), (0, 3), (0.1, 0.2)),),
    ]
    judge(module.group_advantages, lambda r: (r - mean(r)) / (std(r) + 1e-6), wrong, cases)


def check_ratio_and_clip(module) -> None:
    def right(new, old, a, low, high):
        ratio = (new - old).exp()
        return -torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)

    def variant(
        ratio=lambda new, old: (new - old).exp(), combine=torch.minimum, bounds=lambda lo, hi: (1 - lo, 1 + hi)
    ):
        def formula(new, old, a, low, high):
            rho = ratio(new, old)
            return -combine(rho * a, rho.clamp(*bounds(low, high)) * a)

        return formula

    def min_of_ratios(new, old, a, low, high):
        ratio = (new - old).exp()
        return -torch.minimum(ratio, ratio.clamp(1 - low, 1 + high)) * a

    wrong = {
        "the sign is turned: the loss is minus the objective, because optimisers minimise": lambda *c: -right(*c),
        "you take the max of the two products; the objective is their min": variant(combine=torch.maximum),
        "you took max(ratio * A, clipped ratio * A) as the loss: the minus sign is missing": lambda *c: (
            -variant(combine=torch.maximum)(*c)
        ),
        "your ratio is old / new; it is new / old, exp(logprob - old_logprob)": variant(lambda n, o: (o - n).exp()),
        "your ratio is a difference of log-probabilities: take its exp": variant(lambda n, o: n - o),
        "your ratio divides log-probabilities; divide the probabilities: exp(logprob - old_logprob)": variant(
            lambda n, o: n / o
        ),
        "you use the clipped ratio alone; without the min, a token that went the wrong way cannot come back": variant(
            combine=lambda _, clipped: clipped
        ),
        "you do not clip: only ratio * A is left": variant(combine=lambda plain, _: plain),
        "you take the min of the ratios and multiply by A; take the min of the products": min_of_ratios,
        "clip_low and clip_high are exchanged": variant(bounds=lambda lo, hi: (1 - hi, 1 + lo)),
        "you clip to [clip_low, clip_high]; the bounds are 1 - clip_low and 1 + clip_high": variant(
            bounds=lambda lo, hi: (lo, hi)
        ),
        "you clip at the top only; the ratio is also at least 1 - clip_low": variant(bounds=lambda lo, hi: (0, 1 + hi)),
        "you clip at the bottom only; the ratio is also at most 1 + clip_high": variant(
            bounds=lambda lo, hi: (1 - lo, 1e9)
        ),
        "the advantage is missing": lambda n, o, a, lo, hi: right(n, o, torch.ones_like(a), lo, hi),
    }
    old = tensor(-1.0, -2.0, -0.5, -3.0, -1.5, -0.7, -2.2, -1.1)
    new = old + tensor(0.5, 0.9, 1.1, 1.6, 0.5, 0.9, 1.1, 1.6).log()
    a = tensor(1.0, 2.0, 0.5, 1.0, -1.0, -2.0, -0.5, -1.0)
    judge(module.policy_loss, right, wrong, [(new, old, a, 0.2, 0.3), (new, old, a, 0.05, 0.5)])
    judge_gradient(module.policy_loss, right, lambda: (new.clone().requires_grad_(), old, a, 0.2, 0.3))


def check_normaliser(module) -> None:
    def total(batches):
        return sum((x * m).sum() for x, m in batches)

    def tokens(batches):
        return sum(m.sum() for _, m in batches)

    def means(batches):
        return torch.stack([(x * m).sum() / m.sum() for x, m in batches])

    def completion_means(batches):
        return [(x * m).sum(1) / m.sum(1) for x, m in batches]

    def right(batches):
        return total(batches) / tokens(batches)

    wrong = {
        "you averaged each micro-batch and then the averages: tokens of a small micro-batch weigh more": lambda b: (
            means(b).mean()
        ),
        "you added up the means of the micro-batches: each is divided by its own tokens, not by all": lambda b: means(
            b
        ).sum(),
        "you averaged each completion first: tokens of a short completion weigh more": lambda b: torch.cat(
            completion_means(b)
        ).mean(),
        "you averaged completions, then micro-batches, then those averages; every token counts the same": lambda b: (
            torch.stack([x.mean() for x in completion_means(b)]).mean()
        ),
        "this is the sum; divide it by the number of tokens": total,
        "you divide by the number of completions; divide by the number of tokens": lambda b: (
            total(b) / sum(len(m) for _, m in b)
        ),
        "you divide by the number of micro-batches; divide by the number of tokens": lambda b: total(b) / len(b),
        "your denominator counts padding: count the True entries of the mask": lambda b: (
            total(b) / sum(m.numel() for _, m in b)
        ),
        "your sum contains the padding: multiply the losses by the mask": lambda b: (
            sum(x.sum() for x, _ in b) / tokens(b)
        ),
        "you ignore the mask: padding is in the sum and in the denominator": lambda b: (
            sum(x.sum() for x, _ in b) / sum(x.numel() for x, _ in b)
        ),
        "your denominator holds the tokens of the last micro-batch only": lambda b: total(b) / b[-1][1].sum(),
        "your denominator holds the tokens of the first micro-batch only": lambda b: total(b) / b[0][1].sum(),
        "this is the mean of the last micro-batch; the others are lost": lambda b: means(b)[-1],
        "this is the mean of the first micro-batch: is the `return` inside the loop?": lambda b: means(b)[0],
    }
    first = (tensor((3.0, 7.0, 9.0), (2.0, 4.0, 5.0)), torch.tensor([[True, False, False], [True, True, False]]))
    second = (tensor((1.0, -1.0, 0.5, 2.0)), torch.tensor([[True, True, True, True]]))
    third = (tensor((8.0, 6.0), (4.0, 1.0), (-2.0, 3.0)), torch.tensor([[True, False], [True, True], [True, True]]))
    judge(module.step_loss, right, wrong, [([first, second],), ([third, first, second],), ([second],)])

    def with_gradient(losses):
        return [(losses, first[1]), second]

    def differentiated(function):
        return lambda losses: call(function, with_gradient(losses))

    judge_gradient(
        differentiated(module.step_loss), differentiated(right), lambda: (first[0].clone().requires_grad_(),)
    )


def check_k3(module) -> None:
    def right(logp, ref):
        d = ref - logp
        return torch.expm1(d) - d

    wrong = {
        "d is turned around: it is the reference's log-probability minus the model's": lambda p, r: right(r, p),
        "this is k1, -d: right on average, but negative for many tokens": lambda p, r: p - r,
        "this is d; k3 is e^d - 1 - d": lambda p, r: r - p,
        "this is k2, d^2 / 2; k3 is e^d - 1 - d": lambda p, r: (r - p) ** 2 / 2,
        "the 1 is missing: at d = 0 the estimate must be 0": lambda p, r: (r - p).exp() - (r - p),
        "the d is missing: e^d - 1 alone can be negative": lambda p, r: torch.expm1(r - p),
        "you add d; it is subtracted": lambda p, r: torch.expm1(r - p) + (r - p),
        "the sign is turned: k3 is never negative": lambda p, r: -right(p, r),
        "you subtract the 1 twice: expm1(d) is e^d - 1 already": lambda p, r: torch.expm1(r - p) - 1 - (r - p),
        "this is the ratio e^d; k3 is e^d - 1 - d": lambda p, r: (r - p).exp(),
        "you weigh the token by its probability; sampling has done that": lambda p, r: p.exp() * (p - r),
        "d is a difference of probabilities; take the difference of log-probabilities": lambda p, r: right(
            p.exp(), r.exp()
        ),
    }
    logp, ref = tensor(-1.0, -1.0, -0.3, -2.0, -4.0), tensor(-1.0, -0.5, -2.0, -2.1, -1.0)
    judge(module.k3, right, wrong, [(logp, ref)])
    judge_gradient(module.k3, right, lambda: (logp.clone().requires_grad_(), ref))
    small = torch.linspace(-1e-4, 1e-4, 201)  # float32
    found = call(module.k3, torch.zeros(201), small)
    if (found < 0).any():
        d, value = small[found < 0][0].item(), found[found < 0][0].item()
        raise Wrong(f"in float32, d = {d:.6f} gives {value:.1e}, which is negative: use torch.expm1(d), not exp(d) - 1")


def check_sequence_ratio(module) -> None:
    def total(values, mask):
        return (values * mask).sum(1)

    def right(new, old, mask):
        return (total(new - old, mask) / mask.sum(1)).exp()

    wrong = {
        "this is the product of the token ratios; divide the sum of the logs by the number of tokens": lambda n, o, m: (
            total(n - o, m).exp()
        ),
        "this is the mean of the token ratios; take the mean of their logs, then exp": lambda n, o, m: (
            total((n - o).exp(), m) / m.sum(1)
        ),
        "this is the log of the ratio: take its exp": lambda n, o, m: total(n - o, m) / m.sum(1),
        "your ratio is old / new; it is new / old, exp(logprob - old_logprob)": lambda n, o, m: right(o, n, m),
        "you divide by T; divide by the number of tokens with mask True": lambda n, o, m: (
            total(n - o, m) / m.shape[1]
        ).exp(),
        "you ignore the mask: padding and a tool's tokens are in the mean": lambda n, o, m: (n - o).mean(1).exp(),
        "your sum contains tokens with mask False: multiply by the mask": lambda n, o, m: (
            (n - o).sum(1) / m.sum(1)
        ).exp(),
        "your mean is over all completions; each has its own": lambda n, o, m: (
            (total(n - o, m).sum() / m.sum()).exp().expand(len(m))
        ),
    }
    old = tensor((-1.0, -2.0, -0.5), (-3.0, -1.5, -0.7), (-2.2, -1.1, -0.4))
    new = old + tensor((0.5, 2.0, 3.0), (4.0, 1.0, 0.5), (1.2, 0.9, 0.8)).log()
    mask = torch.tensor([[True, True, False], [True, False, True], [True, True, True]])
    judge(module.sequence_ratio, right, wrong, [(new, old, mask), (new[:2], old[:2], mask[:2])])
    judge_gradient(module.sequence_ratio, right, lambda: (new.clone().requires_grad_(), old, mask))
