"""The learner against a naive loop written straight from the formula: one completion at a time, no packing.

Two groups of four completions of 1 to 9 tokens: one truncated (no end token), one that is nothing but the end token,
one with the pad id inside. Whatever the micro-batches, the order of rows or the options: same loss, gradients, metrics.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from tiny_model import make_tiny_model

from grpo.errors import NonFiniteLoss, SamplerMismatch
from grpo.learner import Learner
from grpo.policy import Policy
from grpo.settings import Config, LearnerConfig, RolloutConfig
from grpo.types import Sample

PAD, EOS = 0, 1
PROMPTS = ((5, 6, 7), (9, 8, 0, 6, 5))  # the second holds the pad id
COMPLETIONS = (
    ((4, EOS), (3, 7, 9, EOS), (EOS,), (6, 6, 2, 5, 8, 3, 9, 4, 7)),  # one only the end token, one truncated
    ((2, 0, 8, EOS), (5, 5, EOS), (7, 3, 2, 9, 6, EOS), (8, 4, 4, 2, EOS)),  # one with the pad id inside
)
ADVANTAGES = ((1.5, -0.5, -0.5, -0.5), (0.3, -1.2, 0.8, 0.1))
TEMPERATURE = 0.7


class Tokenizer:
    eos_token_id, chat_template = EOS, None

    def get_vocab(self):
        return {}


def make_policy(lora_rank: int = 0, **config) -> Policy:
    learner = {"logit_chunk": 3, "kl_coef": 1.0}  # so that a reference is kept
    policy = Policy(make_tiny_model(), Tokenizer(), Config(policy={"lora_rank": lora_rank} | config, learner=learner))
    torch.manual_seed(1)
    with torch.no_grad():  # away from the reference, so that KL is not zero
        for p in policy.trainable().values():
            p += 0.05 * torch.randn_like(p)
    return policy


def make_groups(policy: Policy, shift: float = 0.1) -> list[list[Sample]]:
    """Sampler logprobs are the policy's plus a known pattern, so that the gap is known too."""
    groups = []
    for prompt, completions, advantages in zip(PROMPTS, COMPLETIONS, ADVANTAGES, strict=True):
        group = []
        for ids, advantage in zip(completions, advantages, strict=True):
            logprobs, _ = naive_logprobs(policy.network, prompt, ids)
            group.append(Sample(prompt, ids, tuple((logprobs.detach() + shift).tolist()), advantage))
        groups.append(group)
    return groups


