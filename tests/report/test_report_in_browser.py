"""The report's page in a real browser: it draws, filters, fetches nothing and runs nothing that a model wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_browser import Browser, clean
from report_runs import EVIL, append, edit_completion, report, write_run


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one.html of a run with a hostile completion, three.html of three runs."""
    folder = tmp_path_factory.mktemp("runs")
    a, b, c = (
        write_run(folder / name, steps=6 + seed, seed=seed, lr=1e-4 * (1 + seed)) for seed, name in enumerate("ABC")
    )
    (b / "summary.json").unlink()
    append(b / "metrics.jsonl", '{"step": 8, "rew\n')
    report(a, b, c, out=folder / "three.html")
    edit_completion(
        a, 6, 0, completion=EVIL, answer=EVIL, outcome=EVIL, prompt=EVIL, signals={"verify": 1.0, "format": 0.25}
    )
    report(a, out=folder / "one.html")
    return folder


def choose(browser: Browser, **values: object) -> int:
    """Set fields of the filter form as a user would; the number of completions that match."""
    for name, value in values.items():
        browser.run(
            f"(() => {{ const field = document.getElementById('filters').elements.{name};"
            f" field.value = {json.dumps(str(value))};"
            " field.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
    return int(browser.run("document.getElementById('count').textContent").split()[0])


def cards(browser: Browser, label: str) -> list[str]:
    """The fact `label` of every visible card that has it."""
    return browser.run(
        "[...document.querySelectorAll('#rows article')].map(card => [...card.querySelectorAll('.facts span')]"
        f".find(fact => fact.firstChild.textContent === {json.dumps(label + ' ')}))"
        ".filter(fact => fact).map(fact => fact.querySelector('b').textContent)"
    )


def test_the_browser_would_report_errors_and_requests(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<script>console.error('seen')</script><img src='other.png'><script>throw Error('thrown')</script>")
    browser.open(path)
    assert any("seen" in line for line in browser.console)
    assert any("thrown" in line for line in browser.console)
    assert (tmp_path / "other.png").as_uri() in browser.requests


@pytest.mark.parametrize(("name", "dark"), [("one.html", True), ("three.html", False)])
def test_every_chart_is_drawn_and_nothing_is_fetched(browser: Browser, pages: Path, name: str, dark: bool) -> None:
    browser.open(pages / name, dark=dark)
    assert clean(browser, pages / name)
    empty = (
        "[...document.querySelectorAll('.chart')].filter(c => !c.querySelector('.scatterlayer .trace')).map(c => c.id)"
    )
    assert browser.run("document.querySelectorAll('.chart').length") == 21
    assert browser.run("document.querySelectorAll('#constant li').length") == 4  # clip, ratio, rate, skipped updates
    assert browser.run(empty) == []
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, pages: Path) -> None:
    browser.open(pages / "three.html", width=390, height=800)
    assert browser.run("document.documentElement.scrollWidth") <= 390


def test_several_runs_share_a_chart_with_a_legend(browser: Browser, pages: Path) -> None:
    browser.open(pages / "three.html")
    legend = "[...document.querySelectorAll('#chart-1 .legendtext')].map(text => text.textContent)"
    assert (
        browser.run("document.querySelector('#chart-1').previousElementSibling.previousElementSibling.textContent")
        == "Reward"
    )
    assert browser.run(legend) == ["A", "B", "C"]
    assert (
        browser.run(
            "new Set([...document.querySelectorAll('#chart-1 .legendlines path')].map(p => p.style.stroke)).size"
        )
        == 3
    )
    everything = choose(browser)
    assert everything == (6 + 7 + 8) * 8
    browser.run("document.querySelectorAll('#runs input')[1].click()")
    assert browser.run(legend) == ["A", "C"]
    assert choose(browser) == (6 + 8) * 8
    differences = browser.run("[...document.querySelectorAll('#overview tbody th')].map(cell => cell.textContent)")
    assert "learner.lr" in differences
    assert "learner.clip_low" not in differences
    notes = browser.run("document.querySelector('.notes').textContent")
    assert "B: metrics.jsonl: 1 unreadable lines were skipped" in notes


def test_the_filters_filter(browser: Browser, pages: Path) -> None:
    browser.open(pages / "three.html")
    assert choose(browser, run="2") == 8 * 8
    assert choose(browser, step="8") == 8  # of the runs only C has a step 8
    assert choose(browser, group="1") == 4
    assert set(cards(browser, "group")) == {"1"}
    assert set(cards(browser, "run")) == {"C"}
    # Sample 0 is right and the last is wrong, whatever the noise: verify splits the group.
    right, wrong = choose(browser, signal="verify", compare="ge", bound="0.5"), choose(browser, compare="lt")
    assert right + wrong == 4
    assert 1 <= right <= 3
    assert set(cards(browser, "outcome")) == {"wrong"}
    assert choose(browser, outcome="correct") == 0
    assert choose(browser, outcome="", signal="", text="SYSTEM") == 4  # in the prompt, and in another case
    browser.run("document.querySelector('#filters [type=reset]').click()")
    browser.wait_for("document.getElementById('count').textContent.startsWith('168 of 168')")
    assert choose(browser, text="this is wrong") < 168


def test_sorting_and_more(browser: Browser, pages: Path) -> None:
    browser.open(pages / "three.html")
    assert len(cards(browser, "reward")) == 25
    browser.run("document.getElementById('more').click()")
    steps = cards(browser, "step")
    assert len(steps) == 50
    assert steps == sorted(steps, key=int, reverse=True)
    choose(browser, sort="reward-up")
    lowest = [float(value) for value in cards(browser, "reward")]
    choose(browser, sort="reward-down")
    highest = [float(value) for value in cards(browser, "reward")]
    assert lowest == sorted(lowest)
    assert highest == sorted(highest, reverse=True)
    assert lowest[0] == 0.5  # wrong, well formatted, wrong about itself
    assert highest[0] == 2.0


def test_identical_completions_of_a_step_are_one_card(browser: Browser, tmp_path: Path) -> None:
    """Two groups of four in one step; six have one text and one reward, two have texts of their own: three cards."""
    folder = write_run(tmp_path / "A", steps=1)
    for number in range(8):
        text = "the same" if number < 6 else f"text {number}"
        edit_completion(folder, 1, number, completion=text, reward=1.0, prompt="p", signals={"verify": 1.0})
    path = report(folder)
    browser.open(path)
    assert choose(browser) == 8
    assert "3 are different, 3 shown" in browser.run("document.getElementById('count').textContent")
    assert cards(browser, "identical") == ["6 completions"]
    assert cards(browser, "group") == ["0, 1", "1", "1"]


def test_a_band_stays_within_the_values_that_were_seen(browser: Browser, pages: Path) -> None:
    """The signals are 0 or 1: mean ± spread would reach 1.2 and -0.2."""
    browser.open(pages / "one.html")
    edges = browser.run(
        "[...document.querySelectorAll('.chart')].filter(c => c.previousElementSibling.previousElementSibling"
        "?.textContent.startsWith('Signal: verify')).flatMap(c => c.data.slice(0, 2).flatMap(trace => trace.y))"
    )
    assert len(edges) == 2 * 6
    assert min(edges) >= 0
    assert max(edges) <= 1


def test_a_card_shows_prompt_answer_advantage_and_coloured_tags(browser: Browser, pages: Path) -> None:
    browser.open(pages / "one.html")
    assert choose(browser, step="5", group="0") == 4
    assert cards(browser, "answer")[0] == "17"
    assert cards(browser, "truth")[0] == "17"
    assert cards(browser, "advantage")[0] == "0.9"
    spans = (
        "[...document.querySelectorAll('#rows article pre')[0].querySelectorAll('{}')].map(span => span.textContent)"
    )
    assert browser.run(spans.format(".tag")) == ["<think>", "</think>", "<reflection>", "</reflection>", "<|im_end|>"]
    assert browser.run(spans.format(".box")) == ["\\boxed{17}"]
    assert browser.run(spans.format(".inside")) == [
        "12 + 5, so 2 + 5 = 7 and carry nothing.", "I added again: this is correct.",
    ]  # fmt: skip
    tags = "[...document.querySelectorAll('#rows article pre')[0].querySelectorAll('.tag')]"
    colours = f"new Set({tags}.map(tag => getComputedStyle(tag).color)).size"
    assert browser.run(colours) == 3
    browser.run("document.querySelector('#rows details').open = true")
    browser.wait_for("document.querySelector('#rows details pre')")
    assert "12 + 5 = ?" in browser.run("document.querySelector('#rows details pre').textContent")


def test_a_hostile_completion_is_shown_as_text(browser: Browser, pages: Path) -> None:
    browser.open(pages / "one.html")
    assert choose(browser, step="6", text="window.hacked") == 1
    browser.run("document.querySelector('#rows details').open = true")
    browser.wait_for("document.querySelector('#rows details pre')")
    shown = browser.run("document.querySelector('#rows article pre').textContent")
    # The characters that print nothing, or turn the text around, appear as their names; all others as they are.
    names = {"\x1b": "␛", "\x00": "␀", "\u202e": "U+202E", "\ud800": "U+D800", "\u2028": "U+2028"}
    assert shown == "".join(names.get(character, character) for character in EVIL)
    assert browser.run("document.querySelectorAll('#rows img, #rows script, #rows b b').length") == 0
    assert browser.run(
        "[...document.querySelectorAll('#rows article pre')[0].querySelectorAll('.box')].map(b => b.textContent)"
    ) == ["\\boxed{\\frac{1}{2}}"]
    assert browser.run("typeof window.hacked") == "undefined"
    assert clean(browser, pages / "one.html")


def test_the_policy_of_the_page_stops_an_injected_script_and_any_request(browser: Browser, pages: Path) -> None:
    """The second wall: had a string become HTML after all, its script would not run and nothing would leave."""
    browser.open(pages / "one.html")
    browser.run(
        "window.refused = []; addEventListener('securitypolicyviolation', e => refused.push(e.effectiveDirective))"
    )
    browser.run("document.body.insertAdjacentHTML('beforeend', '<b onclick=\"window.hacked = 3\">b</b>')")
    browser.run("document.body.lastElementChild.click()")
    browser.run(
        "{ const s = document.createElement('script'); s.textContent = 'hacked = 4'; document.body.append(s); }"
    )
    browser.run("document.body.append(Object.assign(new Image(), {src: 'https://example.invalid/x.png'}))")
    browser.run("fetch('https://example.invalid/').catch(() => 0)")
    browser.wait_for("refused.includes('connect-src') && refused.includes('img-src')")
    assert browser.run("refused.sort()") == ["connect-src", "img-src", "script-src-attr", "script-src-elem"]
    assert browser.run("typeof window.hacked") == "undefined"


@pytest.mark.parametrize("state", ["only begun", "only the first evaluation"])
def test_a_young_run_opens(browser: Browser, tmp_path: Path, state: str) -> None:
    folder = write_run(tmp_path / "A", steps=1, finished=False)
    (folder / "completions" / "step_000001.jsonl.gz").unlink()
    (folder / "metrics.jsonl").write_text('{"step": 0, "eval/sampled_accuracy": 0.5}\n')
    if state == "only begun":
        (folder / "metrics.jsonl").unlink()
    path = report(folder)
    browser.open(path)
    assert clean(browser, path)
    assert choose(browser) == 0
    charts = browser.run("document.querySelectorAll('.chart .point').length")
    assert (charts > 0) == (state != "only begun")
