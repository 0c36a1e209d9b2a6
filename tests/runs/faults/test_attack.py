"""The short version of attack.py."""

from attack import attack


def test_a_few_random_blows(tmp_path):
    print(attack(tmp_path, {"full": {}}, kills=5, damages=5, seed=1))
