"""One torch thread for every test: two threads beside another busy process are several times slower than one."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)
REPO = Path(__file__).resolve().parent.parent
BESIDE = REPO.parent / "shared" / "data" / "one-shot-rlvr"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data-dir", help="folder with the One-Shot RLVR data sets (see python -m data list)")


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    """The real data sets, which are never committed: --data-dir, $GRPO_DATA_DIR, or the folder beside the checkout."""
    named = request.config.getoption("--data-dir") or os.environ.get("GRPO_DATA_DIR")
    folder = Path(named) if named else BESIDE
    if not folder.is_dir():
        pytest.skip("no real data: pass --data-dir DIR or set GRPO_DATA_DIR (python -m data fetch gets it)")
    return folder
