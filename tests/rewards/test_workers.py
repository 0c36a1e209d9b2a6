"""Hostile answers and killed workers: one answer is lost at most, and the next one is graded."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rewards import MultiSignalMathReward, RewardError, Verifier

REPO = Path(__file__).resolve().parents[2]
HARD = (r"\frac{\sqrt{8}}{2}", r"\sqrt{2}")  # equal, and only algebra can tell
HANG = ("x!y!z!a!b!" * 4, r"\sqrt{2}")  # keeps the grammar busy for minutes


@pytest.fixture(scope="module")
def verifier():
    verifier = Verifier(workers=2, timeout_s=600)
    yield verifier
    verifier.close()


def gone(pids: list[int]) -> bool:
    """True if all these processes end within a minute."""
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(psutil.pid_exists(pid) for pid in pids)


def busy_worker(verifier: Verifier, other_than: int | None = None) -> int:
    """The id of a worker that has computed for a while; waits until there is one."""
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            for worker in psutil.Process(verifier._server.pid).children() if verifier._server else ():
                alive = worker.status() != psutil.STATUS_ZOMBIE and worker.pid != other_than
                if alive and worker.cpu_times().user > 0.3:
                    return worker.pid
        time.sleep(0.05)


def in_a_thread(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def box(text: str) -> str:
    return rf"\boxed{{{text}}}"


HOSTILE = {
    "empty": "",
    "null bytes": "\0" * 1000 + box("\0"),
    "lone surrogates": "\ud800\udfff" + box("\ud800"),
    "10 MB of text": "a" * 10**7,
    "10 MB of braces": "{" * 10**7,
    "10 MB of boxes": r"\boxed{" * (10**7 // 7),
    "10 MB of tags": "<think>" * (10**7 // 7),
    "a long reflection": "<reflection>" + "not " * 10**6 + "correct</reflection>",
    "10^5 nested braces": box("{" * 10**5 + "}" * 10**5),
    "unclosed": r"\boxed{" * 1000 + "5",
    "a tower of powers": box("9^{9^{9^{9^{9}}}}"),
    "stars": box("9**9**9**9**9"),
    "a huge factorial": box("(10^{10})!"),
    "factorials of factorials": box("9!!!!!!"),
    "a million digits": box("9" * 10**6),
    "a huge exponent": box("1e999999999"),
    "a huge root": box(r"\sqrt[99999]{2}+\sqrt[99998]{3}"),
    "an endless product": box(r"\prod_{n=1}^{10^8} n"),
    "a wide matrix": box(r"\operatorname{zeros}(100000,100000)"),
    "many terms": box("x+" * 450 + "x"),
    "many signs": box("-" * 900 + "5"),
    "a big power of a sum": box("(x+y+z+w+a+b+c)^{900}"),
    "python": box("__import__('os').system('true')"),
    "nothing but syntax": box(r"\frac{}{}\sqrt{}^_&\\\begin{pmatrix}"),
    "division by zero": box(r"\frac{1}{0}"),
    "Arabic digits": box("١٢"),
}


def test_hostile_text_gives_signals_and_the_workers_go_on():
    reward = MultiSignalMathReward(workers=2, timeout_s=2)
    for name, score in zip(HOSTILE, reward.score_batch(list(HOSTILE.values()), [HARD[1]] * len(HOSTILE)), strict=True):
        assert set(score.signals.values()) <= {0.0, 1.0}, name
        assert score.verify == 0.0, name
    assert reward(box(HARD[0]), HARD[1]).verify == 1.0
    reward.close()


def test_model_text_never_runs(tmp_path, verifier):
    """Each of these would leave the canary file behind if anything evaluated it as Python."""
    canary = tmp_path / "canary"
    attacks = [
        f"__import__('os').system('touch {canary}')",
        f"open('{canary}','w')",
        f"exec(\"open('{canary}','w')\")",
        rf"\text{{x}}.__class__.__init__.__globals__['os'].system('touch {canary}')",
        f"f(open('{canary}','w'))",
        rf"\operatorname{{exec}}(open('{canary}','w'))",
        f"[open('{canary}','w') for x in (1,)]",
        f"1 + len(open('{canary}','w').name)",
    ]
    verifier.ask([(attack, HARD[1]) for attack in attacks] + [("5", attack) for attack in attacks])
    assert not canary.exists()


def test_a_hang_costs_one_answer():
    verifier = Verifier(workers=1, timeout_s=1)
    assert verifier.ask([HARD, HANG, HARD]) == ["correct", "timeout", "correct"]
    verifier.close()


def test_more_answers_than_workers(verifier):
    assert verifier.ask([HARD, ("1+x", "x+2"), ("x", "x"), HARD, ("", "y")]) == [
        "correct", "wrong", "correct", "correct", "no_answer",
    ]  # fmt: skip
    assert verifier.ask([]) == []


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits are Linux's")
def test_memory_is_limited():
    """Expanding a power of a sum needs gigabytes, and hours of the clock."""
    verifier = Verifier(workers=1, timeout_s=3600, memory_limit_mb=300)
    power = "|x|(a+b+c+d+x+y+z)^{60}"  # values at random points settle no |x|
    assert verifier.ask([(rf"{power}(\sin^2 x+\cos^2 x)", power), HARD]) == ["timeout", "correct"]
    verifier.close()


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_killed_or_stopped_from_outside_costs_no_answer(kill):
    """Nobody knows what its answer was, so all processes start again, and a kill is never taken for a time-out."""
    verifier, outcomes = Verifier(workers=1, timeout_s=5), []  # the one worker takes HANG first
    run = in_a_thread(lambda: outcomes.extend(verifier.ask([HANG, HARD])))
    first = busy_worker(verifier)
    os.kill(first, kill)
    os.kill(busy_worker(verifier, other_than=first), kill)
    run.join()
    assert outcomes == ["timeout", "correct"]
    verifier.close()


def test_a_worker_killed_while_it_waits_costs_no_answer():
    verifier = Verifier(workers=2)
    assert verifier.ask([HARD]) == ["correct"]
    psutil.Process(verifier._server.pid).children()[0].kill()
    assert verifier.ask([HARD, (r"\sqrt{3}", r"\sqrt{2}"), ("x", "x")]) == ["correct", "wrong", "correct"]
    verifier.close()


@pytest.mark.parametrize(
    ("wait", "killed_by"),
    [("time.sleep(0.5)", 0), ("any(iter(int, 1))", signal.SIGPROF), ("time.sleep(99)", signal.SIGALRM)],
)
def test_the_limit_is_of_processor_time(wait, killed_by):
    """0.1 s of computing, and 60 times as long by the clock: half a second of waiting costs no answer."""
    code = f"import os, time; from rewards.equivalence.server import limit; limit(0.1, 1024); {wait}; os._exit(0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, timeout=200, check=False)
    assert done.returncode == -killed_by


def test_even_the_server_may_die(verifier):
    verifier.ask([HARD])
    verifier._server.kill()
    assert verifier.ask([HARD] * 3) == ["correct"] * 3


def test_any_thread(verifier):
    results: list[list[str]] = [[] for _ in range(4)]

    def work(index: int) -> None:
        results[index] = verifier.ask([HARD, (r"\sqrt{3}", r"\sqrt{2}")])

    for thread in [in_a_thread(work, index) for index in range(4)]:
        thread.join()
    assert results == [["correct", "wrong"]] * 4


def test_a_forked_process_starts_its_own_workers(verifier):
    verifier.ask([HARD])
    server = verifier._server.pid
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            outcome = verifier.ask([HARD])
            os.write(write, json.dumps([outcome, verifier._server.pid]).encode())
            verifier.close()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        outcome, other = json.loads(stream.read())
    os.waitpid(child, 0)
    assert outcome == ["correct"]
    assert other != server
    assert verifier.ask([HARD]) == ["correct"]
    assert verifier._server.pid == server, "the parent's still serves"


def test_no_torch_and_nothing_left_behind():
    """The trainer ends without closing anything while one worker is in an endless integral."""
    code = f"""
