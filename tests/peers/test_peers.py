"""The formulas, TRL 1.16 and verl 0.9.1 on the same numbers, and whole optimiser steps (`make test-peers`)."""

from __future__ import annotations

import copy

import pytest
import torch
from cells import CAP, CLIP_HIGH, CLIP_LOW, MINIBATCHES, NUMBERS, committed, tables
from test_learner import PAD, TEMPERATURE, Tokenizer, distorted, make_groups, make_policy, naive_surrogate, whole
from tiny_model import REPO, make_tiny_model

from grpo.learner import Learner
from grpo.policy import Policy
from grpo.settings import LearnerConfig

pytestmark = pytest.mark.peers
LR = 0.03


def test_the_numbers_reach_every_branch():
    for rows in MINIBATCHES:
        mask, advantages = NUMBERS.mask[rows], NUMBERS.advantages[rows, None].expand(8, 7)
        ratio = (NUMBERS.new - NUMBERS.old)[rows].exp()
        for sign in (-1, 1):
            kept = ratio[mask & (advantages.sign() == sign)]
            for place in (kept < 1 - CLIP_LOW, (kept > 1 - CLIP_LOW) & (kept < 1 + CLIP_HIGH), kept > 1 + CLIP_HIGH):
                assert place.any()
        correction = (NUMBERS.old - NUMBERS.sampler)[rows].exp()[mask]
        assert (correction > CAP).any()
        assert (correction < CAP).any()
        counts = NUMBERS.mask[rows].sum(1)
        means = ((NUMBERS.new - NUMBERS.old)[rows] * NUMBERS.mask[rows]).sum(1) / counts.clamp(min=1)
        assert ((means.exp() < 1 - CLIP_LOW) & (advantages[:, 0] < 0)).any()  # gspo's lower clip
        assert ((means.exp() > 1 + CLIP_HIGH) & (advantages[:, 0] > 0)).any()
        assert len(set(NUMBERS.lengths[rows].tolist())) > 3
    assert (NUMBERS.written & ~NUMBERS.mask).any()
    assert (NUMBERS.advantages[4:8] == 0).all()  # the flat group


def test_every_cell_agrees_to_a_millionth():
    for name, aggregation, *row in tables()[0]:
        assert all(cell.worst < 1e-6 for cell in row), (name, aggregation, [cell.text for cell in row])


def test_the_table_in_the_docs_is_the_one_that_is_computed():
    assert committed() == tables()[1], "run python tests/peers/write_table.py in this environment"


# ---- whole optimiser steps


def make_gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.4}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=None, eos_token_id=1)).double()


SHAPES = {"gpt2": make_gpt2, "qwen2": make_tiny_model}
STEPS = [
    {"loss": "grpo", "loss_aggregation": "token-mean"},
    {"loss": "grpo", "loss_aggregation": "seq-mean", "sampler_correction": "token_truncate"},
    {"loss": "gspo", "loss_aggregation": "seq-mean", "clip_low": 0.02, "clip_high": 0.02},
    {"loss": "cispo", "loss_aggregation": "token-mean", "clip_low": 0.999},
    {"loss": "reinforce", "loss_aggregation": "dr_grpo"},
]


def ours(model: torch.nn.Module, groups, settings: dict) -> dict[str, torch.Tensor]:
    """The weights after two optimiser steps of our learner with plain SGD, packed in micro-batches."""
    policy = Policy(copy.deepcopy(model), Tokenizer())
    config = LearnerConfig(minibatches_per_rollout=2, lr=LR, grad_clip=1e9, microbatch_tokens=20, **settings)
    learner = Learner(policy, whole(config))
    learner.optimizer.adamw = torch.optim.SGD(learner.optimizer.masters, lr=LR)
    learner.update(groups)
    return {name: p.detach() for name, p in policy.trainable().items()}


def logprobs_of(network: torch.nn.Module, sample) -> torch.Tensor:
    ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
    logits = network(ids).logits[0, len(sample.prompt_ids) - 1 : -1] / TEMPERATURE
    return logits.log_softmax(-1).gather(-1, torch.tensor(sample.completion_ids)[:, None])[:, 0]


def naive(model: torch.nn.Module, groups, settings: dict) -> dict[str, torch.Tensor]:
    """The same with transformers' own forward pass, one completion and one token at a time."""
    network, config = copy.deepcopy(model), LearnerConfig(**settings)
    sgd = torch.optim.SGD(network.parameters(), lr=LR)
    old = {sample: logprobs_of(network, sample).detach() for group in groups for sample in group}
    for group in groups:
        lengths = {sample: len(sample.trained) for sample in group}
        completions = sum(length > 0 for length in lengths.values())
        loss = torch.zeros((), dtype=torch.float64)
        for sample in group:
            if not lengths[sample]:
                continue
            kept = list(sample.trained)
            sampler = torch.tensor(sample.sampler_logprobs, dtype=torch.float64)[kept]
            numbers = (logprobs_of(network, sample)[kept], old[sample][kept], sampler)
            divisor = {
                "token-mean": sum(lengths.values()),
                "seq-mean": completions * lengths[sample],
                "dr_grpo": completions * 9,
            }[config.loss_aggregation]
            loss = loss + sum(naive_surrogate(config, *numbers, sample.advantage)) / divisor
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    return {name: p.detach() for name, p in network.named_parameters()}


