"""Kill -9 and damage files of a run again and again, start it each time, and compare with a run left in peace.

python tests/runs/faults/attack.py --kills 500 --damages 300 --odd 200 --seed 0

Every life ends by a kill at a random moment. Before some of them a file of the run folder is damaged. Others live in
odd surroundings: beside a second start, on a file system without locks or fsync, with an output that cannot write a
character, with a reward that changes torch's state, with grading processes that are killed or stopped, under a sweep
that was edited. These must hold: a damage is reported or the run refuses to start with one line; no step that was saved
is lost; no life ends with a traceback; at the end figures, completions, weights and moments equal those of the
undisturbed run.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import small_runs
import torch
from small_runs import MODEL, arguments, rows, same_run, start, wait_until

from grpo.errors import UserError
from grpo.run import files
from grpo.run.checkpoint import TRAINER
from grpo.run.files import read_completions
from rewards.verifier import Verifier
from tools import sweep

STEPS = 30
"""Of one run; an attack of more blows takes several runs."""
BLOWS = 45
LORA = {"policy.lora_rank": 4, "learner.skip_zero_variance": "false", "learner.kl_coef": 0.01}


def reward_model(folder: Path) -> Path:
    """A tiny random one that reads the built-in model's tokens."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    config = AutoConfig.from_pretrained(MODEL, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- damages: each takes the run folder and chance, and returns the word that the next life has to say (or None)


def checkpoint(run: Path, chance: random.Random) -> str:
    """The newest: one bit, the end, or a whole file of it."""
    files = [path for path in sorted(newest_path(run).rglob("*")) if path.is_file()]
    hurt(chance.choice(files), chance, whole=True)
    return "is damaged"


def foreign_state(run: Path, chance: random.Random) -> str:
    """Its manifest belongs to other content."""
    (newest_path(run) / "manifest.json").write_text('{"trainer.pt": 1}')
    return "is damaged"


def row_of_metrics(run: Path, chance: random.Random) -> str | None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    if len(lines) < 3:
        return None
    index = chance.randrange(len(lines) - 1)  # an unfinished last line is no damage
    if chance.random() < 0.5:  # a line break is lost
        lines[index] = lines[index].rstrip()
    else:  # a block that never reached the disk
        place = chance.randrange(len(lines[index]) - 1)
        lines[index] = lines[index][:place] + bytes(16) + lines[index][place + 16 :].rstrip() + b"\n"
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    return "damaged lines moved"


def config(run: Path, chance: random.Random) -> str:
    text = (run / "config.yaml").read_text()
    if chance.random() < 0.5:
        (run / "config.yaml").write_text(text[: chance.randrange(len(text) - 5)])
    else:
        (run / "config.yaml").write_text(text.replace("lr: 0.001", "lr: 0.1"))
    return "error: "


def strangers(run: Path, chance: random.Random) -> None:
    """Copies and notes of a careful user, and links of somebody else."""
    for name in ("step_000005_keep", "step_000005.bak", f"copy_{chance.random()}"):
        if not (run / "checkpoints" / name).exists():
            shutil.copytree(newest_path(run), run / "checkpoints" / name)
    (run / "completions" / "step_000001 look at this.txt").write_text("a note")
    (run / "completions" / ".step_000002.jsonl.gz.partial").unlink(missing_ok=True)
    (run / "completions" / ".step_000002.jsonl.gz.partial").symlink_to(run.parent / "target")


DAMAGES = (checkpoint, checkpoint, foreign_state, row_of_metrics, row_of_metrics, config, strangers)


def hurt(path: Path, chance: random.Random, whole: bool = False) -> None:
    data = bytearray(path.read_bytes())
    kind = chance.choice(["bit", "end"] + ["gone"] * whole)
    if kind == "gone" or not data:
        path.unlink()
    elif kind == "end":
        path.write_bytes(data[: chance.randrange(len(data))])
    else:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)


# ---- odd surroundings: each takes the attack and lives one life, which must go well


def concurrent(attack: Attack) -> None:
    """A second start while the first runs: one line, and the first never notices."""
    child = start(attack.args, attack.out / "first.log")
    wait_until(lambda: "loading the model" in child.output(), child)
    lock = attack.run / ".lock"
    wait_until(lambda: lock.exists() and re.search(r"^step \d+/", child.output(), re.MULTILINE), child)
    second = start(attack.args, attack.out / "second.log")
    code, words = second.wait(600), second.output()
    assert code == 2 or child.poll() == 0, words
    assert code != 2 or "another process is using" in words, words
    child.signal(signal.SIGKILL)
    child.wait(600)
    assert "Traceback" not in child.output() + words
    (attack.out / "first.log").unlink()
    (attack.out / "second.log").unlink()


def unsupported(attack: Attack) -> None:
    """A file system that knows no locks and no fsync."""
    missing = attack.chance.choice([[fcntl.flock], [os.fsync], [fcntl.flock, os.fsync]])
    attack.life(ahead=0, must_say="has no ", before=partial(forget, missing))


