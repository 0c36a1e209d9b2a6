"""What is exported for verl, read by verl's own code: settings, data set, reward loader (`make test-peers`)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from grpo.settings import build, flat
from rewards import make_reward
from tools.export import verl as export
from tools.export.__main__ import main

REPO = Path(__file__).resolve().parents[2]
ARITHMETIC = str(REPO / "data/arithmetic/one_r128.parquet")
RIGHT = "<think>7+6=13</think>\\boxed{1443}<reflection>correct</reflection>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    config = build(
        "h100", {"data": ARITHMETIC, "model": str(REPO / "data/tiny-base"), "learner.sampler_correction": "token_mask"}
    )
    export.write(config, out, 8, 1)
    return out


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
        ([], "one of the arguments"),
        (["no/such/run"], "no/such/run"),
    ],
)
def test_what_cannot_be_exported_is_one_line(arguments: list[str], words: str, tmp_path: Path, capsys):
    assert main(["verl", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert not (tmp_path / "out").exists()


@pytest.mark.peers
def test_verl_takes_every_override(folder: Path):
    """verl's composed settings in strict mode: a key that it does not have is an error."""
    import verl.trainer.config
    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(verl.trainer.config.__file__).parent / "_generated_ppo_trainer.yaml")
    OmegaConf.set_struct(config, True)
    wanted, _ = export.overrides(build("h100", {"learner.sampler_correction": "token_mask"}), folder, 8, 1)
    for key, value in (line.split("=", 1) for line in wanted):
        OmegaConf.update(config, key, yaml.safe_load(value))
        assert OmegaConf.select(config, key) is not None, key
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
