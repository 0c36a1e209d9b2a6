"""The short version of attack.py."""

import attack


def test_a_few_random_blows(tmp_path, monkeypatch):
    monkeypatch.setattr(attack, "STEPS", 12)
    print(attack.attack(tmp_path, {"full": {}}, kills=3, damages=4, seed=11))