import os, sys, threading, time, psutil
from rewards import make_reward
reward = make_reward("multi_signal", timeout_s=3)
verifier = reward.verifier
assert reward(r"\\boxed{{12.80}}", "12.8").verify == 1.0
assert verifier._server is None, "a number needs no worker"
verifier.ask([{HARD!r}])
assert not {{"torch", "sympy", "math_verify", "transformers"}} & set(sys.modules)
assert sys.platform != "linux" or "torch" not in open(f"/proc/{{verifier._server.pid}}/maps").read()
threading.Thread(target=verifier.ask, args=([{HANG!r}],), daemon=True).start()
while not (workers := psutil.Process(verifier._server.pid).children()):
    time.sleep(0.01)
print(verifier._server.pid, *[worker.pid for worker in workers], flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=200, check=False
    )
    assert len(done.stdout.split()) == 2, done.stderr
    assert gone([int(pid) for pid in done.stdout.split()])


def test_ctrl_c_ends_the_workers_and_leaks_nothing_into_the_next_run(verifier):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    verifier.ask([HARD])
    pids = [verifier._server.pid]

    def interrupt() -> None:
        pids.append(busy_worker(verifier))
        os.kill(os.getpid(), signal.SIGINT)

    in_a_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        verifier.ask([HANG])
    signal.signal(signal.SIGINT, before)
    assert gone(pids)
    assert verifier.ask([HARD]) == ["correct"]