def naive_logprobs(network, prompt, ids):
    logits = network(torch.tensor([[*prompt, *ids]]), use_cache=False, segments=None).logits[0, len(prompt) - 1 : -1]
    logp = torch.log_softmax(logits / TEMPERATURE, -1)
    return logp.gather(-1, torch.tensor(ids)[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def naive_surrogate(config: LearnerConfig, logprobs, old, sampler, advantage: float) -> list[torch.Tensor]:
    """The loss of each trained token of one completion, before KL and entropy, the way the papers write it."""
    n = len(logprobs)
    low, high = 1 - config.clip_low, 1 + config.clip_high
    ratios = [(logprobs[t] - old[t]).exp() for t in range(n)]
    if config.loss == "gspo":
        ratios = [math.prod(ratios) ** (1 / n)] * n
    if config.loss in ("grpo", "gspo"):
        losses = [-min(ratio * advantage, ratio.clamp(low, high) * advantage) for ratio in ratios]
    elif config.loss == "cispo":
        losses = [-min(max(ratios[t].item(), low), high) * advantage * logprobs[t] for t in range(n)]
    else:
        losses = [-advantage * logprobs[t] for t in range(n)]
    weights = [(old[t] - sampler[t]).exp().item() for t in range(n)]
    if config.sampler_correction.startswith("sequence"):
        weights = [math.prod(weights)] * n
    if config.sampler_correction.endswith("truncate"):
        weights = [min(weight, config.sampler_correction_cap) for weight in weights]
    elif config.sampler_correction.endswith("mask"):
        weights = [weight if weight <= config.sampler_correction_cap else 0.0 for weight in weights]
    else:
        weights = [1.0] * n
    return [weight * loss for weight, loss in zip(weights, losses, strict=True)]


def naive_step(policy: Policy, samples: list[Sample], config: LearnerConfig, old: dict, max_new_tokens: int):
    """Loss and metrics of one optimiser step, one completion at a time. `old` holds all tokens of a completion."""
    masks = {s: s.mask or (True,) * len(s.completion_ids) for s in samples}
    count, completions = sum(map(sum, masks.values())), sum(map(any, masks.values()))
    loss, kl_sum, entropy_sum = 0.0, 0.0, 0.0
    for sample in samples:
        logprobs, entropy = naive_logprobs(policy.network, sample.prompt_ids, sample.completion_ids)
        with torch.no_grad():
            if policy.lora:
                with policy.model.disable_adapter():
                    ref, _ = naive_logprobs(policy.network, sample.prompt_ids, sample.completion_ids)
            else:
                ref, _ = naive_logprobs(policy._reference, sample.prompt_ids, sample.completion_ids)
        kept = [t for t, trained in enumerate(masks[sample]) if trained]
        if not kept:
            continue
        sampler = torch.tensor(sample.sampler_logprobs, dtype=torch.float64)[kept]
        surrogate = naive_surrogate(config, logprobs[kept], old[sample][kept], sampler, sample.advantage)
        for place, t in enumerate(kept):
            kl = (ref[t] - logprobs[t]).exp() - (ref[t] - logprobs[t]) - 1
            token = surrogate[place] + config.kl_coef * kl - config.entropy_coef * entropy[t]
            share = {
                "token-mean": 1 / count,
                "seq-mean": 1 / (completions * len(kept)),
                "dr_grpo": 1 / (completions * max_new_tokens),
            }[config.loss_aggregation]
            loss = loss + share * token
            kl_sum, entropy_sum = kl_sum + kl.item(), entropy_sum + entropy[t].item()
    return loss, {"loss/total": loss.item(), "policy/kl": kl_sum / count, "policy/entropy": entropy_sum / count}


def whole(learner: LearnerConfig, logprob_diff_limit: float = 10.0) -> Config:
    rollout = RolloutConfig(temperature=TEMPERATURE, max_new_tokens=9, logprob_diff_limit=logprob_diff_limit)
    return Config(steps=4, learner=learner, rollout=rollout)


def learn(policy: Policy, groups, **settings) -> dict[str, float]:
    """One update with plain SGD-like bookkeeping left to the learner; returns its metrics."""
    config = LearnerConfig(**({"lr": 1e-3, "weight_decay": 0.0, "grad_clip": 1e9} | settings))
    learner = Learner(policy, whole(config))
    return learner.update(groups)


def gradients(policy: Policy, groups, **settings) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradient of one optimiser step, caught before it is used."""
    config = LearnerConfig(**({"lr": 1e-3, "grad_clip": 1e9} | settings))
    learner = Learner(policy, whole(config))
    caught = {}

    def step():
        caught.update({name: p.grad.clone() for name, p in policy.trainable().items()})

    learner.optimizer.step = step
    metrics = learner.update(groups)
    return caught, metrics


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize(
    ("aggregation", "kl", "entropy"),
    [
        ("token-mean", 0.0, 0.0),
        ("token-mean", 0.3, 0.0),
        ("token-mean", 0.0, 0.2),
        ("seq-mean", 0.3, 0.2),
        ("dr_grpo", 0.3, 0.2),
    ],
)
def test_equals_the_formula_for_every_microbatch_tokens(lora_rank, aggregation, kl, entropy):
    policy = make_policy(lora_rank)
    groups = make_groups(policy)
    samples = [sample for group in groups for sample in group]
    settings = {"loss_aggregation": aggregation, "kl_coef": kl, "entropy_coef": entropy}
    old = {s: naive_logprobs(policy.network, s.prompt_ids, s.completion_ids)[0].detach() for s in samples}
    loss, expected = naive_step(policy, samples, LearnerConfig(**settings), old, max_new_tokens=9)
    reference = torch.autograd.grad(loss, list(policy.trainable().values()))
    for budget in (1, 30, 10_000):
        found, metrics = gradients(policy, groups, microbatch_tokens=budget, **settings)
        for name, gradient in zip(policy.trainable(), reference, strict=True):
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-11)
        assert metrics["loss/total"] == pytest.approx(expected["loss/total"], rel=1e-9)
        assert metrics["policy/entropy"] == pytest.approx(expected["policy/entropy"], rel=1e-9)
        assert metrics["policy/kl"] == pytest.approx(expected["policy/kl"] if kl else 0.0, rel=1e-9)
        assert metrics["policy/ratio_max"] == 1.0
        assert metrics["policy/clip_fraction_low"] == metrics["policy/clip_fraction_high"] == 0.0
        assert metrics["logprob_diff/mean"] == pytest.approx(0.1, rel=1e-9)


def test_two_optimiser_steps_use_the_weights_that_sampled_and_their_own_counts():
    # Step 1 learns group 0; step 2 learns group 1 with a ratio against the weights before step 1, so it is not 1.
    policy = make_policy()
    groups = make_groups(policy)
    naive = copy.deepcopy(policy)
    metrics = learn(policy, groups, minibatches_per_rollout=2, lr=0.01, kl_coef=0.1)
    config = LearnerConfig(minibatches_per_rollout=2, lr=0.01, kl_coef=0.1)
    old = {s: naive_logprobs(naive.network, s.prompt_ids, s.completion_ids)[0].detach() for g in groups for s in g}
    adamw = torch.optim.AdamW(naive.trainable().values(), lr=0.01, weight_decay=0.0)
    losses = []
    for group in groups:
        loss, _ = naive_step(naive, group, config, old, max_new_tokens=9)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        losses.append(loss.item())
    for name, p in policy.trainable().items():
        torch.testing.assert_close(p, naive.trainable()[name], rtol=1e-8, atol=1e-11)
    assert metrics["policy/ratio_max"] > 1.0
    tokens = [sum(len(s.completion_ids) for s in group) for group in groups]
    mean = sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)
    assert metrics["loss/total"] == pytest.approx(mean, rel=1e-8)


def distorted(groups: list[list[Sample]]) -> list[list[Sample]]:
    """The groups with a sampler that is off by up to 1.5 nats, and with masks: a tool's output and a cut completion."""
    generator = torch.Generator().manual_seed(4)
    tool, cut = (True, False, False, True), (False,) * 9
    masks = {(3, 7, 9, EOS): tool, (6, 6, 2, 5, 8, 3, 9, 4, 7): cut, (2, 0, 8, EOS): (False, True, True, True)}

    def distort(s: Sample) -> Sample:
        error = 1.5 * (2 * torch.rand(len(s.completion_ids), generator=generator, dtype=torch.float64) - 1)
        noisy = tuple((torch.tensor(s.sampler_logprobs, dtype=torch.float64) + error).tolist())
        return dataclasses.replace(s, sampler_logprobs=noisy, mask=masks.get(s.completion_ids))

    return [[distort(s) for s in group] for group in groups]


@pytest.mark.parametrize("correction", ["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo", "reinforce"])
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean", "dr_grpo"])
def test_every_loss_and_correction_with_masks_equals_the_formula(loss, correction, aggregation):
    if loss == "gspo" and correction.startswith("token"):
        pytest.skip("refused by the settings")
    policy = make_policy()
    groups = distorted(make_groups(policy))
    settings = {"loss": loss, "sampler_correction": correction, "loss_aggregation": aggregation}
    settings |= {"sampler_correction_cap": 1.5, "clip_low": 0.02, "clip_high": 0.05, "kl_coef": 0.1, "lr": 0.03}
    config = LearnerConfig(minibatches_per_rollout=2, grad_clip=1e9, **settings)
    naive = copy.deepcopy(policy)
    old = {s: naive_logprobs(naive.network, s.prompt_ids, s.completion_ids)[0].detach() for g in groups for s in g}
    sgd = torch.optim.SGD(naive.trainable().values(), lr=0.03)
    learner = Learner(policy, whole(config))
    learner.optimizer.adamw = torch.optim.SGD(learner.optimizer.masters, lr=0.03)
    metrics = learner.update(groups)
    for group in groups:
        sgd.zero_grad()
        naive_step(naive, group, config, old, max_new_tokens=9)[0].backward()
        sgd.step()
    for name, p in policy.trainable().items():
        torch.testing.assert_close(p, naive.trainable()[name], rtol=1e-8, atol=1e-11)
    assert metrics["policy/ratio_max"] != 1.0
    clipped = metrics["policy/clip_fraction_low"] + metrics["policy/clip_fraction_high"]
    assert (clipped > 0) == (loss != "reinforce")


def test_a_masked_token_is_seen_and_enters_no_number():
    """The same completion with the tool's tokens trained or not: the others keep their log-probabilities, and masked
    tokens are in no mean, maximum or length. A NaN in their place shows any leak."""
    policy = make_policy()
    groups = make_groups(policy)
    nan = (math.nan,) * 2
    masked = dataclasses.replace(
        groups[0][1],
        mask=(True, False, False, True),
        sampler_logprobs=(groups[0][1].sampler_logprobs[0], *nan, groups[0][1].sampler_logprobs[3]),
    )
    other = dataclasses.replace(masked, completion_ids=(3, 8, 8, EOS))
    for correction in ("none", "sequence_mask", "token_truncate"):
        settings = {"sampler_correction": correction, "entropy_coef": 0.1, "kl_coef": 0.1}
        found, metrics = gradients(policy, [[masked, *groups[0][2:]], groups[1]], **settings)
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["logprob_diff/mean"] == pytest.approx(0.1, rel=1e-9)
        changed, _ = gradients(policy, [[other, *groups[0][2:]], groups[1]], **settings)
        assert any(not torch.equal(found[name], changed[name]) for name in found)  # the last token saw them


def test_gspo_counts_completions_and_the_other_losses_tokens():
    """The first step moves the ratios of group 1. Signs are chosen so that its completions moved the right way."""
    first, second = make_groups(make_policy())
    groups = [first, [dataclasses.replace(sample, advantage=-sample.advantage) for sample in second]]
    shares = {}
    for loss in ("grpo", "gspo", "cispo"):
        metrics = learn(
            make_policy(), groups, loss=loss, minibatches_per_rollout=2, lr=0.05, clip_low=0.01, clip_high=0.01
        )
        shares[loss] = metrics["policy/clip_fraction_low"] + metrics["policy/clip_fraction_high"]
    assert shares["gspo"] > 0
    assert (shares["gspo"] * 8) % 1 == pytest.approx(0, abs=1e-9)  # of 8 completions
    tokens = sum(len(ids) for group in COMPLETIONS for ids in group)
    assert (shares["grpo"] * tokens) % 1 == pytest.approx(0, abs=1e-9)
    assert shares["cispo"] > shares["grpo"] > 0  # cispo bounds every ratio, whatever the advantage's sign


@pytest.mark.parametrize("groups", [1, 3, 5])
def test_groups_that_do_not_divide_are_refused(groups: int):
    policy = make_policy()
    first = make_groups(policy)[0]
    learner = Learner(policy, whole(LearnerConfig(minibatches_per_rollout=2)))
    with pytest.raises(ValueError, match=rf"{groups} groups do not divide into learner.minibatches_per_rollout 2"):
        learner.update([first] * groups)


def test_rows_may_stand_in_any_order():
    policy = make_policy()
    groups = make_groups(policy)
    first, metrics = gradients(policy, groups, kl_coef=0.1, microbatch_tokens=20)
    shuffled = [list(reversed(groups[1])), groups[0][2:] + groups[0][:2]]
    second, other = gradients(policy, shuffled, kl_coef=0.1, microbatch_tokens=20)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-8, atol=1e-11)
    assert other == pytest.approx(metrics, rel=1e-9)


def test_the_denominator_counts_completion_tokens_and_not_the_prompt():
    policy = make_policy()
    groups = make_groups(policy)
    tokens = sum(len(ids) for group in COMPLETIONS for ids in group)
    # With advantage 1 everywhere and ratio 1 the token-mean loss is -1, whatever the prompt's length.
    ones = [[dataclasses.replace(s, advantage=1.0) for s in group] for group in groups]
    assert learn(policy, ones, lr=1e-12)["loss/policy"] == pytest.approx(-1.0)
    constant = learn(policy, ones, lr=1e-12, loss_aggregation="dr_grpo")["loss/policy"]
    assert constant == pytest.approx(-tokens / (8 * 9))


def test_the_end_token_is_trained():
    """A completion that is nothing but the end token has the gradient of its log-probability (ratio 1, advantage 1)."""
    policy = make_policy()
    sample = Sample((5, 6, 7), (EOS,), (0.0,), 1.0)
    found, _ = gradients(policy, [[sample]])
    logprobs, _ = naive_logprobs(policy.network, sample.prompt_ids, sample.completion_ids)
    expected = torch.autograd.grad(-logprobs.sum(), list(policy.trainable().values()))
    for gradient, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-11)


