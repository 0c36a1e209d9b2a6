"""A user's own function as the reward.

`f(completion, ground_truth, ...) -> {signal: number}` is called once a completion. A function with a parameter
`completions`, `prompts` or `completion_ids` is called once a batch with lists, as TRL does, and returns a list. Further
parameters are filled by name: `question`, `prompt`, `messages`, `completion_ids` and the columns of the data. Both
forms may be `async def`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import pkgutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

from rewards.score import UNVERIFIED, Reward, RewardError, Row, Score

NOTICE_S = 10.0
"""Seconds after which a call that still runs is reported"""
MAX_SIGNAL = 1e6
"""Largest size of a signal; squares of 1e300 have no float"""
BATCH_PARAMETERS = {"completions", "prompts", "completion_ids"}
TRUTH_COLUMNS = ("ground_truth", "solution", "answer", "final_answer")
"""Usual names of the ground truth's column: a parameter of such a name gets the ground truth"""


class FunctionReward(Reward):
    """Scores by a function; the total is the sum of its signals.

    A function of one completion returns a dict of signals. A batch function returns a list with a dict, a number or
    None (0, as in TRL) for each completion. Up to `parallel` calls run at a time. A call longer than NOTICE_S is
    reported, one longer than `limit_s` seconds is an error. Every error in the function becomes a RewardError.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], parallel: int = 1, limit_s: float | None = None
    ) -> None:
        self.name = name
        self.parallel = parallel
        self.limit_s = limit_s
        self.function = _synchronous(function)
        self.signature = inspect.signature(function)
        self.parameters = self.signature.parameters
        self.weights: dict[str, float] = {}  # known from the first call on
        self.batch = "completion" not in self.parameters and bool(BATCH_PARAMETERS & self.parameters.keys())
        self.forms = ["texts"] if "ground_truths" in self.parameters else ["texts", "messages"]

    def self_test(self, row: Row) -> None:
        """Calls the function with an empty completion, because a model may write nothing."""
        self.score_batch([""], [row.get("ground_truth", "0")], [row])

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], rows: Sequence[Row] | None = None
    ) -> list[Score]:
        known = [
            {**dict.fromkeys(TRUTH_COLUMNS, truth), **row, "completion": text}
            for text, truth, row in zip(completions, ground_truths, rows or [{}] * len(completions), strict=True)
        ]
        with unchanged_process(self.name):
            signals = self._by_batch(known) if self.batch else self._one_by_one(known)
        self.weights = self.weights or dict.fromkeys(signals[0], 1.0)
        for index, named in enumerate(signals):
            if named.keys() != self.weights.keys():
                raise RewardError(
                    f"{self.name}: signals {sorted(named)} for completion {index}, {sorted(self.weights)} before"
                )
        return [Score(sum(named.values()), named, None, None, UNVERIFIED) for named in signals]

    def _one_by_one(self, rows: Sequence[Row]) -> list[dict[str, float]]:
        """Returns the signals of each completion. Without a parameter `completion`, the first is the completion.

        The second is the ground truth, unless it has the name of another column.
        """
        first, second, *_ = [*self.parameters, "", ""]
        first = "completion" if "completion" in self.parameters else first
        calls = [partial(self._call, {second: row["ground_truth"], **row, first: row["completion"]}) for row in rows]
        signals = []
        for index, result in enumerate(started(calls, self.parallel, self.limit_s)):
            text, truth = rows[index]["completion"][:60], str(rows[index]["ground_truth"])[:60]
            with self._errors(f"completion {index} {json.dumps(text)} with ground truth {truth!r}"):
                signals.append(_checked(result()))
        return signals

    def _by_batch(self, rows: Sequence[Row]) -> list[dict[str, float]]:
        """Returns the signals of all completions. The function takes texts, or chat messages as TRL's own do."""
        columns = dict.fromkeys(name for row in rows for name in row)
        lists: dict[str, Any] = {name: [row.get(name) for row in rows] for name in columns}
        lists["ground_truths"] = lists["ground_truth"]
        messages = [[{"role": "assistant", "content": text}] for text in lists["completion"]]
        forms = {"texts": (lists["completion"], lists.get("prompt")), "messages": (messages, lists.get("messages"))}
        errors = []
        for form in self.forms:
            lists["completions"], lists["prompts"] = forms[form]
            try:
                with self._errors(f"{len(rows)} completions as {form}"):
                    (result,) = started([partial(self._call, lists)], 1, self.limit_s)
                    signals = self._listed(result(), len(rows))
            except RewardError as error:
                errors.append(error)
                continue
            if any(lists["completion"]):  # an empty text does not reveal the form
                self.forms = [form]
            return signals
        raise errors[0] if len(errors) == 1 else RewardError("; ".join(map(str, errors))) from errors[0]

    def _call(self, values: Row) -> Any:
        """Calls the function with the values of its parameters, and with all others if it has `**kwargs`."""
        if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in self.parameters.values()):
            return self.function(values["completion"], values["ground_truth"])  # a decorator that hides the names
        arguments: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments[name] = {other: values[other] for other in values if other not in self.parameters}
            elif name in values:
                arguments[name] = values[name]
            elif parameter.default is parameter.empty:
                raise ValueError(
                    f"parameter {name!r} is not a column of the data; known are {', '.join(sorted(values))}"
                )
        call = inspect.BoundArguments(self.signature, arguments)  # type: ignore[arg-type]  # any ordered mapping will do
        return self.function(*call.args, **call.kwargs)

    def _listed(self, returned: Any, count: int) -> list[dict[str, float]]:
        """Checks the list that a batch function returned."""
        if not isinstance(returned, Sequence) or isinstance(returned, str) or len(returned) != count:
            raise ValueError(f"returned {str(returned)[:99]}, need a list of {count}, one entry for each completion")
        signal = self.name.rpartition(":")[2]
        return [
            _checked(entry if isinstance(entry, Mapping) else {signal: 0.0 if entry is None else entry}, f"{index}: ")
            for index, entry in enumerate(returned)
        ]

    @contextlib.contextmanager
    def _errors(self, label: str) -> Iterator[None]:
        """Reports a call that takes long; turns any error into a RewardError with the label and the user's line."""
        notice = threading.Timer(NOTICE_S, print, [f"still in {self.name}, {label}"], {"file": sys.stderr})
        notice.daemon = True
        notice.start()
        try:
            yield
        except (Exception, SystemExit, GeneratorExit, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) and type(error) is not KeyboardInterrupt:
                raise  # the trainer's own: a signal asked the process to end
            place = traceback.extract_tb(error.__traceback__)[-1]
            line = "" if place.filename == __file__ else f" ({Path(place.filename).name}, line {place.lineno})"
            raise RewardError(f"reward {self.name}, {label}: {type(error).__name__}: {error}{line}") from error
        finally:
            notice.cancel()


