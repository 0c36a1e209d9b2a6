"""Properties are tested without a deadline: the first example of a run imports sympy."""

import pytest
from hypothesis import settings

settings.register_profile("rewards", deadline=None)
settings.load_profile("rewards")


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    """Each test checks its ground truths anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
