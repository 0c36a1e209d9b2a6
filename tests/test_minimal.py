"""minimal.py computes what the trainer computes, and learns."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from test_learner import Tokenizer, gradients
from tiny_model import REPO, make_tiny_model

import minimal
from grpo.advantage import group_advantages
from grpo.policy import Policy
from grpo.types import Sample

PROMPT, STOP = (5, 6, 7), 1
GROUPS = (
    ((4, 1), (3, 7, 9, 1), (1,), (6, 6, 2, 5, 8, 3)),  # one is only the stop token, one is cut
    ((2, 0, 8, 1), (5, 5, 1), (7, 3, 2, 9, 6, 1), (8, 1)),
)
REWARDS = ((1.5, 0.0, 0.5, 0.5), (1.0, 1.0, 0.0, 1.5))


def padded(fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[8, 6] completions with `fill` behind the stop token, and their [8, 6] mask."""
    rows = [ids for group in GROUPS for ids in group]
    ids = torch.tensor([[*row, *[fill] * (6 - len(row))] for row in rows])
    return ids, torch.tensor([[t < len(row) for t in range(6)] for row in rows])


@pytest.mark.parametrize("fill", [0, 9])
def test_the_gradient_is_the_learners(fill: int, monkeypatch: pytest.MonkeyPatch):
    """Padded and plain here, packed and chunked there: the same in float64, whatever stands in the padding."""
    monkeypatch.setattr("test_learner.TEMPERATURE", 1.0)
    model = make_tiny_model()
    completions, mask = padded(fill)
    advantages = minimal.group_advantages(torch.tensor(REWARDS, dtype=torch.float64)).view(-1)
    logp = minimal.logprobs(model, torch.tensor([PROMPT] * 8), completions)
    minimal.loss_of(logp, advantages, mask).backward()

    theirs = group_advantages(torch.tensor(REWARDS)).tolist()
    samples = [
        [Sample(PROMPT, ids, (0.0,) * len(ids), a) for ids, a in zip(*group, strict=True)]
        for group in zip(GROUPS, theirs, strict=True)
    ]
    found, _ = gradients(Policy(make_tiny_model(), Tokenizer()), samples)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-8, atol=1e-11)


def test_the_sampled_mask_ends_with_the_stop_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(minimal, "T", 6)
    torch.manual_seed(0)
    completions, mask = minimal.sample(make_tiny_model(), torch.tensor([PROMPT] * 200), STOP)
    for row, kept in zip(completions.tolist(), mask.tolist(), strict=True):
        length = row.index(STOP) + 1 if STOP in row else 6
        assert kept == [t < length for t in range(6)]
    assert mask.sum() < mask.numel()  # some did stop


def test_greedy_sampling_takes_what_the_loss_finds_likeliest(monkeypatch: pytest.MonkeyPatch):
    """Token by token with a cache there, all at once and shifted by one here: one distribution."""
    monkeypatch.setattr(minimal, "T", 6)
    model, prompts = make_tiny_model(), torch.tensor([PROMPT, (9, 8, 2)])
    completions, _ = minimal.sample(model, prompts, STOP, greedy=True)
    chosen = minimal.logprobs(model, prompts, completions)
    for token in range(40):
        assert (minimal.logprobs(model, prompts, completions * 0 + token)[:, 0] <= chosen[:, 0]).all()
    logits = model(torch.cat([prompts, completions], 1)).logits[:, 2:-1]
    assert torch.equal(logits.argmax(-1), completions)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>easy</think>\\boxed{1443}<reflection>wrong</reflection>", 1.5),
        ("<think>easy</think>\\boxed{12}<reflection>wrong</reflection>", 0.5),
        ("\\boxed{12} or \\boxed{1443}", 1.0),
        ("\\boxed{1443} or \\boxed{12}", 0.0),
        ("<think></think>\\boxed{12}<reflection>wrong</reflection>", 0.0),
        ("567+876=1443", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward_reads_the_last_box_and_the_layout(text: str, expected: float):
    assert minimal.reward(text, "1443") == expected


def test_it_learns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """8 steps at five times the rate with half the completions. When written: sampled 30% to 51%, greedy 3% to 83%."""
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(minimal, "LEARNING_RATE", 5e-4)
    monkeypatch.setattr(minimal, "QUESTIONS", 8)
    (sampled, greedy), (sampled_after, greedy_after) = minimal.main(steps=8, held_out=150)
    assert sampled_after > sampled + 8  # one standard error of a share of 150 is 4
    assert greedy_after > greedy + 40
    rewards = [float(r) for r in re.findall(r"reward (\d\.\d\d)", capsys.readouterr().out)]
    assert len(rewards) == 8
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.4


def test_it_stays_minimal():
    text = (REPO / "minimal.py").read_text()
    assert len(text.splitlines()) <= 150
    nodes = list(ast.walk(ast.parse(text)))
    assert not any(isinstance(node, ast.ClassDef) for node in nodes)
    tops = {name.name.partition(".")[0] for n in nodes if isinstance(n, ast.Import) for name in n.names}
    tops |= {n.module.partition(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}
    assert tops == {"re", "time", "torch", "transformers"}


def test_its_header_names_functions_that_exist():
    places = re.findall(r"((?:grpo|rewards)/[\w/]+\.py): (\w+)", minimal.__doc__)
    assert len(places) == 10
    for path, name in places:
        assert re.search(rf"^(def|class) {name}\b", Path(REPO / path).read_text(), re.MULTILINE), f"{path}: {name}"


def test_the_sum_that_is_trained_is_not_among_the_others(monkeypatch: pytest.MonkeyPatch):
    """Neither in this order nor the other way round."""
    asked = []
    a, b = minimal.PROBLEM
    monkeypatch.setattr(torch, "randint", lambda *given: torch.tensor([[a, b], [b, a], [a, a], [b, b], [123, 456]]))
    monkeypatch.setattr(minimal, "evaluate", lambda model, tokenizer, problems, greedy: asked.extend(problems) or 0.0)
    minimal.main(steps=0)
    assert asked == [[a, a], [b, b], [123, 456]] * 4