def test_a_mcalls_truncation_loses_its_gradient_and_nothing_else():
    policy = make_policy()
    groups = make_groups(policy)
    mcalls = [
        [dataclasses.replace(s, mask=(s.completion_ids[-1] == EOS,) * len(s.completion_ids)) for s in g] for g in groups
    ]
    without = [[s for s in group if s.completion_ids[-1] == EOS] for group in groups]
    assert sum(map(len, without)) == 7
    a, _ = gradients(policy, mcalls)
    b, _ = gradients(policy, [without[0] + without[1]])
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("skip", [False, True])
def test_all_groups_flat_is_a_clean_step(skip: bool):
    policy = make_policy()
    flat = [[dataclasses.replace(s, advantage=0.0) for s in group] for group in make_groups(policy)]
    before = {name: p.detach().clone() for name, p in policy.trainable().items()}
    metrics = learn(policy, flat, skip_zero_variance=skip)
    assert metrics["policy/grad_norm"] == 0.0
    assert math.isnan(metrics["logprob_diff/mean"]) == skip  # left out is not measured, and not measured is not zero
    for name, p in policy.trainable().items():
        assert torch.equal(p, before[name])


def test_skipping_flat_groups_changes_nothing_but_the_time():
    policy = make_policy()
    groups = make_groups(policy)
    mixed = [groups[0], [dataclasses.replace(s, advantage=0.0) for s in groups[1]]]
    kept, _ = gradients(policy, mixed)
    skipped, _ = gradients(policy, mixed, skip_zero_variance=True)
    for name in kept:
        torch.testing.assert_close(kept[name], skipped[name], rtol=1e-8, atol=1e-11)


