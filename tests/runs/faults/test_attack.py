"""A hundred blows of attack.py, in short runs."""

import attack


def test_a_hundred_random_blows(tmp_path, monkeypatch):
    monkeypatch.setattr(attack, "STEPS", 12)
    print(attack.attack(tmp_path, {"full": {}}, kills=45, damages=40, seed=11, odd=15))
