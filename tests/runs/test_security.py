"""Files are read without running what is in them, and model repositories' code only when asked for."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
from small_runs import MODEL, REPO, arguments

import train
from eval import main as evaluate
from tools.export.__main__ import main as export
from tools.sample import main as sample

SOURCES = [
    path
    for folder in ("grpo", "rewards", "prompts", "data", "benchmarks")
    for path in sorted((REPO / folder).rglob("*.py"))
]
SOURCES += [REPO / "train.py", REPO / "eval.py"]
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "pickle.load",
    "pickle.loads",
}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_nothing_that_is_read_is_run(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not FORBIDDEN_MODULES & {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.module not in FORBIDDEN_MODULES
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert name not in FORBIDDEN_CALLS, f"line {node.lineno}"
        assert keywords.get("trust_remote_code") != "True", f"line {node.lineno}"
        assert keywords.get("shell") != "True", f"line {node.lineno}"
        assert keywords.get("allow_pickle") != "True", f"line {node.lineno}"
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", f"line {node.lineno}"


def repository_with_code(folder: Path, marker: Path) -> Path:
    """The tiny model as a repository that brings its own Python, which leaves a mark when it is run."""
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        "class EvilConfig(Qwen2Config):\n    model_type = 'evil'\n"
        "class Evil(Qwen2ForCausalLM):\n    config_class = EvilConfig\n"
    )
    return folder


@pytest.mark.parametrize("asked", [False, True])
def test_a_repositorys_code_runs_only_when_asked(tmp_path, monkeypatch, asked, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(train, "plot_run", lambda folder: None)
    marker = tmp_path / "ran"
    model = repository_with_code(tmp_path / "model", marker)
    settings = {"policy.trust_remote_code": "true"} if asked else {}
    code = train.main(arguments(tmp_path, "run", steps=1, **settings | {"model": str(model)}))
    shown = capsys.readouterr().err
    if asked:
        assert marker.exists(), shown
    else:
        assert code == 2
        assert not marker.exists()
        assert not (tmp_path / "run").exists()
        assert "Traceback" not in shown


def test_a_trained_model_with_code_is_evaluated_sampled_and_exported_only_when_asked(tmp_path, monkeypatch, capsys):
    """The run's folder says that its code was trusted; each command has to be told again."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(train, "plot_run", lambda folder: None)
    marker = tmp_path / "ran"
    model = repository_with_code(tmp_path / "model", marker)
    settings = {"policy.trust_remote_code": "true", "model": str(model), "reward.name": "multi_signal"}
    run = str(tmp_path / "run")
    assert train.main(arguments(tmp_path, "run", steps=1, **settings)) == 0
    bench = ["--bench", "arithmetic-test", "--limit", "1", "--max-new-tokens", "2", "--out", str(tmp_path / "evals")]
    commands = {
        evaluate: ["--run", run, *bench],
        sample: [run, "1+1=?", "--n", "1", "--max-new-tokens", "2"],
        export: ["merged", run, "--out", str(tmp_path / "plain")],
    }
    for command, words in commands.items():
        marker.unlink(missing_ok=True)
        capsys.readouterr()
        assert command([*words]) == 2
        error = capsys.readouterr().err
        assert "allow it on the command line" in error
        assert error.count("\n") == 1
        assert not marker.exists()
        assert command([*words, "--trust-remote-code"]) == 0, capsys.readouterr().err
    assert export(["verl", run, "--gpus", "1", "--out", str(tmp_path / "verl")]) == 0
    assert "trust_remote_code=False" in (tmp_path / "verl" / "run.sh").read_text()