def _checked(returned: Any, where: str = "") -> dict[str, float]:
    """Returns the signals as floats; ValueError unless they are numbers, bools, or scalars of NumPy or torch."""
    if not isinstance(returned, Mapping) or not returned:
        raise ValueError(f'returned {returned!r}, need a dict of signals, for example {{"verify": 1.0}}')
    for name, value in returned.items():
        if isinstance(value, str) or not abs(float(value)) <= MAX_SIGNAL:
            raise ValueError(
                f"{where}signal {name!r} is {value!r}, need a finite number, at most {MAX_SIGNAL:g} in size"
            )
    return {name: float(value) for name, value in returned.items()}


# ---- how a function is called


def load_function_reward(name: str, parallel: int = 1, limit_s: float | None = None) -> Reward:
    """Returns the reward named `package.module:function`; a class is called first, a Reward is taken as it is.

    Raises RewardError if the name does not exist.
    """
    function = find(name)
    try:
        with unchanged_process(name):
            if isinstance(function, type):
                function = function()
            return function if isinstance(function, Reward) else FunctionReward(name, function, parallel, limit_s)
    except Exception as error:
        raise RewardError(f"reward {name!r} cannot be used: {type(error).__name__}: {error}") from error


def find(name: str) -> Any:
    """Imports `package.module:function`, also from the current folder. Raises RewardError if it does not exist."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with unchanged_process(name):
            return pkgutil.resolve_name(name)
    except Exception as error:
        fix = ""
        if isinstance(error, ModuleNotFoundError) and error.name == name.partition(":")[0].partition(".")[0]:
            fix = "; the file must lie in the current folder, beside train.py or on PYTHONPATH"
        raise RewardError(f"reward {name!r} cannot be imported: {type(error).__name__}: {error}{fix}") from error


def _synchronous(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function; an async one waits for its result, in an event loop that all calls share."""
    if not inspect.iscoroutinefunction(function):
        return function
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return lambda *values, **named: asyncio.run_coroutine_threadsafe(function(*values, **named), loop).result()


def started(calls: Sequence[Callable[[], Any]], threads: int, limit_s: float | None) -> Sequence[Callable[[], Any]]:
    """Returns for each call a function that waits for its result; `threads` calls run at a time, in their order.

    The threads are daemons: a call that hangs delays neither Ctrl-C nor the end of the process. With one thread and no
    limit the calls run in this thread, when their results are asked for.
    """
    if threads == 1 and limit_s is None:
        return calls
    futures: list[Future] = [Future() for _ in calls]
    waiting = iter(list(zip(futures, calls, strict=True)))

    def work() -> None:
        for future, call in waiting:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
                future.set_exception(error)

    for _ in range(min(threads, len(calls))):
        threading.Thread(target=work, daemon=True).start()
    return [partial(_result, future, limit_s) for future in futures]


def _result(future: Future, limit_s: float | None) -> Any:
    if not wait([future], limit_s).done:
        raise TimeoutError(f"no result after {limit_s:g} s (reward.call_limit_s)")
    return future.result()


@contextlib.contextmanager
def unchanged_process(name: str) -> Iterator[None]:
    """Restores what a user's function changed for the whole process, and reports it in one line."""
    settings = {"recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit)}
    if torch := sys.modules.get("torch"):
        settings |= {
            "torch grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
            "torch default dtype": (torch.get_default_dtype, torch.set_default_dtype),
            "torch default device": (torch.get_default_device, torch.set_default_device),
            "torch threads": (torch.get_num_threads, torch.set_num_threads),
            "torch seed": (torch.initial_seed, torch.manual_seed),
        }
    before = {setting: read() for setting, (read, _) in settings.items()}
    try:
        yield
    finally:
        changed = [setting for setting, (read, _) in settings.items() if read() != before[setting]]
        for setting in changed:
            settings[setting][1](before[setting])
        if changed:
            print(f"reward {name} changed {', '.join(changed)}: set back", file=sys.stderr)
