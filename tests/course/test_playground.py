"""The playground's maths is written in JavaScript: it must be the trainer's, on a run in the trainer's layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from report_browser import Browser, clean
from report_runs import EVIL, edit_completion, write_run

from course.playground.__main__ import main
from grpo.advantage import group_advantages
from grpo.loss import kl_k3, policy_loss, token_weights


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "A", steps=6)
    edit_completion(folder, 1, 0, completion=EVIL, prompt=EVIL)
    assert main([str(folder)]) == 0
    return folder / "playground.html"


def move(browser: Browser, **values: float) -> list[dict]:
    """Sets fields of the form as a user would; the rows that the page then shows."""
    for name, value in values.items():
        browser.run(
            f"(() => {{ const f = field[{name.replace('__', ' ')!r}]; f.value = {value};"
            " f.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
    return browser.run("compute().rows")


@pytest.mark.parametrize("ratio", [1.0, 1.1, 1.5, 0.6])
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean"])
def test_the_push_is_the_gradient_of_the_loss(browser: Browser, page: Path, ratio: float, aggregation: str):
    """d(-loss) / d(log pi) of every token, by autograd in float64 on the trainer's own functions."""
    browser.open(page)
    browser.run(f"field.aggregation.value = '{aggregation}'")
    move(browser, step=2, weight__verify=2.0, weight__format=0.25, weight__reflect=0.5)
    rows = move(browser, ratio=ratio, kl_coef=0.1, log_ratio=0.3)
    signals = [row["signals"] for row in rows]
    rewards = torch.tensor(
        [[2 * s["verify"] + 0.25 * s["format"] + 0.5 * s["reflect"] for s in signals]], dtype=torch.float64
    )
    expected = group_advantages(rewards)[0]
    torch.testing.assert_close(
        torch.tensor([row["advantage"] for row in rows], dtype=torch.float64), expected, rtol=1e-9, atol=1e-9
    )
    lengths = [row["tokens"] for row in rows]
    weights = torch.tensor(token_weights(lengths, aggregation, 10), dtype=torch.float64)
    logp = torch.full_like(expected, ratio).log().requires_grad_()
    loss = policy_loss(logp.exp(), expected, 0.2, 0.2) + 0.1 * kl_k3(logp, logp.detach() + 0.3)
    gradient = torch.autograd.grad((weights * loss).sum(), logp)[0]
    torch.testing.assert_close(
        torch.tensor([row["push"] for row in rows], dtype=torch.float64), -gradient, rtol=1e-6, atol=1e-12
    )


def test_without_weights_nothing_is_taught_and_reset_brings_the_run_back(browser: Browser, page: Path):
    browser.open(page)
    shown = browser.run("document.getElementById('completions').textContent")
    move(browser, weight__verify=0, weight__format=0, weight__reflect=0)
    assert "teaches nothing now" in browser.run("document.getElementById('says').textContent")
    browser.run("document.querySelector('[type=reset]').click()")
    browser.wait_for("!document.getElementById('says').textContent.includes('nothing')")
    assert browser.run("document.getElementById('completions').textContent") == shown


def test_the_page_is_small_runs_nothing_a_model_wrote_and_fits_a_phone(browser: Browser, page: Path):
    assert page.stat().st_size < 500_000
    browser.open(page, width=390, height=800)
    move(browser, step=0)
    assert clean(browser, page)
    assert browser.run("window.hacked") is None
    assert browser.run("document.documentElement.scrollWidth") <= 390


def test_a_folder_without_completions_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "config.yaml").write_text("steps: 1\n")
    assert main([str(tmp_path)]) == 2
    assert "no completions yet" in capsys.readouterr().err
    assert not (tmp_path / "playground.html").exists()
