"""Experiment controls and a user's own function: the same log as the real reward, with another total."""

from __future__ import annotations

import hashlib
import json
import pkgutil
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from rewards.score import SIGNALS, UNVERIFIED, Reward, Score
from rewards.signals import MultiSignalMathReward, one_box

CONTROL_WEIGHTS = {"verify_only": (1.0, 0.0, 0.0), "format_only": (0.0, 1.0, 0.0)}
"""All three signals are logged under every control; only the named one is paid for."""
NOTICE_S = 10.0
"""Seconds after which a call of a user's function is said"""
MAX_SIGNAL = 1e6
"""Largest size of a signal; squares of 1e300 have no float"""


class RandomReward(MultiSignalMathReward):
    """0 or 1 by a fair coin that does not look at the answer: what a model learns from it, it knew before.

    `needs_box`: 0 without exactly one box, which keeps the format alive, as studies of spurious rewards do. The same
    seed, texts and order give the same coins, also across a resume: `state_dict` holds how many were tossed.
    """

    def __init__(self, seed: int = 0, needs_box: bool = False, **verifier_options: Any) -> None:
        super().__init__(0.0, 0.0, 0.0, **verifier_options)
        self.weights = {"random": 1.0} | dict.fromkeys(SIGNALS, 0.0)
        self.seed, self.needs_box, self.tossed = seed, needs_box, 0

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], questions: Sequence[str] | None = None
    ) -> list[Score]:
        scores = []
        for text, score in zip(completions, super().score_batch(completions, ground_truths), strict=True):
            drawn = f"{self.seed} {self.tossed} ".encode() + text.encode("utf-8", "surrogatepass")
            self.tossed += 1
            heads = hashlib.sha256(drawn).digest()[0] & 1
            coin = float(heads and (not self.needs_box or one_box(text)))
            scores.append(replace(score, total=coin, signals={"random": coin, **score.signals}))
        return scores

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "tossed": self.tossed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("seed") != self.seed:
            raise ValueError(f"random reward: seed {self.seed}, but the checkpoint was made with {state.get('seed')}")
        self.tossed = state["tossed"]


class FunctionReward(Reward):
    """A plain function `f(completion, ground_truth) -> {signal: number}`; the total is the sum of its signals.

    A call that takes longer than NOTICE_S seconds is said on stderr; one longer than `limit_s` is an error.
    """

    def __init__(self, name: str, limit_s: float | None = None) -> None:
        self.name, self.limit_s = name, limit_s
        self.function = load_function(name)
        self.weights = dict.fromkeys(self._signals("the completion", "", "0"), 1.0)  # a model may well write nothing

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], questions: Sequence[str] | None = None
    ) -> list[Score]:
        scores = []
        for index, (completion, ground_truth) in enumerate(zip(completions, ground_truths, strict=True)):
            signals = self._signals(f"completion {index}", completion, ground_truth)
            if signals.keys() != self.weights.keys():
                raise ValueError(
                    f"{self.name}: signals {sorted(signals)} for completion {index}, {sorted(self.weights)} before"
                )
            scores.append(Score(sum(signals.values()), signals, None, None, UNVERIFIED))
        return scores

    def _signals(self, which: str, completion: str, ground_truth: Any) -> dict[str, float]:
        """The signals of one completion; ValueError names the completion if the function fails in any way."""
        notice = threading.Timer(NOTICE_S, print, [f"still in {self.name}, {which}"], {"file": sys.stderr})
        notice.daemon = True
        notice.start()
        try:
            return _checked(within(self.limit_s, self.function, completion, ground_truth))
        except (Exception, SystemExit) as error:
            where = f"{which} {json.dumps(completion[:60])} with ground truth {str(ground_truth)[:60]!r}"
            raise ValueError(f"reward {self.name}, {where}: {type(error).__name__}: {error}") from error
        finally:
            notice.cancel()


def _checked(returned: Any) -> dict[str, float]:
    """The signals as floats: numbers, bools and the scalars of NumPy and torch are; ValueError for anything else."""
    if not isinstance(returned, dict) or not returned:
        raise ValueError(f'returned {returned!r}, need a dict of signals, for example {{"verify": 1.0}}')
    for name, value in returned.items():
        if isinstance(value, str) or not abs(float(value)) <= MAX_SIGNAL:
            raise ValueError(f"signal {name!r} is {value!r}, need a finite number, at most {MAX_SIGNAL:g} in size")
    return {name: float(value) for name, value in returned.items()}


def within(limit_s: float | None, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns or raises; TimeoutError after `limit_s` seconds, while it goes on in its thread."""
    if limit_s is None:
        return function(*arguments)
    future: Future = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    try:
        return future.result(limit_s)
    except TimeoutError:
        raise TimeoutError(f"no result after {limit_s:g} s (reward.call_limit_s)") from None


def load_function(name: str) -> Callable[[str, Any], dict[str, float]]:
    """The function named `package.module:function`; ValueError that says where the name leads nowhere."""
    try:
        function = pkgutil.resolve_name(name)
    except Exception as error:
        raise ValueError(f"reward {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ValueError(f"reward {name!r} is {function!r} and no function")
    return function
