"""Kill -9 at random moments over one run, start it again each time, and compare with a run left in peace.

python tests/runs/faults/soak.py --kills 100 --steps 60        (pytest tests/runs/faults/soak.py -m soak is the same)
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from small_runs import Child, arguments, same_run, start


def soak(out: Path, kills: int, steps: int, seed: int, settings: dict) -> str:
    """Raises AssertionError when a life fails of itself or the end differs. Returns what happened, in one line."""
    begun, chance = time.monotonic(), random.Random(seed)
    assert start(arguments(out, "calm", steps=steps, **settings), out / "calm.log").wait(3600) == 0
    args = [*arguments(out, "killed", steps=steps, checkpoint__every=1, **settings), "--resume", "auto"]
    reached = []
    for killed in range(kills):
        child = start(args, out / "killed.log")
        kill_some_time(child, out / "killed", chance, ahead=newest(out / "killed") - (steps - 3) * killed / kills)
        assert child.wait() == -signal.SIGKILL, f"life {killed} ended itself:\n{child.output()[-4000:]}"
        reached.append(newest(out / "killed"))
    last = start(args, out / "killed.log")
    assert last.wait(3600) == 0, last.output()[-4000:]
    same_run(out / "calm", out / "killed", steps)
    further = sum(a != b for a, b in zip([0, *reached], reached, strict=False))
    return (
        f"{kills} kills over {steps} steps ({further} lives got further, the last kill after step {reached[-1]}), "
        f"{time.monotonic() - begun:.0f} s: figures, completions, weights, moments and random states equal those of "
        "the undisturbed run"
    )


def kill_some_time(child: Child, folder: Path, chance: random.Random, ahead: float) -> None:
    """So that the kills are spread over all steps, a life ends soon after its first new checkpoint at the latest.

    One behind the pace of the kills may get there; any other ends at a random moment, most often in the start-up, the
    resume, or the first step. `ahead`: by how many steps; from two on it ends in the start-up, on any machine.
    """
    before, born = newest(folder), time.monotonic()
    longest = 60.0 if ahead < 0 else chance.uniform(0, 1.5 if ahead < 2 else 0.15)
    deadline = born + longest
    while child.poll() is None and time.monotonic() < deadline:
        if newest(folder) > before:
            time.sleep(chance.uniform(0, 0.1))
            break
        time.sleep(0.001)
    child.signal(signal.SIGKILL)


def newest(folder: Path) -> int:
    return max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*")), default=0)


@pytest.mark.soak
def test_soak(tmp_path):
    print(soak(tmp_path, kills=100, steps=60, seed=0, settings={}))


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--kills", type=int, default=100)
    cli.add_argument("--steps", type=int, default=60)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--lora", action="store_true")
    given = cli.parse_args()
    lora = {"policy.lora_rank": 4, "learner.skip_zero_variance": "false", "learner.kl_coef": 0.01} if given.lora else {}
    with tempfile.TemporaryDirectory() as folder:
        print(soak(Path(folder), given.kills, given.steps, given.seed, lora))
