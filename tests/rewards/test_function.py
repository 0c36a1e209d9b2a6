"""A user's own function: checked before training, called as it is written, and never able to change the process."""

from __future__ import annotations

import sys
import textwrap

import pytest

from rewards import Reward, RewardError, Score, load_reward, make_reward


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        textwrap.dedent(
            """
            import time
            import numpy as np
            import torch
            def length(completion, ground_truth):
                return {"short": float(len(completion) < 10), "has_truth": str(ground_truth) in completion}
            def number(completion, ground_truth): return 1.0
            def nothing(completion, ground_truth): return {}
            def text(completion, ground_truth): return {"a": "1"}
            def huge(completion, ground_truth): return {"a": 1e300}
            def leaving(completion, ground_truth): raise SystemExit(3)
            def scalars(completion, ground_truth):
                return {"numpy": np.float32(0.5), "torch": torch.tensor(2), "bool": np.bool_(True), "int": True}
            def slow(completion, ground_truth):
                time.sleep(0.3 if completion == "slow" else 0)
                return {"a": float("nan") if completion == "nan" else 1.0}
            def infinite(completion, ground_truth): return {"a": float("inf")}
            def crashing(completion, ground_truth): return {"a": 1 / len(completion)}
            def changing(completion, ground_truth): return {"a" if completion else "b": 1.0}
            value = 3
            """
        )
    )
    (tmp_path / "no_python.py").write_text("def f(:")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_rewards"
    sys.modules.pop("my_rewards", None)


def test_a_function_of_the_users_own(module):
    reward = make_reward(f"{module}:length")
    assert isinstance(reward, Reward)
    assert reward("5", "5") == Score(2.0, {"short": 1.0, "has_truth": 1.0}, None, None, "unverified")
    assert [score.total for score in reward.score_batch(["a" * 20, "5"], ["5", "6"])] == [0.0, 1.0]
    reward.self_test({})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rewards:number", "returned 1.0, need a dict"),
        ("my_rewards:nothing", "need a dict"),
        ("my_rewards:text", "signal 'a' is '1', need a finite number"),
        ("my_rewards:infinite", "need a finite number"),
        ("my_rewards:huge", "signal 'a' is 1e\\+300, need a finite number, at most 1e\\+06"),
        ("my_rewards:leaving", 'completion 0 "" .* SystemExit: 3'),
        ("my_rewards.py:length", "cannot be imported: ModuleNotFoundError"),
        ("my_rewards:crashing", 'completion 0 "" with ground truth .* ZeroDivisionError'),
        ("no_python:f", "cannot be imported: SyntaxError"),
        ("my_rewards:missing", "no attribute 'missing'"),
        ("my_rewards:value", "cannot be used: TypeError: 3 is not a callable object"),
        ("no_such_module:f", "No module named 'no_such_module'; the file must lie in the current folder"),
        ("nonsense", "unknown reward 'nonsense': one of multi_signal"),
    ],
)
def test_one_clear_error_before_training(module, name, message):
    with pytest.raises(RewardError, match=message):
        load_reward({}, 0, "cpu", name=name)


def test_scalars_of_numpy_and_torch_are_numbers(module):
    score = make_reward(f"{module}:scalars")("", "")
    assert score.signals == {"numpy": 0.5, "torch": 2.0, "bool": 1.0, "int": 1.0}
    assert {type(value) for value in score.signals.values()} == {float}


def test_the_completion_that_failed_is_named(module, monkeypatch, capsys):
    monkeypatch.setattr("rewards.function.NOTICE_S", 0.05)
    reward = make_reward(f"{module}:slow")
    assert [score.total for score in reward.score_batch(["a", "slow"], ["5"] * 2)] == [1.0, 1.0]
    assert 'still in my_rewards:slow, completion 1 "slow"' in capsys.readouterr().err
    with pytest.raises(ValueError, match="completion 2 \"nan\" with ground truth '6': ValueError: signal 'a' is nan"):
        reward.score_batch(["a", "a", "nan"], ["5", "5", "6"])


