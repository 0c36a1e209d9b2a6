"""A step of 1e-6 must move a bfloat16 weight over time, and gradients must not be rounded away while they add up."""

from __future__ import annotations

import pytest
import torch

from grpo.optim import Optimizer
from grpo.settings import LearnerConfig


def make_optimizer(parameters, total_steps=1, **settings):
    return Optimizer(parameters, LearnerConfig(**{"weight_decay": 0.0} | settings), total_steps)


def weights(dtype):
    return torch.nn.Parameter((torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype))


def test_small_steps_move_bfloat16_weights_through_their_masters():
    # AdamW with a constant gradient moves each weight by lr a step: 100 steps of 1e-6 are 1e-4. Near 0.02 two bfloat16
    # numbers are 2^-6 * 2^-7 = 1.2e-4 apart, so a single step of 1e-6 rounds to nothing, and only the sum shows.
    parameter, start = weights(torch.bfloat16), weights(torch.bfloat16).detach()
    optimizer = make_optimizer([parameter], lr=1e-6)
    plain = weights(torch.bfloat16)
    adamw = torch.optim.AdamW([plain], lr=1e-6, weight_decay=0.0)
    gradient = torch.sign(torch.randn(4096, generator=torch.Generator().manual_seed(1)))
    for _ in range(100):
        (parameter * gradient).sum().backward()
        optimizer.clip_gradients()
        optimizer.step()
        optimizer.zero_grad()
        plain.grad = gradient.bfloat16()
        adamw.step()
    (master,) = optimizer.masters
    assert (master != start.float()).double().mean() > 0.99
    assert torch.equal(parameter, master.bfloat16())  # the copy follows
    torch.testing.assert_close(master, start.float() - 1e-4 * gradient, rtol=0, atol=2e-6)
    followed = (parameter != start).double().mean()
    stuck = (plain != start).double().mean()
    assert followed > 0.5 > 0.1 > stuck  # pure bfloat16 loses nearly every step


def test_gradients_add_up_in_float32():
    # 1 + 256 * 2^-9 = 1.5, but in bfloat16 1 + 2^-9 is 1 and stays 1.
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = make_optimizer([parameter], lr=1.0)
    (parameter * 1.0).sum().backward()
    for _ in range(256):
        (parameter * 2**-9).sum().backward()
    assert optimizer.masters[0].grad.item() == 1.5
    assert parameter.grad is None


def test_float32_parameters_are_their_own_masters():
    parameter = weights(torch.float32)
    assert make_optimizer([parameter], lr=1.0).masters[0] is parameter


def test_gradients_are_clipped_to_their_global_norm():
    # |(3, 4)| = 5, clipped to 1: (0.6, 0.8)
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([a, b], lr=1.0, grad_clip=1.0)
    (3 * a + 4 * b).sum().backward()
    assert optimizer.clip_gradients().item() == 5.0
    assert (a.grad.item(), b.grad.item()) == pytest.approx((0.6, 0.8), rel=1e-5)


def test_schedules():
    def rates(**settings):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = make_optimizer([parameter], lr=1.0, total_steps=6, **settings)
        seen = []
        for _ in range(6):
            optimizer.clip_gradients()
            seen.append(optimizer.lr)
            optimizer.step()
            assert optimizer.adamw.param_groups[0]["lr"] == seen[-1]  # the logged rate is the one that was used
        return seen

    assert rates() == [1.0] * 6
    assert rates(warmup=2) == [0.5, 1, 1, 1, 1, 1]
    assert rates(warmup=2, schedule="linear") == [0.5, 1, 1, 0.75, 0.5, 0.25]
    # Zero one step after the last: a last step at rate 0 would waste its rollout.
    assert rates(schedule="linear") == pytest.approx([6 / 6, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_comes_back_bit_for_bit(dtype):
    def train(optimizer, parameter, steps):
        for i in range(steps):
            ((parameter - i) ** 2).sum().backward()
            optimizer.clip_gradients()
            optimizer.step()
            optimizer.zero_grad()

    straight = weights(dtype)
    train(make_optimizer([straight], lr=1e-3), straight, 6)
    first, second = weights(dtype), weights(dtype)
    half = make_optimizer([first], lr=1e-3)
    for i in range(3):
        ((first - i) ** 2).sum().backward()
        half.clip_gradients()
        half.step()
        half.zero_grad()
    resumed = make_optimizer([second], lr=1e-3)
    resumed.load_state_dict(half.state_dict())
    for i in range(3, 6):
        ((second - i) ** 2).sum().backward()
        resumed.clip_gradients()
        resumed.step()
        resumed.zero_grad()
    assert torch.equal(second, straight)


def test_eight_bit_moments_step_and_come_back():
    pytest.importorskip("bitsandbytes", reason="make test-vllm has it")

    def step(optimizer, parameter):
        (parameter**2).sum().backward()
        optimizer.clip_gradients()
        optimizer.step()
        optimizer.zero_grad()

    first, second = weights(torch.float32), weights(torch.float32)
    optimizer = make_optimizer([first], lr=1e-3, optimizer="adamw_8bit")
    for _ in range(3):
        step(optimizer, first)
    assert optimizer.adamw.state[first]["state1"].dtype == torch.uint8  # 4096 numbers: below that it keeps 32 bits
    resumed = make_optimizer([second], lr=1e-3, optimizer="adamw_8bit")
    resumed.load_state_dict(optimizer.state_dict())
    step(optimizer, first)
    step(resumed, second)
    assert torch.equal(first, second)


def test_the_moments_are_there_before_the_first_step():
    """The sampler has taken by then what the first step would allocate."""
    weights = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    used, plain = (
        make_optimizer(weights, lr=0.1),
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=0.1, fused=True),
    )
    before = {id(t) for state in used.adamw.state.values() for t in state.values()}
    for parameter in (*used.masters, *plain.param_groups[0]["params"]):
        parameter.grad = torch.ones_like(parameter)
    used.step()
    plain.step()
    assert before == {id(t) for state in used.adamw.state.values() for t in state.values()}
    (expected,) = plain.state.values()
    for state in used.adamw.state.values():
        assert {name: value.tolist() for name, value in state.items()} == {k: v.tolist() for k, v in expected.items()}
