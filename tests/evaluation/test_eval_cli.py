"""eval.py from the command line, with the tiny model on real benchmark files."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import eval as cli
import train
from data import tiny_base
from grpo import hub
from grpo.engines.torch_engine import TorchEngine
from grpo.evaluation import results, scores, session
from grpo.evaluation.results import OUTPUTS
from grpo.run import files
from grpo.settings import parse

REPO = Path(cli.__file__).parent
SIX = ("math500", "aime24", "aime25", "amc23", "minerva_math", "olympiadbench")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A model of the built-in kind with random weights: its folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tiny_base.make_tokenizer()
    model = tiny_base.make_model(tokenizer, seed=0)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, capsys):
    """Calls eval.py and gives (exit code, what it printed, its error line)."""

    def call(*argv: object) -> tuple[int, str, str]:
        code = cli.main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def folder_of(out: Path, bench: str) -> Path:
    (found,) = out.glob(f"*/{bench}-*")
    return found


def write_config(folder, settings):
    (folder / "config.yaml").write_text(yaml.safe_dump(parse(settings).model_dump(mode="json")))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / OUTPUTS).read_text().split("\n") if line]


def test_all_six_on_the_real_files(run, tiny, tmp_path, data_dir):
    ask = (
        "--bench",
        "all",
        "--model",
        tiny,
        "--limit",
        2,
        "--max-new-tokens",
        6,
        "--data-dir",
        data_dir,
        "--out",
        tmp_path,
    )
    code, out, _ = run(*ask)
    assert code == 0
    assert "prompt qwen25-math-cot" in out
    for name in SIX:
        folder = folder_of(tmp_path, name)
        settings, scores = (json.loads((folder / file).read_text()) for file in ("settings.json", "scores.json"))
        samples = 8 if name in ("aime24", "aime25", "amc23") else 1  # the paper's mode, by default
        assert (settings["samples"], settings["temperature"]) == (samples, 0.6 if samples == 8 else 0.0)
        assert settings["versions"]["torch"]
        rows = rows_of(folder)
        assert [(row["problem"], row["sample"]) for row in rows] == [(p, s) for p in (0, 1) for s in range(samples)]
        assert all(row["tokens"] <= 6 and row["finish_reason"] in ("stop", "length") for row in rows)
        assert r"put your final answer within \boxed{}." in rows[0]["prompt"]
        assert scores["problems"] == 2
        assert 0 <= scores["strict"]["low"] <= scores["strict"]["mean"] <= scores["strict"]["high"] <= 1
        assert ("pass" in scores["strict"]) == (samples == 8)
    assert "smoke figure" in out
    assert "The paper's own figures, not ours" in out
    assert "average of its six 17.6 base, 35.7 after pi1" in out

    # Asked again, everything is there: no model is loaded, nothing changes.
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*/outputs.jsonl")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "make_engine", lambda *_: pytest.fail("a finished evaluation loaded the model"))
        assert run(*ask)[0] == 0
    assert {path: path.read_bytes() for path in before} == before

    # Regrading finds the same grades; a grade that was tampered with is put right.
    target = folder_of(tmp_path, "math500")
    scores = json.loads((target / "scores.json").read_text())
    (tmp_path / "model" / "begun").mkdir(parents=True)
    (tmp_path / "model" / "begun" / OUTPUTS).touch()  # nothing finished yet: it is left alone
    code, out, _ = run("--regrade", tmp_path)
    assert code == 0
    assert out.count("0 rows changed") == 6
    assert scores["graded_with"]["math-verify"]
    assert json.loads((target / "scores.json").read_text()) == scores
    rows = rows_of(target)
    rows[0]["strict"] = True
    (target / OUTPUTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "1 rows changed" in run("--regrade", target)[1]
    assert not rows_of(target)[0]["strict"]


def test_other_settings_other_folder(run, tiny, tmp_path):
    copy = tmp_path / "tiny"
    shutil.copytree(tiny, copy)
    ask = ("--bench", "arithmetic-test", "--model", copy, "--limit", 2, "--max-new-tokens", 4)
    for change in ((), ("--seed", 1), ("--prompt", "multi-signal")):
        assert run(*ask, *change, "--out", tmp_path / "evals")[0] == 0
    # The same path with other weights is another model.
    tiny_base.make_model(tiny_base.make_tokenizer(), seed=1).save_pretrained(copy)
    assert run(*ask, "--out", tmp_path / "evals")[0] == 0
    assert len(list((tmp_path / "evals").glob("*/*"))) == 4


def test_stopped_and_continued_equals_uninterrupted(run, tiny, tmp_path, monkeypatch):
    """Stopped after the first save; the second call goes on, and the rows are those of a run that was never cut."""
    monkeypatch.setattr(TorchEngine, "costs", replace(TorchEngine.costs, batch=3))
    ask = ("--bench", "arithmetic-test", "--model", tiny, "--temperature", 1, "--engine", "torch", "--limit", 6)
    ask += ("--max-new-tokens", 8, "--out")  # two saves of 3

    append = files.append

    def save_and_stop(path, content):
        append(path, content)
        if path.name == OUTPUTS:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "append", save_and_stop)
        code, _, error = run(*ask, tmp_path / "cut")
    assert (code, error.splitlines()[-1]) == (130, "ended by SIGINT")
    folder = folder_of(tmp_path / "cut", "arithmetic-test")
    assert len(rows_of(folder)) == 3
    with (folder / OUTPUTS).open("a") as file:
        file.write('{"problem": 5, "sample": 0, "prom')  # and the last line was cut in two
    assert run(*ask, tmp_path / "cut")[0] == 0
    assert run(*ask, tmp_path / "whole")[0] == 0
    whole = folder_of(tmp_path / "whole", "arithmetic-test")
    assert whole.name == folder.name
    assert (folder / OUTPUTS).read_bytes() == (whole / OUTPUTS).read_bytes()


def test_two_on_one_folder(run, tiny, tmp_path):
    """The second says so and leaves the rows alone; afterwards the same command is done."""
    ask = ("--bench", "arithmetic-test", "--model", tiny, "--limit", 2, "--max-new-tokens", 4, "--out", tmp_path)
    assert run(*ask)[0] == 0
    folder = folder_of(tmp_path, "arithmetic-test")
    before = (folder / OUTPUTS).read_bytes()
    with files.lock(folder):
        for argv in (ask, ("--regrade", tmp_path)):
            code, _, error = run(*argv)
            assert code == 2
            assert f"another process is using {folder}" in error
    assert (folder / OUTPUTS).read_bytes() == before
    assert run(*ask)[0] == 0


def test_weights_that_are_not_finite_are_named(run, tiny, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    model = AutoModelForCausalLM.from_pretrained(broken)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(broken)
    code, _, error = run("--bench", "arithmetic-test", "--model", broken, "--limit", 2, "--out", tmp_path / "evals")
    assert code == 2
    assert "the weights model.layers.1.mlp.up_proj.weight hold NaN" in error
    assert not list(tmp_path.glob("evals/*/*/scores.json"))


def test_adapter_merged_model_and_run(run, tiny, tmp_path):
    """A LoRA adapter scores exactly as the merged model; --run puts base and checkpoints in one table and one plot."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    run_folder = tmp_path / "runs" / "demo"
    for step in (4, 12):
        model.save_pretrained(run_folder / "checkpoints" / f"step_{step:06d}")
    write_config(run_folder, {"model": str(tiny), "prompt": "multi-signal"})
    merged = tmp_path / "merged"
    model.merge_and_unload().save_pretrained(merged)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny / file).exists():
            shutil.copy(tiny / file, merged)

    ask = ("--bench", "arithmetic-test", "--limit", 4, "--max-new-tokens", 12, "--out", tmp_path / "evals")
    code, out, _ = run(*ask, "--run", run_folder)
    assert code == 0
    assert out.count("prompt multi-signal  ->") == 3
    heading, header, *lines = out[out.index("benchmark ") :].splitlines()
    assert heading == "benchmark arithmetic-test*, prompt multi-signal, sampling 4 greedy"
    assert [header.split()[0], *(line[:8].strip() for line in lines[:3])] == ["model", "base", "step 4", "step 12"]
    assert max(map(len, [heading, header, *lines[:3]])) <= 80
    # All score 0, so last is the last step and best the first: earliest on a tie. The base is neither.
    assert "last: step 12" in out
    assert "best: step 4" in out
    assert "earliest on a tie" in out
    plot = tmp_path / "evals" / "demo--arithmetic-test.png"
    assert plot.read_bytes().startswith(b"\x89PNG")

    checkpoint = run_folder / "checkpoints" / "step_000012"
    assert run(*ask, "--model", checkpoint)[0] == 0  # brings the run's prompt, so it is the evaluation of --run
    assert len(list((tmp_path / "evals" / "demo--step_000012").iterdir())) == 1
    assert run(*ask, "--model", merged, "--prompt", "multi-signal")[0] == 0
    texts = {
        name: [row["completion"] for row in rows_of(next((tmp_path / "evals" / name).iterdir()))]
        for name in ("merged", "demo--step_000012", "demo--base")
    }
    assert texts["merged"] == texts["demo--step_000012"] != texts["demo--base"]

    # The two sides of a comparison: same problems, paired.
    sides = [next((tmp_path / "evals" / name).iterdir()) for name in ("demo--base", "demo--step_000012")]
    rows = rows_of(sides[1])
    rows[2]["strict"] = True
    (sides[1] / OUTPUTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run("--compare", *sides)
    assert code == 0
    # 0 and 1 of 4. Wilson: [0, 0.4899] and [0.0456, 0.6994]; 0.25 - sqrt(0.2044^2 + 0.4899^2), 0.25 + 0.4494
    assert "strict    B - A = +25.0 points [-28.1, +69.9] (95%, paired: Newcombe's score interval)" in out
    assert "gained 1: rows 2" in out


def test_two_models_of_one_folder_name_are_two_rows_and_have_no_common_average(run, tiny, tmp_path):
    """As .../run1/checkpoint-500 and .../run2/checkpoint-500. Retrained in place, the path is not enough either."""
    for place, seed in (("a", 0), ("b", 1)):
        shutil.copytree(tiny, tmp_path / place / "m")
        tiny_base.make_model(tiny_base.make_tokenizer(), seed=seed).save_pretrained(tmp_path / place / "m")
    models = [str(tmp_path / place / "m") for place in "ab"]
    ask = ("--bench", "arithmetic", "--limit", 2, "--max-new-tokens", 2, "--out", tmp_path / "evals")
    code, out, _ = run(*ask, "--model", ",".join(models))
    assert code == 0
    table = out[out.index("benchmark ") :]
    for model in models:
        assert table.count(f"{model} ") == 2  # a row of each benchmark
        assert f"{model}, prompt plain, average of 2:" in table
    assert "average of 4" not in run("--regrade", tmp_path / "evals")[1]

    tiny_base.make_model(tiny_base.make_tokenizer(), seed=2).save_pretrained(tmp_path / "a" / "m")
    assert run(*ask, "--model", models[0])[0] == 0
    averages = [line for line in run("--regrade", tmp_path / "evals")[1].splitlines() if "average of" in line]
    assert len({line.partition(", prompt")[0] for line in averages}) == 3
    assert all("average of 2" in line for line in averages)


def test_one_benchmark_sampled_in_two_ways_is_no_average(run, tiny, tmp_path):
    ask = ("--bench", "arithmetic-test", "--model", tiny, "--limit", 2, "--max-new-tokens", 2, "--out", tmp_path)
    assert run(*ask)[0] == run(*ask, "--seed", 1)[0] == 0
    assert "average" not in run("--regrade", tmp_path)[1]


def test_last_best_and_plot_are_of_one_prompt(run, own_run, tmp_path, monkeypatch):
    panels = []
    monkeypatch.setattr("matplotlib.axes.Axes.set", lambda self, **texts: panels.append(texts["title"]))
    code, out, _ = run("--run", own_run, "--prompts", "plain,multi-signal", "--out", tmp_path)
    assert code == 0
    for kind in ("last", "best"):
        assert f"{kind} with prompt plain: step 2, strict" in out
        assert f"{kind} with prompt multi-signal: step 2, strict" in out
    assert panels == ["held, plain", "held, multi-signal"]


def test_grades_of_another_grader_are_made_again_and_never_compared(run, tiny, tmp_path, monkeypatch):
    """As after an upgrade of sympy, or an edit of rewards/equivalence/."""
    ask = ("--bench", "arithmetic-test", "--model", tiny, "--limit", 2, "--max-new-tokens", 2, "--out", tmp_path)
    assert run(*ask)[0] == run(*ask, "--seed", 1)[0] == 0
    a, b = sorted(tmp_path.glob("*/arithmetic-test-*"), key=lambda folder: (folder / OUTPUTS).stat().st_mtime)
    graded = [json.loads((a / "scores.json").read_text())["graded_with"], *(row["graded_with"] for row in rows_of(a))]
    assert graded == [scores.grader()] * 3
    old = rows_of(a)
    (a / OUTPUTS).write_text(files.lines([row | {"strict": True, "outcome": "correct"} for row in old]))
    for module in (scores, results):
        monkeypatch.setattr(module, "grader", lambda: {"sympy": "9.9", "rules": "edited"})
    assert run(*ask)[0] == 0
    assert rows_of(a) == [row | {"graded_with": {"sympy": "9.9", "rules": "edited"}} for row in old]
    (a / OUTPUTS).write_text(files.lines(old[:1]))  # unfinished: continued with the other grader
    assert run(*ask)[0] == 0
    assert rows_of(a) == [row | {"graded_with": {"sympy": "9.9", "rules": "edited"}} for row in old]
    code, _, error = run("--compare", a, b)
    assert code == 2
    assert "were not graded by the same grader; run --regrade on both" in error
    assert "0 rows changed" in run("--regrade", b)[1]
    assert run("--compare", a, b)[0] == 0

    unnamed = [{name: value for name, value in row.items() if name != "graded_with"} for row in old]
    (a / OUTPUTS).write_text(files.lines(unnamed))  # of an earlier version
    assert "rows do not name their grader; run --regrade on it" in run("--compare", a, b)[2]


def test_a_task_is_graded_by_its_own_scorer(run, tiny, tmp_path):
    """As the run's held-out accuracy is: the scorer takes other texts than that of the reference."""
    pytest.importorskip("reasoning_gym")
    task = "reasoning_gym:number_sorting?size=2&seed=3"
    ask = ("--bench", task, "--model", tiny, "--max-new-tokens", 2, "--out", tmp_path)
    assert run(*ask)[0] == 0
    (folder,) = (path.parent for path in tmp_path.glob("*/*/settings.json"))
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["scorer"]["reasoning-gym"]
    rows = rows_of(folder)
    assert [(row["task"], row["item"]) for row in rows] == [(task, 0), (task, 1)]
    respelled = rows[0]["ground_truth"].replace("'", '"').replace(" ", "")
    (folder / OUTPUTS).write_text(files.lines(row | {"completion": rf"\boxed{{{respelled}}}"} for row in rows))
    assert run("--regrade", folder)[0] == 0
    assert [(row["strict"], row["flexible"]) for row in rows_of(folder)] == [(True, True), (False, False)]

    settings["scorer"]["reasoning-gym"] = "0.0.1"
    (folder / "settings.json").write_text(json.dumps(settings))
    assert "was graded by reasoning-gym 0.0.1; install that version" in run("--regrade", folder)[2]

    earlier = tmp_path / "earlier" / folder.name  # of a version that graded every row by the verifier
    shutil.copytree(folder, earlier)
    del settings["scorer"]
    (earlier / "settings.json").write_text(json.dumps(settings))
    for argv in (("--regrade", earlier), ("--compare", earlier, folder), ("--compare", folder, earlier)):
        code, _, error = run(*argv)
        assert code == 2
        assert error == f"error: {earlier} is a task that was not graded by its own scorer; sample it again\n"


def test_more_than_ten_flips_are_counted_and_not_listed(run, tiny, tmp_path):
    ask = ("--bench", "arithmetic-test", "--model", tiny, "--limit", 14, "--max-new-tokens", 2, "--out", tmp_path)
    assert run(*ask)[0] == run(*ask, "--seed", 1)[0] == 0
    a, b = tmp_path.glob("*/arithmetic-test-*")
    rows = [row | {"strict": row["problem"] < 12} for row in rows_of(b)]
    (b / OUTPUTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, _ = run("--compare", a, b)
    assert "gained 12: rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more" in out


@pytest.fixture(scope="module")
def own_run(tmp_path_factory, tiny) -> Path:
    """A run of two steps that answers by <answer> tags and has a held-out set with columns of its own."""
    place = tmp_path_factory.mktemp("own")
    rows = [{"text": f"{i}+1=?", "sum": str(i + 1)} for i in range(3)]
    (place / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(tiny, place / "tiny")
    settings = {
        "model": "tiny", "data": str(REPO / "data" / "arithmetic" / "one_r128.parquet"), "steps": 2, "out": "runs",
        "name": "own", "eval.data": "held.jsonl", "eval.columns": "text,sum", "eval.test": "none",
        "reward.verifier": "answer_tag", "rollout.max_new_tokens": 7, "checkpoint.every": 2,
        "rollout.prompts_per_step": 2, "rollout.group_size": 2, "policy.lora_rank": 0,
    }  # fmt: skip
    with contextlib.chdir(place):
        assert train.main(["--preset", "cpu", *(word for k, v in settings.items() for word in (f"--{k}", str(v)))]) == 0
    return place / "runs" / "own"


def test_a_run_alone_is_evaluated_on_its_own_sets_as_it_was_graded(run, own_run, tmp_path, monkeypatch):
    """From another folder: base, data and prompt were named from the folder in which the run started."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("--run", own_run, "--out", tmp_path / "evals")
    assert code == 0
    for path in tmp_path.glob("evals/*/*/settings.json"):
        settings = json.loads(path.read_text())
        assert (settings["bench"], settings["problems"], settings["max_new_tokens"]) == ("held", 3, 7)
        assert (settings["answer_from"], settings["prompt"]) == ("answer_tag", "plain")
    assert "step 2" in out
    folder = next(tmp_path.glob("evals/own--base/held-*"))
    rows = [row | {"completion": f"<answer>{row['ground_truth']}</answer>"} for row in rows_of(folder)]
    (folder / OUTPUTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("--regrade", folder)[0] == 0
    assert all(row["strict"] for row in rows_of(folder))


def test_validation_and_test_files_of_one_name_are_two_benchmarks(run, tiny, tmp_path):
    """As a/validation.jsonl and b/validation.jsonl: the run trains, so it can be evaluated."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copytree(tiny, tmp_path / "run" / "checkpoints" / "step_000001")
    for place, answer in (("a", "2"), ("b", "3")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "held.jsonl").write_text(json.dumps({"question": "1+1=?", "answer": answer}) + "\n")
    sets = {"eval.data": str(tmp_path / "a" / "held.jsonl"), "eval.test": str(tmp_path / "b" / "held.jsonl")}
    write_config(tmp_path / "run", {"model": str(tiny), "prompt": "plain", "rollout.max_new_tokens": 2} | sets)
    code, out, error = run("--run", tmp_path / "run", "--out", tmp_path / "evals")
    assert code == 0, error
    assert len(list((tmp_path / "evals" / "run--base").iterdir())) == 2
    assert "benchmark held-test" in out


def test_columns_and_verifier_are_options_too(run, tiny, own_run, tmp_path):
    held = own_run.parents[1] / "held.jsonl"
    ask = ("--bench", held, "--model", tiny, "--max-new-tokens", 2, "--out", tmp_path, "--verifier", "last_number")
    assert "no prompt" in run(*ask)[2]
    assert run(*ask, "--columns", "text,sum")[0] == 0
    settings = json.loads((folder_of(tmp_path, "held") / "settings.json").read_text())
    assert settings["answer_from"] == "last_number"


def test_a_run_without_held_out_sets_asks_for_a_benchmark(run, tiny, tmp_path):
    (tmp_path / "run" / "checkpoints" / "step_000001").mkdir(parents=True)
    write_config(tmp_path / "run", {"model": str(tiny), "prompt": "plain"})
    code, _, error = run("--run", tmp_path / "run", "--out", tmp_path / "evals")
    assert code == 2
    assert "has no held-out sets (eval.data, eval.test); name a benchmark: --bench math500" in error


def test_two_days_of_a_dated_template_never_mix_and_equal_prompts_are_reported(run, tiny, tmp_path):
    dated = tmp_path / "dated"
    shutil.copytree(tiny, dated)
    template = (tiny / "chat_template.jinja").read_text()
    (dated / "chat_template.jinja").write_text("{{ strftime_now('%d') }} " + template)
    ask = ("--bench", "arithmetic-test", "--model", dated, "--limit", 2, "--max-new-tokens", 2, "--out", tmp_path / "e")
    for day in ("2026-11-29", "2026-11-30", "2026-11-29"):
        code, _, error = run(*ask, "--prompts", "plain", "--template-date", day)
        assert code == 0
        assert all("proved" in line for line in error.splitlines())  # nothing else is reported
    assert len(list((tmp_path / "e" / "dated").iterdir())) == 2
    (tmp_path / "none.txt").write_text("")
    code, _, error = run(*ask, "--prompts", f"plain,{tmp_path / 'none.txt'}")
    assert code == 0
    assert "dated: plain and" in error
    assert "are the same prompts" in error
    assert "template_args has level" in run(*ask, "--template-args", "level=3")[2]


BAD = {
    "unknown benchmark": (["--bench", "math501", "--model", "TINY"], "'math501' is no benchmark; there are math500"),
    "missing file": (["--bench", "nowhere.jsonl", "--model", "TINY"], "nowhere.jsonl"),
    "corrupt file": (["--bench", "BROKEN", "--model", "TINY"], "broken.parquet"),
    "no answer": (
        ["--bench", "NO_ANSWER", "--model", "TINY"],
        "rows.jsonl: 1 of 2 rows cannot be used (line 2: no ground truth",
    ),
    "no model": (["--bench", "aime24", "--model", "./nowhere"], "there is no folder ./nowhere"),
    "no tokenizer": (["--bench", "arithmetic", "--model", "NO_TOKENIZER"], "tokenizer"),
    "context": (
        ["--bench", "arithmetic", "--model", "TINY", "--max-new-tokens", "5000", "--limit", "1"],
        "context of 4096; use --max-new",
    ),
    "no room at all": (["--bench", "LONG", "--model", "TINY"], "context of 4096; use another model"),
    "copies": (
        ["--bench", "arithmetic", "--model", "TINY", "--samples", "4", "--temperature", "0"],
        "would be 4 copies",
    ),
    "negative": (
        ["--bench", "arithmetic", "--model", "TINY", "--limit", "0"],
        "--limit is '0'; it must be greater than or equal to 1",
    ),
    "nan": (["--bench", "arithmetic", "--temperature", "nan"], "--temperature is 'nan'; it must be a finite number"),
    "hot": (
        ["--bench", "arithmetic", "--temperature", "11"],
        "--temperature is '11'; it must be less than or equal to 10",
    ),
    "no number": (["--bench", "arithmetic", "--limit", "ten"], "--limit is 'ten'; it must be a valid integer"),
    "unknown option": (["--bench", "arithmetic", "--sample", "4"], "unknown option --sample; did you mean --samples?"),
    "two of one": (["--model", "A", "--run", "B"], "not allowed with argument"),
    "nothing named": (["--model", "TINY"], "which benchmark? For example --bench math500"),
    "twice": (["--bench", "math500,all"], "math500 is named twice"),
    "steering": (["--bench", "a\x1b[31m.jsonl", "--model", "TINY"], "a\\x1b[31m.jsonl"),
    "audit": (["--bench", "math500", "--audit-contamination", "--samples", "2"], "is greedy and has no prompt"),
    "no run": (["--bench", "arithmetic", "--run", "TINY"], "is not a run: it has no config.yaml"),
    "no evaluation": (["--regrade", "TINY"], "is no evaluation"),
    "prompt": (["--bench", "arithmetic", "--model", "TINY", "--prompt", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, run, tiny, tmp_path):
    broken, no_answer, bare = tmp_path / "broken.parquet", tmp_path / "rows.jsonl", tmp_path / "bare"
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"problem": "1+" * 3000 + "1", "answer": "3001"}))
    broken.write_bytes(b"PAR1 not really")
    rows = [{"problem": "1+1", "answer": "2"}, {"problem": "2+2"}]
    no_answer.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(tiny, bare, ignore=shutil.ignore_patterns("tokenizer*", "*.jinja"))
    places = {"TINY": tiny, "BROKEN": broken, "NO_ANSWER": no_answer, "NO_TOKENIZER": bare, "LONG": long}
    argv, message = BAD[case]
    code, _, error = run(*(places.get(arg, arg) for arg in argv), "--out", tmp_path / "evals")
    assert code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("evals/*/*/outputs.jsonl"))


def test_a_changed_local_copy_is_refused(run, tiny, tmp_path, data_dir):
    copy = tmp_path / "eval" / "aime25"
    copy.mkdir(parents=True)
    text = (data_dir / "eval" / "aime25" / "test.jsonl").read_text()
    (copy / "test.jsonl").write_text(text.replace('"70"', '"71"', 1))
    code, _, error = run("--bench", "aime25", "--model", tiny, "--data-dir", tmp_path, "--out", tmp_path / "evals")
    assert code == 2
    assert "is damaged or another version" in error


def test_help_and_mistakes_need_no_torch():
    """Each is answered although `import torch` would fail; --data_dir is --data-dir."""
    script = """
import contextlib, sys
sys.modules["torch"] = None
import eval
assert eval.main(["--list"]) == 0
assert eval.main(["--bench", "math50"]) == eval.main(["--bench", "math500", "--temperature", "nan"]) == 2
assert eval.parse(["--bench", "math500", "--data_dir", "here"]).data_dir == "here"
with contextlib.suppress(SystemExit):
    eval.main(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 2
    assert "--audit-contamination" in done.stdout


def test_without_a_model_it_is_the_papers_and_without_a_network_one_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY", "GRPO_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "go_offline", lambda: None)  # it would hold for the tests that follow
    code, out, error = run("--bench", "math500")
    assert "Qwen/Qwen2.5-Math-1.5B, the paper's base model" in out
    assert (code, error.count("\n")) == (2, 1)
    assert train.main(["--preset", "l4", "--rollout.engine", "torch"]) == 2
    for text in (error, capsys.readouterr().err):
        [line] = [line for line in text.splitlines() if "not on this machine" in line]
        assert "hf download Qwen/Qwen2.5-Math-1.5B && python -m data fetch" in line
        assert "math500" in line


def test_an_output_that_takes_no_more_leaves_no_traceback():
    command = [sys.executable, "eval.py", "--list"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=REPO, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == "further output is lost: No space left on device\n"


def test_base_by_prompt(run, tiny, tmp_path):
    """One line a prompt in one table, and what is drawn from a seed is another set under another seed."""
    ask = ("--bench", "fresh_arithmetic", "--model", tiny, "--limit", 3, "--max-new-tokens", 4, "--out", tmp_path)
    code, out, _ = run(*ask, "--prompts", "plain,multi-signal")
    assert code == 0
    heading, header, *lines = out[out.index("model tiny") :].splitlines()
    assert heading == "model tiny, benchmark fresh_arithmetic*, sampling 3 greedy"
    assert [line.split()[0] for line in (header, *lines[:2])] == ["prompt", "plain", "multi-signal"]
    assert "0.0 [0.0, 56.1]" in out  # Wilson, 0 of 3: z^2 / (3 + z^2) = 3.84 / 6.84
    run(*ask, "--prompts", "plain", "--seed", 1)
    digests = {json.loads(path.read_text())["data_sha256"] for path in tmp_path.glob("*/*/settings.json")}
    assert len(digests) == 2


def test_list(run):
    code, out, _ = run("--list")
    assert code == 0
    for name, size in zip(SIX, (500, 30, 30, 40, 272, 675), strict=True):
        assert any(line.split()[:2] == [name, str(size)] for line in out.splitlines())
