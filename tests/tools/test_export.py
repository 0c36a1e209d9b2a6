"""What is exported: the model card of a real run; for verl, read by verl's own code (`make test-peers`)."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from numbers import Number
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from report_runs import EVIL
from small_runs import arguments

import train
from grpo.cli import parse_args
from grpo.errors import UserError
from grpo.policy import load_policy
from grpo.run.files import read_rows, write_config
from grpo.settings import build, changed, flat, preset_names
from rewards import make_reward
from tools.export import hub
from tools.export import verl as export
from tools.export.__main__ import main

REPO = Path(__file__).resolve().parents[2]
ARITHMETIC = str(REPO / "data/arithmetic/one_r128.parquet")
RIGHT = "<think>7+6=13</think>\\boxed{1443}<reflection>correct</reflection>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = build(
        "h100", {"data": ARITHMETIC, "model": str(REPO / "data/tiny-base"), "learner.sampler_correction": "token_mask"}
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    assert main(["verl", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def test_every_setting_is_carried_over_or_named(folder: Path):
    """A setting that the template names and that does not exist any more is an error of the template."""
    template = (export.HERE / "verl.j2").read_text()
    assert not [name for name in flat(build("h100", {})) if not re.search(rf"\b{name}\b", template)]
    script = (folder / "run.sh").read_text()
    assert "#   learner.optimizer adamw\n" in script
    assert " actor_rollout_ref.rollout.n=32 \\\n" in script
    assert subprocess.run(["bash", "-n", str(folder / "run.sh")], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "h100", "--gpus", "7"], "do not divide"),
        (["--preset", "tinyllama-hybrid"], "reward.name hybrid is not exported"),
        (["TASK"], "reasoning_gym:gcd is graded by the task's own scorer"),
        (["HALF"], "policy.lora_alpha is 0.5, but verl takes whole numbers"),
        ([], "one of the arguments"),
        (["no/such/run"], "no/such/run"),
    ],
)
def test_what_cannot_be_exported_is_one_line(arguments: list[str], words: str, tmp_path: Path, capsys):
    for name, setting in (("TASK", {"data": "reasoning_gym:gcd"}), ("HALF", {"policy.lora_alpha": 0.5})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(build("cpu", setting).model_dump()))
    places = {name: str(tmp_path / name) for name in ("TASK", "HALF")}
    arguments = [places.get(word, word) for word in arguments]
    assert main(["verl", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learner.mask_truncated", True),
        ("rollout.resample_flat_groups", 2),
        ("policy.quant", "nf4"),
        ("learner.optimizer", "adamw_8bit"),
    ],
)
def test_a_setting_that_verl_lacks_is_refused(setting: str, value: object):
    config = build("h100", {"policy.lora_rank": 8})
    export.check(config, 8, 1)
    with pytest.raises(UserError, match=f"{setting}: verl has no counterpart"):
        export.check(changed(config, {setting: value}), 8, 1)


def test_a_file_with_items_of_a_task_is_refused_as_the_task_is(tmp_path: Path, capsys):
    """As tools.select_examples writes it from a run on a task: training grades its rows by the task's scorer."""
    row = {"question": "gcd of 4 and 6?", "answer": "2", "task": "reasoning_gym:gcd", "item": 0}
    (tmp_path / "chosen.jsonl").write_text(json.dumps(row) + "\n")
    settings = {"data": str(tmp_path / "chosen.jsonl"), "model": str(REPO / "data/tiny-base"), "prompt": "plain"}
    (tmp_path / "run").mkdir()
    write_config(tmp_path / "run", build("h100", settings))
    assert main(["verl", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    assert "chosen.jsonl is graded by the task's own scorer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_s_data_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"data": "mine.parquet", "model": str(REPO / "data/tiny-base"), "prompt": "plain"}
    (tmp_path / "here" / "runs" / "a").mkdir(parents=True)
    shutil.copy(ARITHMETIC, tmp_path / "here" / "mine.parquet")
    write_config(tmp_path / "here" / "runs" / "a", build("h100", settings))
    monkeypatch.chdir(tmp_path)
    assert main(["verl", "here/runs/a", "--out", "out"]) == 0


def overrides(script: str) -> list[str]:
    command = script.partition("main_ppo")[2].replace("\\\n", "")  # shlex does not join lines as a shell does
    return shlex.split(command)[:-1]  # the last is "$@"


EXPORTED = [name for name in preset_names() if build(name, {}).reward.name != "hybrid"]


@pytest.mark.parametrize("preset", EXPORTED)
def test_a_micro_batch_is_a_number_that_holds_the_longest_sequence(preset: str):
    """In verl a longer sequence is an error, and the training set's score is not shown as a validation figure."""
    config = build(preset, {})
    written = dict(word.split("=", 1) for word in overrides(export.script(config, Path("out"), 8, 1)))
    assert int(written["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"]) >= config.rollout.longest_sequence
    assert written["trainer.test_freq"] == "-1"
    assert not {"auto", "none", "None", ""} & set(written.values())


@pytest.mark.peers
@pytest.mark.parametrize("preset", EXPORTED)
def test_verl_takes_every_override(preset: str):
    """verl's composed settings in strict mode: a key that it does not have is an error. Values are of its kinds."""
    import verl.trainer.config
    from omegaconf import ListConfig, OmegaConf

    config = OmegaConf.load(Path(verl.trainer.config.__file__).parent / "_generated_ppo_trainer.yaml")
    OmegaConf.set_struct(config, True)
    lines = overrides(export.script(build(preset, {}), Path("/out"), 8, 1))
    values = OmegaConf.from_dotlist(lines)
    for key in (line.partition("=")[0] for line in lines):
        default, value = OmegaConf.select(config, key), OmegaConf.select(values, key)
        OmegaConf.update(config, key, value)
        assert value is not None, key
        for kind in (bool, Number, str, ListConfig):
            assert default is None or isinstance(value, kind) == isinstance(default, kind), key
    if preset == "h100":
        assert config.actor_rollout_ref.actor.ppo_mini_batch_size == 64  # 128 problems in 2 minibatches
        assert config.actor_rollout_ref.rollout.n == 32


@pytest.mark.peers
def test_verl_reads_the_rows_and_its_loader_scores_like_ours(folder: Path):
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.dataset.rl_dataset import RLHFDataset

    data = OmegaConf.create({"max_prompt_length": 1024, "truncation": "error", "filter_overlong_prompts": False})
    tokenizer = AutoTokenizer.from_pretrained(REPO / "data/tiny-base")
    rows = RLHFDataset(data_files=str(folder / "train.parquet"), tokenizer=tokenizer, config=data)
    assert len(rows) == 128
    assert rows[0]["reward_model"]["ground_truth"] == "1443"
    function = {"path": str(folder / "reward.py"), "name": "compute_score"}
    score = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))
    ours = make_reward("multi_signal")
    for text in (RIGHT, RIGHT.replace("1443", "1444"), "nothing"):
        found = score(data_source="x", solution_str=text, ground_truth="1443", extra_info={})
        assert found["score"] == ours(text, "1443").total


