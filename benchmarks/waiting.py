"""How long a user's reward that waits takes: 1,024 calls of 0.1 s, as a service would answer.

python -m benchmarks.waiting
"""

from __future__ import annotations

import asyncio
import time

from rewards.function import FunctionReward

CALLS = 1024
SECONDS = 0.1


def threaded(completion: str, ground_truth: str) -> dict[str, float]:
    time.sleep(SECONDS)
    return {"answered": 1.0}


async def awaited(completion: str, ground_truth: str) -> dict[str, float]:
    await asyncio.sleep(SECONDS)
    return {"answered": 1.0}


if __name__ == "__main__":
    print(f"{CALLS} calls of {SECONDS} s\n| function | reward.parallel | seconds |\n|---|---|---|")
    for function, parallel in ((threaded, 1), (threaded, 32), (awaited, 32)):
        reward = FunctionReward(function.__name__, function, parallel)
        started = time.perf_counter()
        reward.score_batch([""] * CALLS, [""] * CALLS)
        kind = "async def" if function is awaited else "def"
        print(f"| {kind} | {parallel} | {time.perf_counter() - started:.1f} |", flush=True)
