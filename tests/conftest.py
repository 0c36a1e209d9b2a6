"""One torch thread for every test: two threads beside another busy process are several times slower than one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as with an active environment

from collections.abc import Iterator

import pytest
import torch
from report_browser import CHROMIUM, Browser
from tiny_model import REPO, make_tiny_model

torch.set_num_threads(1)
BESIDE = REPO.parent / "shared" / "data" / "one-shot-rlvr"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data-dir", help="folder with the One-Shot RLVR data sets (see python -m data list)")
    parser.addoption("--reports-dir", help="folder with the inputs of public bug reports")


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    """The real data sets, which are never committed: --data-dir, $GRPO_DATA_DIR, or the folder beside the checkout."""
    named = request.config.getoption("--data-dir") or os.environ.get("GRPO_DATA_DIR")
    folder = Path(named) if named else BESIDE
    if not folder.is_dir():
        pytest.skip("no real data: pass --data-dir DIR or set GRPO_DATA_DIR (python -m data fetch gets it)")
    return folder


@pytest.fixture(scope="session")
def reports_dir(request: pytest.FixtureRequest) -> Path:
    """Inputs of public bug reports, which are never committed: --reports-dir, or the folder beside the data sets."""
    named = request.config.getoption("--reports-dir")
    folder = Path(named) if named else BESIDE.parent / "reports"
    if not folder.is_dir():
        pytest.skip("no inputs of bug reports: pass --reports-dir DIR")
    return folder


@pytest.fixture
def tiny_model():
    """A two-layer float64 Qwen2 with random weights and a 40-token vocabulary; every call of it gives the same one."""
    return make_tiny_model()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