def test_an_empty_completion_is_harmless():
    policy = make_policy()
    groups = make_groups(policy)
    extra = [[*group, Sample(PROMPTS[0], (), (), 0.7)] for group in groups]
    a, _ = gradients(policy, groups)
    b, metrics = gradients(policy, extra)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-8, atol=1e-11)
    assert all(map(torch.isfinite, map(torch.tensor, metrics.values())))


def test_sampler_correction_weighs_each_token_up_to_its_cap():
    policy = make_policy()
    groups = make_groups(policy, shift=-1.5)  # trainer / sampler = e^1.5 = 4.5, capped at 2
    free, _ = gradients(policy, groups)
    capped, _ = gradients(policy, groups, sampler_correction="token_truncate")
    for name in free:
        torch.testing.assert_close(capped[name], 2 * free[name], rtol=1e-8, atol=1e-11)


def test_nothing_leaks_between_sequences_of_a_pack():
    policy = make_policy()
    groups = make_groups(policy)
    samples = [s for group in groups for s in group]
    from grpo.packing import pack

    def logprobs(samples):
        (batch,) = pack(samples, [1.0] * len(samples), 10_000)
        found = policy.logprobs(batch, TEMPERATURE)[0].detach()
        return {i: found[batch.flat_index == i] for i in range(int(batch.flat_index.max()) + 1)}

    before = logprobs(samples)
    changed = [dataclasses.replace(samples[0], completion_ids=(9, 9)), *samples[1:]]  # same length, other tokens
    after = logprobs(changed)
    for slot in range(2, len(before)):
        assert torch.equal(before[slot], after[slot])