def forget(calls: list[Callable]) -> None:
    files._notify_once.cache_clear()  # so that a warning of the parent process is printed again

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    for call in calls:
        setattr(fcntl if call is fcntl.flock else os, call.__name__, refuse)


def encoding(attack: Attack) -> None:
    """An output that cannot write what is printed."""
    attack.life(ahead=0, before=partial(narrow, attack.chance.choice(["ascii", "latin-1", "cp1252"])))


def narrow(encoding: str) -> None:
    sys.stdout.reconfigure(encoding=encoding)
    sys.stderr.reconfigure(encoding=encoding, errors="backslashreplace")  # as Python opens it


def hostile_reward(attack: Attack) -> None:
    """A reward that changes the state of torch and of the random generators: set back and reported."""
    if "reward.name" in attack.settings:
        return attack.kill(0)
    return attack.life(ahead=0, must_say="set back", before=partial(turn_hostile, attack.chance.randrange(4)))


def turn_hostile(kind: int) -> None:
    reward = small_runs.spread_reward

    def hostile(completion: str, ground_truth: str) -> dict[str, float]:
        random.seed(0)
        change = [
            partial(torch.set_grad_enabled, False),
            partial(torch.set_default_dtype, torch.float64),
            partial(torch.manual_seed, len(completion)),
            partial(torch.set_num_threads, 3),
        ][kind]
        change()
        return reward(completion, ground_truth)

    small_runs.spread_reward = hostile


def grading_processes(attack: Attack) -> None:
    """The server that grades is killed or stopped before one of its batches: a run of its own ends as in peace."""
    calm, folder = attack.calm.parent / "graded", attack.out / f"graded-{attack.lives}-{attack.chance.random()}"
    settings = {"steps": 4, "reward__name": "verify_only", "reward__workers": 1}
    action = attack.chance.choice([signal.SIGKILL, signal.SIGSTOP])
    hits = [None] * attack.chance.randrange(3) + [action]
    for run, before in ((calm, None), (folder, partial(hit_servers, hits))):
        if not run.exists():
            child = start(arguments(run.parent, run.name, **settings), attack.out / f"{run.name}.log", before)
            assert child.wait(600) == 0, child.output()
            assert "Traceback" not in child.output()
    assert rows(folder) == rows(calm)


def hit_servers(hits: list[signal.Signals | None]) -> None:
    begin = Verifier._started

    def begin_and_hit(self: Verifier) -> list[Connection]:
        connections = begin(self)
        action = hits.pop(0) if hits else None
        self.silence_s = 0.5 if action else 600
        if action:
            os.kill(self._server.pid, action)
        return connections

    Verifier._started = begin_and_hit


def edited_sweep(attack: Attack) -> None:
    """A sweep whose cell was edited refuses the folder of this run; one that was not takes it."""
    if newest(attack.run) == 0:
        return attack.kill(0)
    settings = dict(zip(attack.args[::2], attack.args[1::2], strict=True))
    cell = {name.removeprefix("--"): str(value) for name, value in settings.items()} | {"seed": "0"}
    for name in ("preset", "out", "name", "resume"):
        cell.pop(name, None)
    run = sweep.Run("cell", attack.run, cell)
    assert sweep.settle(run, "cpu", rename=False) == run
    edits = {"steps": str(STEPS + 1), "learner.lr": "0.1", "rollout.group_size": "6"}
    name, value = attack.chance.choice(list(edits.items()))
    with pytest.raises(UserError, match=re.escape(name)):
        sweep.settle(run._replace(settings=cell | {name: value}), "cpu", rename=False)
    return None


ODD = (concurrent, encoding, hostile_reward, grading_processes, edited_sweep, unsupported)


# ---- lives