def test_the_reward_file_loads_by_its_path_from_anywhere(folder: Path, tmp_path: Path):
    code = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('r', sys.argv[1]); m = u.module_from_spec(s);"
        " s.loader.exec_module(m); print(m.compute_score('x', sys.argv[2], '1443')['score'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder / "reward.py", RIGHT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "2.0", done.stderr


def test_the_environment_weighs_the_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REWARD_WEIGHTS", "1,0.25,0")
    assert main(["verl", "--preset", "cpu", "--gpus", "8", "--out", str(tmp_path / "out")]) == 0
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix in (".py", ".sh"))
    assert "0.25" in written


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one problem whose text is hostile; model and data lie in folders of this machine."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(REPO / "data" / "tiny-base", place / "base")
    (place / "mine.jsonl").write_text(json.dumps({"question": f"1+1=? {EVIL[:60]}</pre> `x`", "answer": "2"}) + "\n")
    settings = {"model": place / "base", "data": place / "mine.jsonl", "steps": 1, "reward__name": "multi_signal"}
    settings["rollout__max_prompt_tokens"] = 200
    settings |= {"eval__test": REPO / "data/arithmetic/test.parquet", "eval__limit": 5}
    command = parse_args(arguments(place, "run", **settings))
    train.train(command.config)
    return place / "run"