def test_checkpointing_changes_no_number():
    plain, checkpointed = make_policy(), make_policy(gradient_checkpointing=True)
    groups = make_groups(plain)
    a, _ = gradients(plain, groups)
    b, _ = gradients(checkpointed, groups)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12)


def test_a_sampler_with_other_weights_stops_the_run():
    policy = make_policy()
    groups = make_groups(policy, shift=0.3)
    learner = Learner(policy, whole(LearnerConfig(), logprob_diff_limit=0.2))
    before = {name: p.detach().clone() for name, p in policy.trainable().items()}
    with pytest.raises(
        SamplerMismatch, match=r"the rollout is 0\.3000, over rollout.logprob_diff_limit 0\.2.*temperature"
    ):
        learner.update(groups)
    for name, p in policy.trainable().items():
        assert torch.equal(p, before[name])


def test_a_non_finite_step_is_skipped_counted_and_in_the_end_fatal():
    policy = make_policy()
    groups = make_groups(policy)
    bad = [[dataclasses.replace(groups[0][0], advantage=float("nan")), *groups[0][1:]], groups[1]]
    config = LearnerConfig(max_nonfinite_steps=2)
    learner = Learner(policy, whole(config))
    before = {name: p.detach().clone() for name, p in policy.trainable().items()}
    assert learner.update(bad)["learner/skipped_steps"] == 1
    assert learner.optimizer.steps == 1  # the schedule counts it, or it would not end with the run
    for name, p in policy.trainable().items():
        assert torch.equal(p, before[name])
    assert learner.update(groups)["learner/skipped_steps"] == 0  # a good step in between starts the count again
    learner.update(bad)
    with pytest.raises(NonFiniteLoss, match="2 optimiser steps in a row"):
        learner.update(bad)