def test_a_call_may_be_limited(module):
    reward = make_reward(f"{module}:slow", call_limit_s=0.1)
    assert reward("a", "5").total == 1.0
    with pytest.raises(ValueError, match=r'completion 1 "slow" .* no result after 0\.1 s'):
        reward.score_batch(["a", "slow"], ["5"] * 2)


def test_signals_may_not_change_on_the_way(module):
    reward = make_reward(f"{module}:changing")
    with pytest.raises(RewardError, match=r"signals \['b'\] for completion 1, \['a'\] before"):
        reward.score_batch(["text", ""], ["5", "5"])


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(source) -> the name of a module with that source."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def write(source: str) -> str:
        names.append(f"written_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(textwrap.dedent(source))
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


ROWS = [{"question": f"q{i}", "prompt": f"<user>q{i}", "messages": [{"role": "user", "content": f"q{i}"}],
         "completion_ids": [i] * i, "level": i} for i in range(3)]  # fmt: skip


@pytest.mark.parametrize(
    ("definition", "totals"),
    [
        ("f(completion, ground_truth, level): return {'a': level}", [0, 1, 2]),
        ("f(text, truth, *, question): return {'a': int(question[1]) + (text == truth)}", [0, 2, 2]),
        ("f(ground_truth, completion): return {'a': len(completion) + 10 * len(ground_truth)}", [11, 11, 12]),
        ("f(text, truth, /): return {'a': text == truth}", [0, 1, 0]),
        ("f(*args, **kwargs): return {'a': args[0] == args[1]}", [0, 1, 0]),
        ("f(completion, completion_ids): return {'a': len(completion_ids)}", [0, 1, 2]),
        ("f(completion, answer): return {'a': answer == completion}", [0, 1, 0]),
        ("f(completion, ground_truth, absent=5, **row): return {'a': absent + row['level']}", [5, 6, 7]),
        ("f(completions, ground_truths): return [c == t for c, t in zip(completions, ground_truths)]", [0, 1, 0]),
        ("f(completions, ground_truths): return [{'b': len(c)} for c in completions]", [1, 1, 2]),
        ("f(completions, solution, **_): return [float(c == s) for c, s in zip(completions, solution)]", [0, 1, 0]),
        ("f(completions, **kwargs): return [c[0]['content'] == 'cc' for c in completions]", [0, 0, 1]),
        ("f(prompts, completions): return [p[0]['content'] == 'q1' and c[0]['role'] == 'assistant'"
         " for p, c in zip(prompts, completions)]", [0, 1, 0]),
        ("f(completion_ids, **kwargs): return [None if not ids else len(ids) for ids in completion_ids]", [0, 1, 2]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["def", "async def"])
def test_parameters_are_filled_by_name(written, definition, totals, form):
    """completion and ground truth, lists of them, the question, the ids, the columns: as the function names them."""
    reward = load_reward(ROWS[0], 0, "cpu", name=f"{written(f'{form} {definition}')}:f", parallel=2)
    scores = reward.score_batch(["a", "b", "cc"], ["x", "b", "y"], ROWS)
    assert [score.total for score in scores] == totals


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (
            "f(completion, ground_truth, depth): pass",
            "parameter 'depth' is not a column of the data; known are",
        ),
        ("f(completions): return 1", "1 completions as texts: ValueError: returned 1, need a list of 1, one entry"),
        ("f(completions): return ['a']", "0: signal 'f' is 'a', need a finite number"),
        ("f(completions): return [1 / 0]", r"as texts: .*ZeroDivisionError: .*line 1\).*; .*as messages"),
        ("f(completions, ground_truths): raise ValueError('no')", r"1 completions as texts: ValueError: no \(w"),
        ("f(a, b): raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("f(a, b): raise GeneratorExit", "GeneratorExit"),
        ("f(a, b): import sys; sys.setrecursionlimit(2)", "RecursionError: cannot set the recursion limit to 2"),
    ],
)
def test_each_mistake_is_one_line(written, definition, message):
    with pytest.raises(RewardError, match=message) as raised:
        load_reward(ROWS[0], 0, "cpu", name=f"{written(f'def {definition}')}:f")
    assert "\n" not in str(raised.value)


def test_calls_overlap_and_keep_their_order(written):
    """Eight calls meet at a barrier of eight: they pass only if all of them run at the same time."""
    name = written("""
        import threading
        barrier = threading.Barrier(8, timeout=20)
        def f(completion, ground_truth):
            if completion: barrier.wait()
            return {"a": float(completion or 0)}
    """)
    reward = load_reward({}, 0, "cpu", name=f"{name}:f", parallel=8)
    texts = [str(number) for number in range(16)]
    assert [score.total for score in reward.score_batch(texts, texts)] == list(range(16))


def test_async_calls_share_one_event_loop(written):
    """A client made once is bound to its loop: the second batch must run in the same one."""
    name = written("""
        import asyncio
        gate, running, most = asyncio.Semaphore(3), 0, 0
        async def f(completion, ground_truth):
            global running, most
            async with gate:
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.01)
                running -= 1
            return {"a": most}
    """)
    reward = load_reward({}, 0, "cpu", name=f"{name}:f", parallel=8)
    for _ in range(2):
        scores = reward.score_batch(["x"] * 16, ["x"] * 16)
    assert scores[-1].total == 3


def test_the_first_failing_completion_is_named_at_any_parallel(written):
    name = written("""
        def f(completion, ground_truth):
            return {"a": 1 / (int(completion or 1) % 5 != 3)}
    """)
    for parallel in (1, 4):
        reward = load_reward({}, 0, "cpu", name=f"{name}:f", parallel=parallel)
        with pytest.raises(RewardError, match="completion 3 "):
            reward.score_batch([str(number) for number in range(20)], ["5"] * 20)


def test_a_function_that_changes_the_process_is_reported_and_undone(written, capsys):
    torch = pytest.importorskip("torch")
    name = written("""
        import sys, torch
        torch.set_default_dtype(torch.float64)
        def f(completion, ground_truth):
            torch.set_grad_enabled(False)
            torch.manual_seed(1)
            torch.set_num_threads(torch.get_num_threads() + 1)
            sys.setrecursionlimit(3000)
            return {"a": 1.0}
    """)
    torch.manual_seed(7)
    before = (torch.get_num_threads(), sys.getrecursionlimit())
    reward = make_reward(f"{name}:f")
    assert capsys.readouterr().err == f"reward {name}:f changed torch default dtype: set back\n"
    reward("x", "y")
    changed = "recursion limit, torch grad mode, torch threads, torch seed"
    assert capsys.readouterr().err == f"reward {name}:f changed {changed}: set back\n"
    assert (torch.get_num_threads(), sys.getrecursionlimit()) == before
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.initial_seed() == 7


def test_a_class_is_called_and_a_reward_taken_as_it_is(written):
    name = written("""
        from rewards import MultiSignalMathReward
        class Length:
            def __call__(self, completion, ground_truth): return {"length": len(completion)}
        class Half(MultiSignalMathReward):
            def __init__(self): super().__init__(alpha=0.5)
    """)
    assert make_reward(f"{name}:Length")("abc", "5").total == 3
    assert make_reward(f"{name}:Half")(r"\boxed{5}", "5").total == 0.5


def test_an_interruption_of_the_trainer_is_no_error_of_the_function(written):
    """The trainer's own exception derives from KeyboardInterrupt and passes through; a bare one is the function's."""
    name = written("""
        class Interrupted(KeyboardInterrupt): pass
        def f(completion, ground_truth): raise Interrupted("SIGTERM")
    """)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        make_reward(f"{name}:f")("x", "y")
