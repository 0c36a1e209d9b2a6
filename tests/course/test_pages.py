"""The committed pages of real runs: they open in a browser alone, and name no folder of the machine they come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_browser import Browser, clean
from tiny_model import REPO

PAGES = sorted((REPO / "course" / "pages").glob("*.html"))
ABSOLUTE = re.compile(r"""(?<![\w.:/<*])/(?:tmp|work|home|root|mnt|data|Users|var)\b""")


def test_there_is_a_playground_and_a_report():
    assert [page.name for page in PAGES] == ["laptop-report.html", "playground.html"]
    report, playground = (page.stat().st_size for page in PAGES)
    assert playground < 500_000
    assert report < 500_000 + 4_900_000  # plotly.js


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_no_folder_of_a_machine(page: Path):
    assert ABSOLUTE.search("out: /tmp/lap")
    assert not ABSOLUTE.search(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_opens_without_a_network_and_fits_a_phone(browser: Browser, page: Path):
    browser.open(page, width=390, height=844)
    assert clean(browser, page)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    shown = "document.querySelectorAll('article pre').length"
    assert browser.run(shown) > 3
