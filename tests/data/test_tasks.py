"""reasoning-gym's tasks by name: every task generates, and its scorer grades through our path."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from small_runs import REPO, arguments, same_run

import train
from data import rows, tasks
from rewards import make_reward

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="the extra `tasks` is not installed"
)
NO_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""The package names no answer (None) where many are right: there is nothing that could be graded 1."""
TOLERANT = {"coin_flip", "game_of_life_halting", "needle_haystack", "number_sorting", "pool_matrix", "quantum_lock"}
"""The scorer gives full marks to some answers with one changed digit or letter."""


def names() -> list[str]:
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS.keys() - tasks.EVALUATES - {"composite"})  # composite is made of other tasks


def changed(answer: str) -> list[str]:
    """The answer with one digit changed, or one letter where it has no digit."""
    places = [i for i, c in enumerate(answer) if c.isdigit()] or [i for i, c in enumerate(answer) if c.isalpha()]
    other = {i: str((int(answer[i]) + 1) % 10) if answer[i].isdigit() else "bc"[answer[i] == "b"] for i in places[:2]}
    return [answer[:i] + letter + answer[i + 1 :] for i, letter in other.items()] or [f"{answer}x1"]


def test_every_task_grades_its_own_answers_1_and_changed_ones_below():
    reward = make_reward("verify_only", verifier="answer_tag")
    refused, tolerated = set(), set()
    for name in names():
        for _, row in tasks.read(f"{tasks.PREFIX}{name}?size=2&seed=3"):
            known = {"score_answer": tasks.scorer(row["task"], row["item"])}
            grades = [
                reward(f"<answer>{answer}</answer>", row["answer"], **known).verify
                for answer in (row["answer"], *changed(row["answer"]))
            ]
            if grades[0] < 1:
                refused.add(name)
            elif max(grades[1:]) == 1:
                tolerated.add(name)
    assert refused <= NO_ANSWER
    assert tolerated <= TOLERANT
    assert len(names()) >= 90


def test_scorers_that_run_the_answer_are_known():
    """Every scorer that calls eval or parse_expr on `answer` belongs to a task that is refused."""
    from reasoning_gym.factory import DATASETS

    runs = {
        name
        for name, (kind, _) in DATASETS.items()
        if any(f"{call}(answer" in inspect.getsource(sys.modules[kind.__module__]) for call in ("eval", "parse_expr"))
    }
    assert runs == tasks.EVALUATES
    with pytest.raises(ValueError, match="runs what the model writes"):
        next(tasks.read("reasoning_gym:countdown"))


def test_options_splits_and_seeds():
    def questions(options: str) -> list[str]:
        return [row["question"] for _, row in rows.read(f"reasoning_gym:chain_sum?{options}")]

    train_set, test_set = questions("size=40&seed=1"), questions("size=40&seed=1&split=test")
    assert train_set == questions("size=40&seed=1")
    assert train_set != questions("size=40&seed=2")
    assert not set(train_set) & set(test_set)
    assert len(train_set) == 40
    assert all(
        question.count("+") + question.count("-") >= 9 for question in questions("size=3&min_terms=10&max_terms=10")
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reasoning_gym:no_such_task", "'no_such_task' not registered"),
        ("reasoning_gym:chain_sum?colour=red", "unexpected keyword argument 'colour'"),
        ("reasoning_gym:chain_sum?min_terms=0", "min_terms"),
        ("reasoning_gym:chain_sum?split=half", "split is 'half'; it must be train or test"),
        ("reasoning_gym:chain_sum?size", "bad query field: 'size'"),
    ],
)
def test_a_wrong_name_or_option_is_one_line(name, message):
    with pytest.raises(ValueError, match=message) as raised:
        list(rows.read(name))
    assert "\n" not in str(raised.value)


def test_without_the_package_one_line_says_so():
    code = (
        "import sys; sys.modules['reasoning_gym'] = None; from data import tasks; list(tasks.read('reasoning_gym:x'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("needs the package reasoning-gym: pip install 'reasoning-gym==0.1.25'")


def test_a_run_on_a_task_resumes_exactly(tmp_path):
    settings = {
        "data": "reasoning_gym:chain_sum?size=8&max_terms=2&max_digits=1",
        "eval.data": "reasoning_gym:chain_sum?size=4&max_terms=2&max_digits=1&split=test",
        "eval.every": 2, "eval.limit": 2, "reward.name": "multi_signal", "reward.verifier": "last_number",
        "checkpoint.every": 2, "rollout.max_prompt_tokens": 400,
    }  # fmt: skip
    settings = {name.replace(".", "__"): value for name, value in settings.items()}
    assert train.main(arguments(tmp_path, "four", **settings, steps=4)) == 0
    assert train.main(arguments(tmp_path, "both", **settings, steps=2)) == 0
    assert train.main(["--resume", str(tmp_path / "both"), "--steps", "4"]) == 0
    same_run(tmp_path / "four", tmp_path / "both", 4)


def test_the_task_of_docs_data_md_trains(tmp_path, monkeypatch):
    """The page's file, as it stands there: it writes its data, and a run uses its reward."""
    page = (REPO / "docs" / "data.md").read_text()
    source = page.partition("## A task of your own")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "my_task.py").write_text(textwrap.dedent(source))
    subprocess.run([sys.executable, "my_task.py"], cwd=tmp_path, check=True)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"data": str(tmp_path / "my_task.jsonl"), "reward__name": "my_task:reward", "steps": 1}
    assert train.main(arguments(tmp_path, "own", **own)) == 0
    assert (Path(tmp_path) / "own" / "summary.json").exists()


@pytest.mark.parametrize("item", [None, "first", -1, 1.5])
def test_a_row_without_the_number_of_an_item_is_of_no_task(item):
    """Somebody's own column may be called task."""
    row = {"question": "1+2=?", "task": "reasoning_gym:chain_sum"} | ({} if item is None else {"item": item})
    assert tasks.item_of(row) == {}
    assert tasks.item_of(row | {"item": "3"}) == tasks.item_of(row | {"item": 3}) != {}