def test_the_card_of_a_run_is_read_by_the_hub_and_names_no_place_of_this_machine(hostile_run: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert main(["hub", str(hostile_run), "--out", str(out), "--base-model", "owner/base"]) == 0
    card = ModelCard.load(out / "README.md")
    assert (card.data.base_model, card.data.library_name, card.data.license) == (
        "owner/base",
        "transformers",
        "apache-2.0",
    )
    assert "grpo" in card.data.tags
    for path in out.iterdir():
        assert str(hostile_run.parent).encode() not in path.read_bytes(), path
    assert "--model owner/base" in card.text
    assert "--data mine.jsonl" in card.text
    assert "<script" not in card.text  # `</script><script>` of the question is text
    assert card.text.count("<pre>") == card.text.count("</pre>") == 3
    summary = json.loads((hostile_run / "summary.json").read_text())
    assert f"| greedy accuracy*, 5 problems | {summary['before']['greedy_accuracy']:.1%} (" in card.text
    assert "\n\\*: smoke figures, of at most the first 5 problems of each file (eval.limit)\n" in card.text


def test_the_card_names_the_alarms_that_the_rows_of_the_run_show(hostile_run: Path, tmp_path: Path):
    """Ten steps of 8 completions whose reflection calls every answer correct, in the columns that a run writes."""
    run = tmp_path / "run"
    shutil.copytree(hostile_run, run)
    (row,) = [row for row in read_rows(run / "metrics.jsonl") if row["step"] == 1]
    said = {"verdict/right_says_correct": 0.5, "verdict/wrong_says_correct": 0.5}
    said |= {"verdict/right_says_wrong": 0.0, "verdict/wrong_says_wrong": 0.0}
    rows = [row | said | {"step": step} for step in range(1, 11)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "the reflection signal is dead" in hub.model_card(run, None).text


def test_a_mean_score_has_no_interval_of_shares(hostile_run: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(hostile_run, run)
    summary = json.loads((run / "summary.json").read_text())
    summary["before"]["greedy_mean_score"], summary["after"]["greedy_mean_score"] = 0.25, 0.7067
    (run / "summary.json").write_text(json.dumps(summary))
    assert "| greedy mean score*, 5 problems | 0.250 | 0.707 |" in hub.model_card(run, None).text


def test_a_path_in_a_card_is_reduced_to_its_last_part():
    """Also one that ends in "/", as shells complete it; names of the hub and relative paths stay as they are."""
    paths = {"model": "/far/away/base/", "data": "/far/rows.jsonl", "eval.data": "/a/x.jsonl,/b/y.jsonl,math500"}
    config = hub.portable(build("cpu", paths | {"prompt": "prompts/own.txt", "reward.hybrid.model": "owner/name"}))
    assert (config.model, config.data) == ("base", "rows.jsonl")
    assert config.eval.data == ("x.jsonl", "y.jsonl", "math500")
    assert (config.prompt, config.reward.hybrid.model) == ("prompts/own.txt", "owner/name")


def test_the_exported_weights_are_the_policy_s(hostile_run: Path, tmp_path: Path):
    assert main(["hub", str(hostile_run), "--out", str(tmp_path / "out")]) == 0
    newest = hostile_run / "checkpoints" / "step_000001"
    ours, exported = (
        load_policy(build("cpu", {"model": str(path)}), torch.device("cpu")).network.state_dict()
        for path in (newest, tmp_path / "out")
    )
    assert ours.keys() == exported.keys()
    assert all(torch.equal(ours[name], exported[name]) for name in ours)


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["hub", "no/such/run", "--out", str(tmp_path / "out")]) == 2
    assert "no/such/run is not a run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