def test_self_test_refuses_a_verifier_that_is_broken(monkeypatch, verifier):
    reward = MultiSignalMathReward()
    reward.verifier = verifier
    reward.self_test({})
    for broken in ("correct", "wrong", "timeout"):
        monkeypatch.setattr(verifier, "ask", lambda pairs, said=broken: [said] * len(pairs))
        with pytest.raises(ValueError, match="self-test"):
            reward.self_test({})


def test_a_server_that_cannot_start_says_how_to_see_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RewardError, match=r"3 times.*exit code 1.*import rewards.equivalence.server"):
        Verifier().ask([HARD])


def test_the_working_directory_is_no_place_for_modules(tmp_path, monkeypatch):
    """A sympy.py and a rewards/ in the working directory are neither imported nor run."""
    (tmp_path / "rewards").mkdir()
    for name in ("sympy.py", "rewards/__init__.py", "json.py"):
        (tmp_path / name).write_text("open('imported', 'w')")
    monkeypatch.chdir(tmp_path)
    verifier = Verifier(timeout_s=20)
    assert verifier.ask([HARD]) == ["correct"]
    verifier.close()
    assert not (tmp_path / "imported").exists()


def test_a_time_out_is_remembered(monkeypatch):
    """The limit is of processor time, so the same answer would use all of it again at every step."""
    verifier = Verifier()
    monkeypatch.setattr(verifier, "ask", lambda pairs: ["timeout"] * len(pairs))
    for rate in (0.0, 1.0):
        assert verifier.check_batch([HARD]) == ["timeout"]
        assert verifier.cache_hit_rate() == rate


@pytest.mark.parametrize("action", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_killed_or_stopped_again_and_again_is_one_line(action, monkeypatch):
    """Each server that starts is hit at once: three starts, then an error."""
    verifier = Verifier(workers=1)
    verifier.silence_s = 0.5
    start = verifier._started

    def hit():
        connections = start()
        os.kill(verifier._server.pid, action)
        return connections

    monkeypatch.setattr(verifier, "_started", hit)
    with pytest.raises(RewardError, match=r"ended or stopped 3 times .*memory, or a signal"):
        verifier.ask([("x" * 100, "y" * 100)] * 1000)
    monkeypatch.undo()
    verifier.silence_s = 600
    assert verifier.ask([HARD]) == ["correct"]
    verifier.close()


def test_a_batch_has_a_budget_of_processor_time():
    """Each answer uses its 1 s: after two of them the budget of 1.5 s is used up, and the others are not graded."""
    verifier = Verifier(workers=1, timeout_s=1, budget_s=1.5)
    hang = [(HANG[0].replace("a", letter), HANG[1]) for letter in "acde"]
    assert verifier.check_batch([HARD, *hang, HARD]) == [
        "correct", "timeout", "timeout", "over_budget", "over_budget", "correct",
    ]  # fmt: skip
    assert verifier.check_batch(hang[2:]) == ["timeout"] * 2, "what was not graded is graded in the next batch"
    verifier.close()


def test_an_answer_left_ungraded_earns_no_reflection():
    reward = MultiSignalMathReward(workers=1, timeout_s=1, budget_s=0.001)
    text = r"<think>a</think>\boxed{%s}<reflection>wrong</reflection>"
    scores = reward.score_batch([text % (rf"\frac{{\sqrt{{{n}}}}}{{2}}") for n in (7, 11, 13)], [HARD[1]] * 3)
    assert [score.outcome for score in scores] == ["wrong", "over_budget", "over_budget"]
    assert [score.signals["reflect"] for score in scores] == [1.0, 0.0, 0.0]
    reward.close()


class SlowCache(dict):
    """Lets the other threads run between choosing the oldest pair and evicting it."""

    def __iter__(self):
        for key in list(self.keys()):
            time.sleep(0.002)
            yield key


def test_threads_may_fill_the_cache_together(monkeypatch):
    """Six threads, each with pairs of its own: without a lock two of them choose the same pair to evict (KeyError)."""
    monkeypatch.setattr("rewards.verifier.CACHE_SIZE", 5)
    verifier, outcomes = Verifier(), []
    verifier._cache = SlowCache()

    def work(thread: int) -> None:
        for batch in range(4):
            numbers = [f"{thread}{batch}{place}" for place in range(4)]
            outcomes.append(verifier.check_batch([(number, number) for number in numbers]))

    for thread in [in_a_thread(work, index) for index in range(6)]:
        thread.join()
    assert outcomes == [["correct"] * 4] * 24
    assert len(verifier._cache) == 5
