"""Hostile answers and killed workers: one answer is lost at most, and the next one is graded."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rewards import MultiSignalMathReward, Verifier, self_test
from rewards.equivalence.workers import WorkerPool

REPO = Path(__file__).resolve().parents[2]
HARD = (r"\frac{\sqrt{8}}{2}", r"\sqrt{2}")  # equal, and only algebra can tell
HANG = (r"\int_0^\infty \int_0^\infty \frac{\sin(x^{y^x})}{\ln(x+e^y)} dx dy", r"\sqrt{2}")  # far over 25 s


@pytest.fixture
def pool():
    pool = WorkerPool(workers=2, timeout_s=20)
    yield pool
    pool.close()


def gone(pids: list[int]) -> bool:
    """Whether all these processes end, within a minute."""
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(psutil.pid_exists(pid) for pid in pids)


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


@pytest.fixture(scope="module")
def reward():
    reward = MultiSignalMathReward(workers=1, timeout_s=2)
    reward(box(HARD[0]), HARD[1])
    yield reward
    reward.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_gives_signals_and_the_workers_go_on(reward, name):
    score = reward(HOSTILE[name], r"\sqrt{2}")
    assert set(score.signals.values()) <= {0.0, 1.0}
    assert score.verify == 0.0
    assert reward(box(HARD[0]), HARD[1]).verify == 1.0


def test_model_text_never_runs(tmp_path, reward):
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
    for attack in attacks:
        reward(box(attack), r"\sqrt{2}")
        reward(box("5"), attack)
    assert not canary.exists()


def test_a_hang_costs_one_answer():
    pool = WorkerPool(workers=1, timeout_s=1)
    assert pool.run([HARD]) == ["correct"]
    before = pool.pids
    assert pool.run([HARD, HANG, HARD]) == ["correct", "timeout", "correct"]
    assert pool.pids != before, "the worker that hung was replaced"
    pool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits are Linux's")
def test_memory_is_limited_and_the_worker_replaced():
    """The limit is set; then it is drawn tight, and expanding a power of a sum runs into it long before the clock."""
    pool = WorkerPool(workers=1, timeout_s=100, memory_limit_mb=128)
    pool.run([HARD])
    (before,) = pool.pids
    assert resource.prlimit(before, resource.RLIMIT_AS)[0] == 128 * 2**20
    tight = psutil.Process(before).memory_info().vms + 4 * 2**20
    resource.prlimit(before, resource.RLIMIT_AS, (tight, tight))
    started = time.monotonic()
    power = "(a+b+c+d+x+y+z)^{60}"
    assert pool.run([(rf"{power}(\sin^2 x+\cos^2 x)", power), HARD]) == ["timeout", "correct"]
    assert time.monotonic() - started < pool.timeout_s
    assert pool.pids != [before]
    assert not psutil.pid_exists(before)
    pool.close()


def test_a_worker_killed_from_outside_costs_nothing(pool):
    assert pool.run([HARD]) == ["correct"]
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    assert pool.run([HARD] * 4) == ["correct"] * 4


def test_killed_while_it_works():
    pool = WorkerPool(workers=1, timeout_s=3)
    pool.run([HARD])
    victim = pool.pids[0]
    killer = threading.Timer(0.5, os.kill, (victim, signal.SIGKILL))
    killer.start()
    started = time.monotonic()
    assert pool.run([HANG, HARD]) == ["timeout", "correct"]
    assert time.monotonic() - started > 3, "the interrupted answer was asked again"
    pool.close()


def test_even_the_forking_process_may_die(pool):
    pool.run([HARD])
    pool._process.kill()
    pool._process.wait()
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    assert pool.run([HARD] * 3) == ["correct"] * 3


def test_any_thread(pool):
    results: list[list[str]] = [[] for _ in range(4)]

    def work(index: int) -> None:
        results[index] = pool.run([HARD, (r"\sqrt{3}", r"\sqrt{2}")])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [["correct", "wrong"]] * 4


def test_a_forked_process_starts_its_own_workers(pool):
    pool.run([HARD])
    parent_pids = pool.pids
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            outcome = pool.run([HARD])
            os.write(write, json.dumps([outcome, pool.pids]).encode())
            pool.close()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        outcome, pids = json.loads(stream.read())
    os.waitpid(child, 0)
    assert outcome == ["correct"]
    assert not set(pids) & set(parent_pids)
    assert pool.run([HARD]) == ["correct"], "and the parent's still serve"
    assert set(parent_pids) <= set(pool.pids)


def test_from_a_subprocess_no_torch_and_nothing_left_behind():
    code = f"""
