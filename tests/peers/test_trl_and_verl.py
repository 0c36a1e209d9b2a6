"""The same numbers as TRL and verl on the same completions (`make test-peers`).

TRL's own loss runs on the fixture of test_learner.py with TRL's own forward pass: padded, a row per completion. verl's
functions take log-probabilities, so they get ours. Both are float64; TRL pads, we pack, so agreement also says that
packing changes nothing.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_learner import ADVANTAGES, COMPLETIONS, PAD, PROMPTS, TEMPERATURE, gradients, make_groups, make_policy
from tiny_model import REPO, make_tiny_model

from grpo.advantage import group_advantages, per_signal_advantages
from grpo.loss import kl_k3, policy_loss, token_weights

pytestmark = pytest.mark.peers

LOSS_TYPE = {"token": "dapo", "sequence": "grpo", "constant": "dr_grpo"}  # in TRL
AGGREGATION = {  # in verl
    "token": "token-mean",
    "sequence": "seq-mean-token-mean",
    "constant": "seq-mean-token-sum-norm",
}
ROWS = [
    (prompt, ids, advantage)
    for prompt, group, advantages in zip(PROMPTS, COMPLETIONS, ADVANTAGES, strict=True)
    for ids, advantage in zip(group, advantages, strict=True)
]


def padded(rows: list[tuple[int, ...]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, as TRL wants them: prompts padded on the left, completions on the right."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids, mask


def trl_trainer(aggregation: str, beta: float):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir="unused",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=9,
        temperature=TEMPERATURE,
        loss_type=LOSS_TYPE[aggregation],
        epsilon=0.2,
        use_bias_correction_kl=False,  # on, it differentiates the reverse KL; the paper and we take k3 as it is
        report_to=[],
        gradient_checkpointing=False,
    )
    trainer = GRPOTrainer(
        model=make_tiny_model(),
        reward_funcs=lambda **_: [0.0] * 8,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 8),
        processing_class=AutoTokenizer.from_pretrained(REPO / "data" / "tiny-base"),
    )
    trainer.beta = beta  # given in the configuration, it would look for the reference on the hub
    return trainer


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_loss_and_gradient_are_those_of_trl(aggregation: str, beta: float, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = make_policy()
    groups = make_groups(policy)
    trainer = trl_trainer(aggregation, beta)
    trainer.model.eval()  # TRL divides by its accumulation steps in training mode
    prompt_ids, prompt_mask = padded([row[0] for row in ROWS], "left")
    completion_ids, completion_mask = padded([row[1] for row in ROWS], "right")
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.tensor([row[2] for row in ROWS], dtype=torch.float64),
        "num_items_in_batch": completion_mask.sum(),
    }
    if beta:  # the trainer's model still has the weights it was made with, and they are the reference's
        with torch.no_grad():
            ids = torch.cat([prompt_ids, completion_ids], 1)
            mask = torch.cat([prompt_mask, completion_mask], 1)
            reference, *_ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, completion_ids.shape[1]
            )
        inputs["ref_per_token_logps"] = reference
    trainer.model.load_state_dict(policy.network.state_dict())
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    ours, metrics = gradients(policy, groups, aggregation=aggregation, kl_coef=beta)
    # TRL returns log-probabilities in float32, which is what the tolerance allows for.
    assert metrics["loss/total"] == pytest.approx(theirs.item(), rel=1e-5, abs=1e-7)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6 * parameter.grad.abs().max().item())


def verl_config(**settings):
    """What verl's loss reads of its actor's configuration."""

    class Config(SimpleNamespace):
        def get(self, name, default):
            return getattr(self, name, default)

    # verl adds the dual clip of arXiv 1912.09729 at 3; out of reach here, because we have none.
    return Config(clip_ratio=0.2, clip_ratio_low=0.1, clip_ratio_high=0.3, clip_ratio_c=1e9, global_batch_info=settings)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_policy_loss_is_that_of_verl(aggregation: str):
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla

    generator = torch.Generator().manual_seed(0)
    lengths = [len(row[1]) for row in ROWS]
    _, mask = padded([row[1] for row in ROWS], "right")
    old = -3 * torch.rand(mask.shape, generator=generator, dtype=torch.float64)
    new = (old + 0.4 * torch.randn(mask.shape, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages = torch.tensor([row[2] for row in ROWS], dtype=torch.float64)[:, None].expand(mask.shape)
    config = verl_config(loss_scale_factor=9)
    theirs, _ = compute_policy_loss_vanilla(old, new, advantages, mask, AGGREGATION[aggregation], config)
    (expected,) = torch.autograd.grad(theirs, new)
    weights = torch.tensor(token_weights(lengths, aggregation, 9), dtype=torch.float64)[:, None] * mask
    ours = (weights * policy_loss(new, old, advantages, clip_low=0.1, clip_high=0.3)).sum()
    (found,) = torch.autograd.grad(ours, new)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_k3_is_that_of_verl():
    from verl.trainer.ppo.core_algos import kl_penalty_forward

    logprobs, reference = (-2 * torch.rand(2, 100, dtype=torch.float64)).unbind()  # k3 stays below verl's cap of 10
    torch.testing.assert_close(kl_k3(logprobs, reference), kl_penalty_forward(logprobs, reference, "low_var_kl"))


@pytest.mark.parametrize("divide_by_std", [True, False])
def test_advantages_are_those_of_verl_where_it_has_no_dust(divide_by_std: bool):
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    rewards = torch.tensor([[1.0, 0.0, 0.5, 2.0], [0.0, 0.0, 0.0, 1.5]], dtype=torch.float64)
    theirs, _ = compute_grpo_outcome_advantage(
        rewards.reshape(-1, 1), torch.ones(8, 1), np.repeat([0, 1], 4), norm_adv_by_std_in_grpo=divide_by_std
    )
    torch.testing.assert_close(group_advantages(rewards, divide_by_std), theirs.reshape(2, 4).double())


def test_per_signal_advantages_are_gdpo_of_verl_for_equal_lengths():
    from verl.trainer.ppo.core_algos import compute_gdpo_outcome_advantage

    signals = {"verify": [1.0, 0, 0, 1, 0, 0, 0, 1], "format": [1.0, 1, 0, 1, 0, 1, 1, 0]}
    weights = [1.0, 0.5]

    class Algorithm(dict):
        pass

    theirs, _ = compute_gdpo_outcome_advantage(
        torch.zeros(8, 1),
        torch.ones(8, 1),
        np.repeat([0, 1], 4),
        config=Algorithm(gdpo_reward_keys=list(signals), gdpo_reward_weights=weights),
        non_tensor_batch=signals,
        batch={"prompts": torch.zeros(8, 1), "attention_mask": torch.ones(8, 2, dtype=torch.long)},
    )
    ours = per_signal_advantages(torch.tensor(list(signals.values())).reshape(2, 2, 4), torch.tensor(weights))
    torch.testing.assert_close(ours, theirs.reshape(2, 4).double(), rtol=1e-4, atol=1e-6)