@pytest.mark.parametrize("settings", STEPS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_after_two_steps_are_those_of_a_naive_loop(shape: str, settings: dict):
    model = SHAPES[shape]()
    groups = distorted(make_groups(Policy(copy.deepcopy(model), Tokenizer())))
    found, expected = ours(model, groups, settings), naive(model, groups, settings)
    before = dict(model.named_parameters())
    moved = max((expected[name] - before[name]).abs().max().item() for name in expected)
    assert moved > 1e-3
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-9 * moved)


def padded(rows: list[tuple[int, ...]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask as TRL wants them: prompts padded on the left, completions on the right."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids, mask


def trl_trainer(model: torch.nn.Module, **options):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir="unused",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=9,
        temperature=TEMPERATURE,
        use_bias_correction_kl=False,  # on, it differentiates the reverse KL; the paper and we take k3 as it is
        report_to=[],
        gradient_checkpointing=False,
        **options,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda **_: [0.0] * 4,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 4),
        processing_class=AutoTokenizer.from_pretrained(REPO / "data" / "tiny-base"),
    )
    trainer.model.eval()  # in training mode TRL divides by its accumulation steps
    return trainer


def trl_inputs(trainer, samples) -> dict[str, torch.Tensor]:
    prompt_ids, prompt_mask = padded([s.prompt_ids for s in samples], "left")
    completion_ids, completion_mask = padded([s.completion_ids for s in samples], "right")
    inputs = {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask}
    inputs |= {"completion_ids": completion_ids, "completion_mask": completion_mask}
    inputs |= {"advantages": torch.tensor([s.advantage for s in samples], dtype=torch.float64)}
    return inputs | {"num_items_in_batch": completion_mask.sum()}


def logprobs_of_trl(trainer, inputs) -> torch.Tensor:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, inputs["completion_ids"].shape[1])[
            0
        ]


TRL_STEPS = [
    ({"loss": "grpo", "loss_aggregation": "token-mean"}, {"loss_type": "dapo"}),
    ({"loss": "grpo", "loss_aggregation": "seq-mean", "kl_coef": 0.3}, {"loss_type": "grpo"}),
    ({"loss": "grpo", "loss_aggregation": "dr_grpo", "clip_high": 0.3}, {"loss_type": "dr_grpo", "epsilon_high": 0.3}),
    (
        {"loss": "gspo", "loss_aggregation": "seq-mean", "clip_low": 0.02, "clip_high": 0.02},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02},
    ),
    (
        {"loss": "cispo", "loss_aggregation": "token-mean", "clip_low": 0.999},
        {"loss_type": "cispo", "epsilon_high": 1.2},
    ),
]


@pytest.mark.parametrize(("settings", "options"), TRL_STEPS, ids=lambda x: "-".join(map(str, x.values())))
def test_weights_after_two_steps_are_those_of_trl(settings: dict, options: dict, tmp_path, monkeypatch):
    """With TRL's own padded forward pass. It rounds log-probabilities to float32, which the tolerance allows for."""
    monkeypatch.chdir(tmp_path)
    policy = make_policy()
    groups = make_groups(policy)
    start = copy.deepcopy(policy.network.state_dict())
    config = LearnerConfig(minibatches_per_rollout=2, lr=LR, grad_clip=1e9, microbatch_tokens=20, **settings)
    learner = Learner(policy, whole(config))
    learner.optimizer.adamw = torch.optim.SGD(learner.optimizer.masters, lr=LR)
    learner.update(groups)

    trainer = trl_trainer(make_tiny_model(), **options)
    minibatches = [trl_inputs(trainer, group) for group in groups]
    if "kl_coef" in settings:  # the trainer's model has the weights it was made with, and they are the reference's
        trainer.beta = settings["kl_coef"]  # given in the configuration, it would look for the reference on the hub
        for inputs in minibatches:
            inputs["ref_per_token_logps"] = logprobs_of_trl(trainer, inputs)
    trainer.model.load_state_dict(start)
    for inputs in minibatches:
        inputs["old_per_token_logps"] = logprobs_of_trl(trainer, inputs)
    sgd = torch.optim.SGD(trainer.model.parameters(), lr=LR)
    for inputs in minibatches:
        sgd.zero_grad()
        trainer._compute_loss(trainer.model, inputs).backward()
        sgd.step()
    moved = max((p - start[name]).abs().max().item() for name, p in trainer.model.named_parameters())
    assert moved > 1e-3
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(policy.trainable()[name].detach(), p.detach(), rtol=0, atol=1e-5 * moved)
