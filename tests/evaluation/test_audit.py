"""The audit on a model that was trained on planted texts: it finds all of them and nothing among fresh ones."""

from __future__ import annotations

import json

import pytest
import torch

import eval as cli
from data import tiny_base
from grpo.evaluation import benchmarks

PLANTED = 6


@pytest.fixture(scope="module")
def contaminated(tmp_path_factory):
    """A model of the built-in kind, trained from scratch on six questions with their answers, by heart."""
    torch.manual_seed(0)
    tokenizer = tiny_base.make_tokenizer()
    model = tiny_base.make_model(tokenizer, seed=0)
    texts = [f"{row['question']} {row['answer']}" for row in list(benchmarks.fresh(seed=5).values())[:PLANTED]]
    ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    longest = max(map(len, ids))
    tokens = torch.tensor([row + [tokenizer.eos_token_id] * (longest - len(row)) for row in ids])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(80):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss < 0.2  # the numbers at the start of a text cannot be known
    folder = tmp_path_factory.mktemp("models") / "contaminated"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("seed", "found"), [(5, PLANTED), (6, 0)])
def test_it_finds_what_was_planted_and_only_that(contaminated, tmp_path, capsys, seed, found):
    argv = ["--bench", "fresh_arithmetic", "--model", str(contaminated), "--audit-contamination"]
    argv += ["--limit", str(PLANTED), "--max-new-tokens", "40", "--out", str(tmp_path)]
    assert cli.main([*argv, "--seed", str(seed)]) == 0
    (outputs,) = tmp_path.glob("*/*/outputs.jsonl")
    rows = [json.loads(line) for line in outputs.read_text().splitlines()]
    assert all(row["prompt"].startswith("What is ") and "?" not in row["prompt"] for row in rows)
    for _ in range(2):  # and again from what was saved, without the model
        scores = json.loads((outputs.parent / "scores.json").read_text())
        assert scores["continued"]["mean"] == scores["flexible"]["mean"] == found / PLANTED
        table = capsys.readouterr().out
        assert any(line.split()[:3] == ["strict", "flexible", "continued"] for line in table.splitlines())
        assert "wrote the rest of the question word for word" in table
        assert cli.main(["--regrade", str(outputs.parent)]) == 0
