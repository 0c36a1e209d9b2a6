"""Experiment controls and a user's own function: the same log as the real reward, with another total."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from rewards.score import SIGNALS, UNVERIFIED, Score
from rewards.signals import MultiSignalMathReward

CONTROL_WEIGHTS = {"verify_only": (1.0, 0.0, 0.0), "format_only": (0.0, 1.0, 0.0)}
"""All three signals are logged under every control; only the named one is paid for."""


class RandomReward(MultiSignalMathReward):
    """0 or 1 by a fair coin that looks at nothing: what a model learns from it, it knew before.

    The same seed, texts and order give the same coins, also across a resume: `state_dict` holds how many were tossed.
    """

    def __init__(self, seed: int = 0, **verifier_options: Any) -> None:
        super().__init__(0.0, 0.0, 0.0, **verifier_options)
        self.weights = {"random": 1.0} | dict.fromkeys(SIGNALS, 0.0)
        self.seed, self.tossed = seed, 0

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], prompts: Sequence[str] | None = None
    ) -> list[Score]:
        scores = super().score_batch(completions, ground_truths)
        return [self._toss(text, score) for text, score in zip(completions, scores, strict=True)]

    def _toss(self, text: str, score: Score) -> Score:
        toss = hashlib.sha256(f"{self.seed} {self.tossed} ".encode() + text.encode("utf-8", "surrogatepass")).digest()
        self.tossed += 1
        coin = float(toss[0] & 1)
        return Score(coin, {"random": coin, **score.signals}, score.answer, score.verdict, score.outcome)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "tossed": self.tossed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("seed") != self.seed:
            raise ValueError(f"random reward: seed {self.seed}, but the checkpoint was made with {state.get('seed')}")
        self.tossed = state["tossed"]


class FunctionReward:
    """A plain function `f(completion, ground_truth) -> {signal: number}`; the total is the sum of its signals."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.function = load_function(name)
        try:
            returned = self.function("", "0")  # a model may well write nothing
        except Exception as error:
            raise ValueError(
                f'reward {name} fails on the completion "" with ground truth "0": {type(error).__name__}: {error}'
            ) from error
        self.weights = dict.fromkeys(self._signals(returned), 1.0)

    def __call__(self, completion: str, ground_truth: Any) -> Score:
        signals = self._signals(self.function(completion, ground_truth))
        if signals.keys() != self.weights.keys():
            raise ValueError(f"reward {self.name}: signals {sorted(signals)} now, {sorted(self.weights)} before")
        return Score(sum(signals.values()), signals, None, None, UNVERIFIED)

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], prompts: Sequence[str] | None = None
    ) -> list[Score]:
        return [self(text, truth) for text, truth in zip(completions, ground_truths, strict=True)]

    def _signals(self, returned: Any) -> dict[str, float]:
        if not isinstance(returned, dict) or not returned or not all(isinstance(key, str) for key in returned):
            raise ValueError(
                f"reward {self.name} returned {returned!r} of type {type(returned).__name__}: "
                'need a dict of signals, for example {"verify": 1.0}'
            )
        for name, value in returned.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"reward {self.name}: signal {name!r} is {value!r}, need a finite number")
        return {name: float(value) for name, value in returned.items()}

    def cache_hit_rate(self) -> float:
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"reward {self.name} keeps no state, but the checkpoint holds {sorted(state)}")

    def close(self) -> None:
        pass


def load_function(name: str) -> Callable[[str, Any], dict[str, float]]:
    """The function named `package.module:function`; ValueError that says which part of the name leads nowhere."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f"reward {name!r}: cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"reward {name!r}: {module_name} has no function {function_name!r}")
    return function
