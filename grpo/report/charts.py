"""Which metric is drawn where, and what a reader should expect to see there.

A metric that no chart names still gets one, under "Everything else": nothing that was logged is left out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Chart:
    section: str
    title: str
    caption: str
    series: tuple[tuple[str, str], ...]
    """(metric, label). Metrics that no run has are left out; a chart without any is not drawn."""
    kind: Literal["lines", "band", "stack"] = "lines"
    """band: the second series is a spread, drawn as first +- second. stack: shares or seconds that add up."""
    unit: str = ""
    """"share" is drawn from 0 to 1, anything else names the y axis."""
    log: bool = False
    markers: bool = False


LEARNING, TEXT, OPTIMISER, COST, REST = (
    "Learning",
    "Length and variety",
    "Optimiser",
    "Time and memory",
    "Everything else",
)
SECTIONS = (LEARNING, TEXT, OPTIMISER, COST, REST)

HELD_OUT = Chart(
    LEARNING,
    "Held-out accuracy",
    "Problems the policy never trains on. Sampled accuracy, at the training temperature, rises first as the "
    "distribution sharpens; greedy accuracy is the stricter test. Reward rising while both stand still means the "
    "reward is being gamed or the one example memorised.",
    (("eval/sampled_accuracy", "sampled"), ("eval/greedy_accuracy", "greedy")),
    unit="share",
    markers=True,
)
REWARD = Chart(
    LEARNING,
    "Reward",
    "The line is the mean over all completions, the band one within-group standard deviation to each side: the spread "
    "that advantages are made of. Healthy: the line rises and levels off, the band narrows late. No band, no learning.",
    (("reward/mean", "mean"), ("reward/group_std", "group std")),
    kind="band",
)
AFTER_SIGNALS = (
    Chart(
        LEARNING,
        "Held-out format and verdict",
        "Held-out completions in the demanded format, with a true verdict on themselves, and with the verdict wrong. "
        "Healthy: the first two rise. A share of wrong verdicts near 0 or 1 means the policy always says the same.",
        (
            ("eval/format_rate", "format"),
            ("eval/verdict_accuracy", "verdict true"),
            ("eval/wrong_verdict_rate", "says wrong"),
        ),
        unit="share",
        markers=True,
    ),
    Chart(
        LEARNING,
        "Zero-variance groups",
        "Share of groups whose completions all got the same reward: they have advantage 0 and teach nothing. Healthy: "
        "well below 1 at first, rising once the example is learned. Near 1 from the start: the problem is too hard, "
        "too easy, or the temperature too low.",
        (("groups/zero_variance", "zero variance"),),
        unit="share",
    ),
    Chart(
        LEARNING,
        "Outcome of the answers",
        "What the verifier made of each completion. Healthy: correct grows; no answer and unparsed vanish within "
        "the first steps. Timeouts should stay at zero.",
        tuple(
            (f"outcome/{name}", name.replace("_", " "))
            for name in ("correct", "wrong", "no_answer", "unparsed", "timeout")
        ),
        kind="stack",
        unit="share",
    ),
    Chart(
        LEARNING,
        "Verdict and truth",
        "What the reflection says against what the verifier found. Healthy: the two true shares (first and last) take "
        "over. One verdict swallowing all others means the reflection carries no information.",
        (
            ("verdict/right_says_correct", "right, says correct"),
            ("verdict/right_says_wrong", "right, says wrong"),
            ("verdict/none", "no verdict"),
            ("verdict/wrong_says_correct", "wrong, says correct"),
            ("verdict/wrong_says_wrong", "wrong, says wrong"),
        ),
        kind="stack",
        unit="share",
    ),
    Chart(
        LEARNING,
        "Larger verdict's share",
        "Share of the more frequent verdict among all verdicts. Above 0.95 the reflection signal is dead.",
        (("verdict/larger_share", "larger share"),),
        unit="share",
    ),
    Chart(
        TEXT,
        "Completion length",
        "Tokens per completion. Slow growth is usual on mathematics. A jump, or a maximum pinned at the limit together "
        "with falling reward, is a policy that has begun to ramble.",
        (("completion/tokens_mean", "mean"), ("completion/tokens_max", "longest")),
        unit="tokens",
    ),
    Chart(
        TEXT,
        "Truncated and distinct completions",
        "Truncated: cut at the token limit; healthy is near 0, else raise the limit. Distinct: share of different "
        "texts; falling towards 0 is collapse, and groups of equal texts teach nothing.",
        (("completion/truncated", "truncated"), ("completion/unique", "distinct")),
        unit="share",
    ),
    Chart(
        OPTIMISER,
        "KL to the reference",
        "k3 estimate in nats per token. Healthy: starts at 0 and grows slowly and smoothly. A steep rise means the "
        "policy runs away from the base model: lower the learning rate. Not measured when its weight is 0.",
        (("policy/kl", "KL"),),
        unit="nats per token",
    ),
    Chart(
        OPTIMISER,
        "Entropy",
        "Mean entropy of the next-token distribution. Healthy: a slow fall. At 0 nothing is explored any more; a rise "
        "without end is an entropy weight that is too large.",
        (("policy/entropy", "entropy"),),
        unit="nats per token",
    ),
    Chart(
        OPTIMISER,
        "Clip fraction",
        "Share of tokens whose gradient the clip removed. 0 with one update per rollout, where every ratio is 1; "
        "a few per cent with several. Above 0.2 the updates are too large.",
        (("policy/clip_fraction_low", "below 1 - clip"), ("policy/clip_fraction_high", "above 1 + clip")),
    ),
    Chart(OPTIMISER, "Largest ratio", "New / old probability of a token.", (("policy/ratio_max", "ratio"),)),
    Chart(
        OPTIMISER,
        "Gradient norm",
        "Global norm before clipping, logarithmic. Healthy: one order of magnitude, with few spikes. It sinks as "
        "groups lose their spread. Always far above the clipping limit: lower the learning rate.",
        (("policy/grad_norm", "norm"),),
        log=True,
    ),
    Chart(
        OPTIMISER,
        "Sampler-trainer mismatch",
        "|sampler logprob - trainer logprob| over the completion tokens, logarithmic. Both saw the same weights, so "
        "only rounding may remain: next to nothing in float32, some in bfloat16. A rise means stale weights in the "
        "sampler, another temperature or another precision.",
        (("mismatch/mean", "mean"), ("mismatch/max", "largest")),
        unit="nats",
        log=True,
    ),
    Chart(
        OPTIMISER,
        "Loss",
        "Not a measure of progress: advantages are centred, so the policy loss stays near 0 while the policy improves. "
        "Only spikes and NaN matter here.",
        (("loss/total", "total"), ("loss/policy", "policy")),
    ),
    Chart(
        OPTIMISER, "Skipped updates", "Not finite, so not made. Healthy: 0.", (("learner/skipped_steps", "skipped"),)
    ),
    Chart(OPTIMISER, "Learning rate", "As scheduled.", (("policy/lr", "rate"),)),
    Chart(
        COST,
        "Seconds per step, by phase",
        "Where a step's time goes. Rollout usually dominates. A growing reward phase: answers are slow to verify.",
        tuple((f"time/{name}", name) for name in ("rollout", "reward", "learn", "sync", "eval", "other")),
        kind="stack",
        unit="seconds",
    ),
    Chart(
        COST,
        "Tokens per second",
        "Completion tokens over the whole step's time. It falls when completions grow, or when a few long ones keep a "
        "rollout waiting.",
        (("speed/tokens_per_second", "tokens/s"),),
        unit="tokens/s",
    ),
    Chart(
        COST,
        "Model FLOPs utilisation",
        "Share of the device's peak arithmetic that the model's own work used. Steady is healthy.",
        (("speed/mfu", "MFU"),),
    ),
    Chart(
        COST,
        "Peak memory",
        "Highest memory of each step. A slow climb without longer completions is a leak.",
        (("memory/peak_gib", "peak"),),
        unit="GiB",
    ),
    Chart(
        COST,
        "Verifier cache",
        "Share of answers that were verified before. Rises as the policy settles on few answers.",
        (("verifier/cache_hit_rate", "hits"),),
        unit="share",
    ),
)
COVERED_BY_OTHERS = {"time", "time/step", "reward/std"}
"""Logged, not drawn: the clock, the sum of the phases, and the spread over all groups together."""


def signal_chart(name: str) -> Chart:
    return Chart(
        LEARNING,
        f"Signal: {name}",
        "Before its weight. Line: mean over all completions; band: within-group standard deviation. "
        "A signal whose band is gone no longer takes part in the comparison.",
        ((f"signal/{name}", "mean"), (f"signal/{name}_group_std", "group std")),
        kind="band",
    )


def charts_for(metrics: Collection[str]) -> list[Chart]:
    """The charts that have something to show, by section, each reduced to the series that exist."""
    signals = sorted(m.removeprefix("signal/") for m in metrics if m.startswith("signal/"))
    signals = [
        name for name in signals if not (name.endswith("_group_std") and name.removesuffix("_group_std") in signals)
    ]
    planned = [HELD_OUT, REWARD, *map(signal_chart, signals), *AFTER_SIGNALS]
    named = {metric for chart in planned for metric, _ in chart.series} | COVERED_BY_OTHERS
    planned += [Chart(REST, metric, "", ((metric, metric),)) for metric in sorted(set(metrics) - named)]
    drawn = []
    for chart in planned:
        series = tuple((metric, label) for metric, label in chart.series if metric in metrics)
        if series:
            kind = "lines" if chart.kind == "band" and len(series) < 2 else chart.kind
            drawn.append(replace(chart, series=series, kind=kind))
    return sorted(drawn, key=lambda chart: SECTIONS.index(chart.section))