def test_a_nan_from_the_sampler_stops_the_run_and_no_maximum_hides_one():
    policy = make_policy()
    groups = make_groups(policy)
    first = groups[0][0]
    broken = dataclasses.replace(first, sampler_logprobs=(math.nan, *first.sampler_logprobs[1:]))
    with pytest.raises(SamplerMismatch, match="is nan, over"):
        learn(policy, [[broken, *groups[0][1:]], groups[1]])
    bad = [[dataclasses.replace(first, advantage=math.nan), *groups[0][1:]], groups[1]]
    for order in (bad, bad[::-1]):
        metrics = learn(policy, order, minibatches_per_rollout=2, lr=1e-12)
        assert metrics["learner/skipped_steps"] == 1
        assert math.isnan(metrics["policy/grad_norm"])


def test_only_the_later_minibatches_need_a_pass_for_their_old_logprobs():
    """The first one's present logprobs are the old ones to the bit, so its pass would change nothing."""
    policy, other = make_policy(), make_policy()
    groups = make_groups(policy)
    calls = []

    class Watched(Learner):
        def _old_logprobs(self, samples):
            calls.append(samples)
            return super()._old_logprobs(samples)

    config = LearnerConfig(minibatches_per_rollout=2, lr=0.01)
    Watched(policy, whole(config)).update(groups)
    assert calls == [groups[1]]
    both = Watched(other, whole(config))
    for samples, old in [(group, both._old_logprobs(group)) for group in groups]:
        both._step(both._accumulate(samples, old), samples)
    for name, p in policy.trainable().items():
        assert torch.equal(p, other.trainable()[name])


def test_the_effective_sample_size_is_of_whole_completions():
    policy = make_policy()
    assert learn(policy, make_groups(policy, shift=0.0), lr=1e-12)["logprob_diff/ess"] == pytest.approx(1.0)
    # The sampler's log-probabilities are 0.1 higher a token: a completion of n tokens weighs e^(-0.1 n).
    weights = [math.exp(-0.1 * len(ids)) for group in COMPLETIONS for ids in group]
    for minibatches in (1, 2):
        metrics = learn(make_policy(), make_groups(policy), minibatches_per_rollout=minibatches, lr=1e-12)
        expected = sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights))
        assert metrics["logprob_diff/ess"] == pytest.approx(expected, rel=1e-6)


def test_inputs_are_not_changed():
    policy = make_policy()
    groups = make_groups(policy)
    copied = copy.deepcopy(groups)
    learn(policy, groups)
    assert groups == copied


def test_metrics_do_not_depend_on_the_micro_batches():
    policies = [make_policy() for _ in range(4)]
    groups = make_groups(policies[0])
    runs = [
        learn(policy, groups, kl_coef=0.1, minibatches_per_rollout=2, lr=0.01, microbatch_tokens=budget)
        for policy, budget in zip(policies, (1, 17, 30, 10_000), strict=True)
    ]
    for one, other in itertools.pairwise(runs):
        assert one == pytest.approx(other, rel=1e-8)


def test_the_optimiser_uses_the_settings_that_are_saved():
    config = LearnerConfig(lr=3e-4, beta1=0.8, beta2=0.95, weight_decay=0.02, schedule="linear")
    used = Learner(make_policy(), whole(config)).optimizer
    group = used.adamw.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.8, 0.95), 0.02)
    assert used.total_steps == 4