def newest(run: Path) -> int:
    """The newest step that a run can go on from."""
    found = [path for path in (run / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d{6}", path.name)]
    return max((int(path.name[5:]) for path in found if (path / TRAINER).exists()), default=0)


def newest_path(run: Path) -> Path:
    return run / "checkpoints" / f"step_{newest(run):06d}"


class Attack:
    """One run under attack, beside one left in peace."""

    def __init__(self, out: Path, calm: Path, settings: dict, chance: random.Random):
        self.out, self.calm, self.run, self.chance, self.settings = out, calm, out / "run", chance, settings
        self.args = [*arguments(out, "run", steps=STEPS, checkpoint__every=1, **settings), "--resume", "auto"]
        self.counts, self.lives, self.gone = Counter(), 0, set()

    def life(self, ahead: float | None, must_say: str | None = None, before=None) -> None:
        """Starts the run and kills it (`ahead`: by how many steps it is ahead of its pace), or lets it end (None)."""
        self.lives += 1
        last, log = newest(self.run), self.out / f"{self.lives}.log"
        child = start(self.args, log, before)
        if ahead is not None:
            self._kill_some_time(child, last, ahead, patient=must_say is not None)
        code, said = child.wait(3600), child.output()
        assert "Traceback" not in said, f"life {self.lives}:\n{said[-4000:]}"
        assert code in ({0} if ahead is None else {-signal.SIGKILL, 0} | ({2} if must_say else set())), said[-4000:]
        if must_say is not None:
            assert must_say in said, f"life {self.lives} is silent about {must_say!r}:\n{said}"
        if code == 2:
            assert said.count("error: ") == 1, said
        resumed = re.search(r"after step (\d+)", said)
        if resumed and "is damaged" not in said:
            assert int(resumed[1]) == last, f"life {self.lives} lost step {last}:\n{said}"
        if missing := re.search(r"has no row of step ([\d, ]+)", said):
            self.gone |= {int(step) for step in missing[1].split(", ")}

    def _kill_some_time(self, child, before: int, ahead: float, patient: bool) -> None:
        """A life behind its pace gets to its first new checkpoint; any other ends at a random moment, most often early.

        So that there is something to kill, it is held back before the last steps. After a damage it is `patient`: it
        lives until it has said what it has to say.
        """
        longest = 600.0 if ahead < 0 or patient else self.chance.uniform(0, 1.5 if ahead < 2 else 0.15)
        deadline = time.monotonic() + longest
        while child.poll() is None and time.monotonic() < deadline:
            if newest(self.run) != before or (patient and re.search(r"^step \d+/", child.output(), re.MULTILINE)):
                time.sleep(self.chance.uniform(0, 0.1))
                break
            time.sleep(0.002)
        child.signal(signal.SIGKILL)

    def odd(self) -> None:
        if newest(self.run) > STEPS - 3:
            return self.kill(0)
        act = self.chance.choice(ODD)
        act(self)
        self.counts[act.__name__] += 1
        return None

    def damage(self) -> None:
        if newest(self.run) < 2:
            return self.kill(0)
        act, kept = self.chance.choice(DAMAGES), (self.run / "config.yaml").read_text()
        must_say = act(self.run, self.chance)
        self.life(ahead=0, must_say=must_say)
        (self.run / "config.yaml").write_text(kept)
        self.counts[act.__name__] += 1
        return None

    def kill(self, ahead: float) -> None:
        self.life(ahead)
        self.counts["kills"] += 1

    def end(self) -> None:
        self.life(ahead=None)
        expected = [row for row in rows(self.calm) if row["step"] not in self.gone]
        assert [row for row in rows(self.run) if row["step"] not in self.gone] == expected
        for step in range(1, STEPS + 1):
            assert read_completions(self.run, step) == read_completions(self.calm, step)
        same_run(self.calm, self.run, STEPS, files=False)
        assert not (self.out / "target").exists()


def attack(out: Path, kinds: dict[str, dict], kills: int, damages: int, seed: int, odd: int = 0) -> str:
    """Raises AssertionError at the first thing that is lost, silent or a traceback. Returns what happened."""
    begun, chance, total = time.monotonic(), random.Random(seed), Counter()
    blows = ["kill"] * kills + ["damage"] * damages + ["odd"] * odd
    chance.shuffle(blows)
    size = min(BLOWS, -(-len(blows) // len(kinds)))
    for number, first in enumerate(range(0, len(blows), size)):
        kind = list(kinds)[number % len(kinds)]
        calm = out / f"calm-{kind}"
        if not calm.exists():
            code = start(arguments(out, calm.name, steps=STEPS, **kinds[kind]), out / "calm.log").wait(3600)
            assert code == 0, (out / "calm.log").read_text()
        (out / str(number)).mkdir()
        under = Attack(out / str(number), calm, kinds[kind], chance)
        round_ = blows[first : first + size]
        for i, blow in enumerate(round_):
            ahead = newest(under.run) - (STEPS - 3) * i / len(round_)
            under.kill(ahead) if blow == "kill" else getattr(under, blow)()
        under.end()
        total += under.counts
        print(f"run {number} ({kind}): {dict(under.counts)}, rows damaged and named {sorted(under.gone)}", flush=True)
        shutil.rmtree(out / str(number))
    hit = {name: count for name, count in total.items() if name != "kills"}
    return (
        f"{total['kills']} kills and {sum(hit.values())} other blows {hit} over {', '.join(kinds)} runs: "
        f"0 lost, 0 silent, 0 tracebacks, all ends bit-equal; seed {seed}, {time.monotonic() - begun:.0f} s"
    )


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--kills", type=int, default=500)
    cli.add_argument("--damages", type=int, default=300)
    cli.add_argument("--odd", type=int, default=100)
    cli.add_argument("--seed", type=int, default=0)
    given = cli.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = reward_model(Path(folder) / "reward")
        hybrid = {"reward.name": "hybrid", "reward.hybrid.model": model, "reward.workers": 1}
        kinds = {"full": {}, "lora": LORA, "hybrid": hybrid}
        print(attack(Path(folder), kinds, given.kills, given.damages, given.seed, given.odd))


if __name__ == "__main__":
    main()
