"""Every documented command runs as it stands, in a copy of the repository, or is parsed, or has a reason."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import FENCE, PAGES, REPO, ids, prose

import eval as evaluation
from grpo.cli import parse_args

TYPED = {
    "echo '{": "",
    "python -m data list": "",
    "python -m data.products --each": "",
    "python -c 'import rewards.equivalence.server'": "",
    "python train.py --preset cpu --data mine.jsonl --check": "",
    "python -m grpo.plan": "",
    "python -m tools.watch runs/NAME": "",
    "python -m tools.sample runs/NAME": " --n 1 --max-new-tokens 8",
    "python -m tools.export merged": "",
    "python -m tools.select_examples runs/NAME": "",
    "python -m course.playground runs/NAME": "",
    "python eval.py --regrade": "",
    "python eval.py --compare evals": "",
}
"""Beginning of a command -> what is added so that it ends soon. Each runs once, behind the last lines of a run."""
WITHOUT_TORCH = (
    "echo '{",
    "python -m data list",
    "python -m data.products --each",
    "python -c 'import rewards.equivalence.server'",
)
NOT_TYPED = {
    "python train.py": "other options of a command that is typed; parsed",
    "python -m grpo.report": "the last lines of a run",
    "python eval.py": "a model of the hub, or other options of a command that is typed; parsed",
    "python -m verl.trainer.main_ppo": "verl's own trainer, which needs a GPU",
    "python minimal.py": "half a minute: tests/test_minimal.py",
    "python my_task.py": "a file of the page: tests/data/test_tasks.py",
    "python -m course.exercises": "half a minute: tests/course/test_exercises.py",
    "python -m tools.sweep": "many runs: tests/tools/test_sweep.py",
    "python -m tools.smollm2": "a wheel from the package index: tests/tools/test_smollm2.py",
    "python -m tools.export verl": "data from the network: tests/tools/test_export.py",
    "python -m tools.export hub": "merged with a card: tests/tools/test_export.py",
    "python -m tools.select_examples --data": "columns of one's own: tests/tools/test_select_examples.py",
    "python -m benchmarks.": "minutes: tests/test_speed_benchmarks.py",
    "python benchmarks/": "minutes, or a GPU: tests/test_speed_benchmarks.py",
    "python -m pytest": "the tests themselves",
    "python tests/": "the tests themselves",
    "pip ": "the network",
}
"""Beginning of a command -> the reason why it is not typed."""
AS_IN_MAKE_DEMO = "--name demo --steps 1 --rollout.prompts_per_step 4 --eval.limit 4"


def typed_lines(page: Path) -> list[str]:
    """The commands of a page without their comments, in the order of reading."""
    blocks = [block for language, block in FENCE.findall(page.read_text()) if language in ("bash", "sh")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines() + re.findall(r"`([^`\n]+)`", prose(page))
    commands = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return [line for line in commands if re.match(r"(\w+=\S+ )*(python|make|echo|source|pip) ", line)]


def beginning(line: str, table: dict[str, str]) -> str | None:
    """The longest key of the table with which the command begins, behind its environment variables."""
    command = re.sub(r"^(\w+=\S+ )+", "", line)
    return max((key for key in table if command.startswith(key)), key=len, default=None)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_is_typed_or_has_a_reason(page: Path):
    """Commands of train.py and eval.py that are not typed are parsed, values included."""
    for line in typed_lines(page):
        words = shlex.split(line)
        if words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=REPO, capture_output=True, text=True)
            assert done.returncode == 0, f"{page.name}: {line}\n{done.stderr}"
        elif line != "source .venv/bin/activate":
            assert beginning(line, TYPED | NOT_TYPED), f"{page.name}: {line}"
        arguments = words[words.index("python") + 2 :] if "python" in words else []
        if "train.py" in words and "--help" not in words and not {"MODEL", "PRESET", "mine.yaml"} & {*words}:
            parse_args(arguments, "cpu")
        if "eval.py" in words:
            evaluation.parse(arguments)


def test_every_command_that_is_typed_stands_on_a_page():
    lines = [line for page in PAGES for line in typed_lines(page)]
    assert TYPED.keys() <= {beginning(line, TYPED | NOT_TYPED) for line in lines}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a copy of the repository, whose .venv is the environment of this test."""
    copy = tmp_path / "repository"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPO, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (REPO / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, copy / name)
    (copy / ".venv").symlink_to(sys.prefix)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return copy


def typed(line: str) -> str:
    """The output of the command in a shell that has not activated the environment."""
    bare = [folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != Path(sys.executable).parent]
    environment = os.environ | {"PATH": os.pathsep.join(bare)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def called(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a Python command in this process, which has torch loaded already."""
    python, *words = shlex.split(line)
    assert python == "python" or Path(python).samefile(sys.executable)
    handler = signal.getsignal(signal.SIGINT)
    name, *arguments = words[words[0] == "-m" :]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    run = runpy.run_module if words[0] == "-m" else runpy.run_path
    with pytest.raises(SystemExit) as ended:
        run(name, run_name="__main__")
    signal.signal(signal.SIGINT, handler)
    assert not ended.value.code, line


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_commands_run_as_they_stand(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """After a short `make demo`: what its last lines say, then those of the pages.

    The demo, the first of its last lines and everything that needs no torch are typed, in an activated environment.
    """
    last = typed(f".venv/bin/python train.py --preset cpu {AS_IN_MAKE_DEMO}").splitlines()[-3:]
    look, evaluate, resume = (line.partition(" ")[2].strip() for line in last)
    assert [line.split()[0] for line in last] == ["look", "evaluate", "continue"]
    typed(look)
    called(f"{evaluate} --limit 4", monkeypatch)
    called(resume, monkeypatch)
    evals = sorted(Path().glob("evals/*/test-*"))
    missing = set(TYPED)
    places = {
        "runs/NAME": "runs/demo", "RUN_OR_CHECKPOINT": "runs/demo", "DIR": "out", "evals/MODEL/BENCH-HASH": evals[0],
        "evals/A/BENCH-HASH": evals[0], "evals/B/BENCH-HASH": evals[1],
    }  # fmt: skip
    for line in (line for page in PAGES for line in typed_lines(page)):
        if (key := beginning(line, TYPED)) in missing and beginning(line, NOT_TYPED | TYPED) == key:
            missing.remove(key)
            for name, place in places.items():
                line = line.replace(name, str(place))
            if key in WITHOUT_TORCH:
                typed(f"source .venv/bin/activate && {line}{TYPED[key]}")
            else:
                called(line + TYPED[key], monkeypatch)