import sys, time, psutil
from rewards import make_reward
reward = make_reward("multi_signal", timeout_s=20)
assert reward(r"\\boxed{{12.80}}", "12.8").verify == 1.0
assert not reward.verifier.pool.pids, "the fast path needs no worker"
assert "sympy" not in sys.modules
assert reward(r"\\boxed{{{HARD[0]}}}", r"{HARD[1]}").verify == 1.0
assert not {{"torch", "sympy", "math_verify", "transformers"}} & set(sys.modules)
maps = open(f"/proc/{{reward.verifier.pool.pids[0]}}/maps").read() if sys.platform == "linux" else ""
assert "torch" not in maps
print(reward.verifier.pool._process.pid, *reward.verifier.pool.pids)
sys.stdout.flush()
import os; os._exit(0)  # no close: as if the run were killed
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert gone([int(pid) for pid in done.stdout.split()])


@pytest.mark.parametrize("working", [False, True], ids=["after a kill", "while one computes"])
def test_workers_end_with_a_trainer_that_closes_nothing(working):
    """Just after a worker was killed and forked anew, or while one is in an endless integral (its CPU time ends)."""
    code = f"""
import os, threading, time
from rewards.equivalence.workers import WorkerPool
pool = WorkerPool(workers=1, timeout_s=1)
pool.run([{HARD!r}])
pids = [pool._process.pid, *pool.pids]
run = threading.Thread(target=pool.run, args=([{HANG!r}],), daemon=True)
run.start()
while pool._workers[0].job is None if {working} else run.is_alive():
    time.sleep(0.01)
print(*pids, flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=200, check=False
    )
    assert len(done.stdout.split()) == 2, done.stderr
    assert gone([int(pid) for pid in done.stdout.split()])


def test_an_interrupted_run_leaks_nothing_into_the_next(pool, monkeypatch):
    pool.run([HARD])
    original = WorkerPool._collect

    def interrupt(self, run):
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkerPool, "_collect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pool.run([(r"\sqrt{3}", r"\sqrt{2}")])
    monkeypatch.setattr(WorkerPool, "_collect", original)
    assert pool.run([HARD]) == ["correct"]


@pytest.mark.parametrize("bad", [{"workers": 0}, {"timeout_s": 0}, {"memory_limit_mb": 10}])
def test_impossible_limits_are_refused(bad):
    with pytest.raises(ValueError, match="need workers"):
        WorkerPool(**bad)


def test_self_test_refuses_a_verifier_that_is_broken(monkeypatch):
    reward = MultiSignalMathReward(timeout_s=20)
    self_test(reward)
    for broken in ("correct", "wrong", "timeout"):
        monkeypatch.setattr(reward.verifier.pool, "run", lambda pairs, said=broken: [said] * len(pairs))
        with pytest.raises(ValueError, match="self-test"):
            self_test(reward)
    monkeypatch.undo()
    reward.close()


def test_the_working_directory_is_no_place_for_modules(tmp_path, monkeypatch):
    """A sympy.py and a rewards/ in the working directory are neither imported nor run."""
    (tmp_path / "rewards").mkdir()
    for name in ("sympy.py", "rewards/__init__.py", "json.py"):
        (tmp_path / name).write_text("open('imported', 'w')")
    monkeypatch.chdir(tmp_path)
    pool = WorkerPool(timeout_s=20)
    assert pool.run([HARD]) == ["correct"]
    pool.close()
    assert not (tmp_path / "imported").exists()


def test_above_1024_descriptors(pool):
    """select() knows descriptors up to 1,023 only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this machine allows fewer than 2,000 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert pool.run([HARD]) == ["correct"]
        assert min(worker.connection.fileno() for worker in pool._workers) > 1023
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_timeouts_are_not_remembered():
    verifier = Verifier(timeout_s=0.5)
    assert verifier.check(*HANG) == "timeout"
    verifier.cache_hit_rate()
    assert verifier.check(*HANG) == "timeout"
    assert verifier.cache_hit_rate() == 0.0
    verifier.close()
