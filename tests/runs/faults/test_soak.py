"""The short version of soak.py."""

from soak import soak


def test_a_few_random_kills(tmp_path):
    print(soak(tmp_path, kills=6, steps=30, seed=1, settings={}))
