"""A saved model is opened in one way, as the policy that was trained: for evaluation, export and as a new start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import arguments
from tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM

import eval as eval_command
import train
from data.tiny_base import make_tokenizer
from grpo import hub
from grpo import policy as policy_module
from grpo.engines.torch_engine import TorchEngine
from grpo.errors import UserError
from grpo.packing import pack
from grpo.policy import Policy, load_policy
from grpo.run.checkpoint import TRAINER, drop_trainer, seal
from grpo.saved import fingerprint, open_policy, single
from grpo.settings import parse
from grpo.types import Sample
from tools.export.__main__ import main as export

CPU = torch.device("cpu")
LORA = {"lora_rank": 4, "lora_alpha": 8}
SETTINGS = {"full": {}, "lora": LORA, "nf4": LORA | {"quant": "nf4"}}


def needs_bitsandbytes(kind: str) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes", exc_type=ImportError)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny model in `models/base`, named from the working directory."""
    monkeypatch.chdir(tmp_path)
    save_model(Path("models/base"))
    return "models/base"


def save_model(folder: Path) -> None:
    model = make_tiny_model(tied=True, dtype=torch.float32, vocabulary=96)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def trained(base: str, folder: str, dtype: str = "bfloat16", **policy) -> Policy:
    """A policy whose small steps round to nearest would lose, saved in `folder`."""
    result = load_policy(parse({"model": base, "policy": {"dtype": dtype} | policy}), CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in result.trainable().values():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    result.save(Path(folder))
    return result


def logprobs(policy: Policy) -> torch.Tensor:
    samples = [Sample((3, 5, 7), (9, 11, 2), (0.0,) * 3, 1.0), Sample((4, 6), (8, 2), (0.0,) * 2, 1.0)]
    (batch,) = pack(samples, [1.0] * 2, 100)
    return policy.logprobs(batch, 0.7)[0].detach()


@pytest.mark.parametrize("kind", SETTINGS)
def test_in_bfloat16_the_evaluated_checkpoint_is_the_trained_policy(kind: str, tmp_path: Path, monkeypatch):
    """The run's last held-out completions and those of eval.py --run, text by text."""
    needs_bitsandbytes(kind)
    greedy = []
    generate = TorchEngine.generate

    def recorded(self, requests, sampling):
        groups = generate(self, requests, sampling)
        if sampling.temperature == 0:
            greedy.append([group[0].ids for group in groups])
        return groups

    monkeypatch.setattr(TorchEngine, "generate", recorded)
    sets = {"eval__data": "fresh_arithmetic", "eval__limit": 12, "eval__every": 2, "eval__sampling": "greedy"}
    settings = {"policy__dtype": "bfloat16", "learner__lr": 0.003, "steps": 2, "checkpoint__every": 2} | sets
    settings |= {f"policy__{name}": value for name, value in SETTINGS[kind].items()}
    assert train.main(arguments(tmp_path, "run", **settings)) == 0
    in_training = greedy[-1]
    assert in_training != greedy[0], "training changed nothing"
    greedy.clear()
    command = ["--run", str(tmp_path / "run"), "--engine", "torch", "--limit", "12", "--out", str(tmp_path / "evals")]
    assert eval_command.main(command) == 0
    assert greedy[-1] == in_training


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_exported_folder_is_the_policy_to_the_bit(kind: str, dtype: str, base: str, capsys):
    needs_bitsandbytes(kind)
    policy = trained(base, "saved", dtype, **SETTINGS[kind])
    assert export(["merged", "saved", "--out", "plain"]) == 0
    plain = AutoModelForCausalLM.from_pretrained("plain", dtype="auto")
    assert plain.dtype is getattr(torch, dtype)
    weights = dict(policy.sampler_weights())
    assert weights.keys() == plain.state_dict().keys()
    assert all(torch.equal(weight, plain.state_dict()[name]) for name, weight in weights.items())
    assert not [path for path in Path("plain").iterdir() if path.name in (hub.ADAPTER, hub.ORIGIN)]
    assert export(["merged", "saved", "--out", "plain"]) == 2
    assert "plain exists" in capsys.readouterr().err


def test_an_adapter_starts_a_new_run(base: str):
    policy = trained(base, "adapter", **LORA)

    def start(**settings) -> Policy:
        return load_policy(parse({"model": "adapter", "policy": {"dtype": "bfloat16"} | settings}), CPU)

    continued, whole = start(**LORA), start()
    assert torch.equal(logprobs(continued), logprobs(policy))
    for name, parameter in policy.trainable().items():
        assert torch.equal(continued.trainable()[name], parameter)
    assert torch.equal(logprobs(whole), logprobs(policy))
    assert whole.trainable().keys() == dict(whole.network.named_parameters()).keys()
    continued.save(Path("again"))  # an adapter of the same base, not of the adapter
    assert hub.base_of("again").endswith(base)
    with pytest.raises(UserError, match=r"adapter is an adapter of rank 4 and alpha 8, not LoRA of rank 8"):
        start(lora_rank=8)


def test_a_pruned_checkpoint_is_the_same_model(base: str):
    """eval.py --run on a live run would sample it again."""
    trained(base, "checkpoint", "float32")
    fingerprints = [fingerprint("checkpoint")]
    (Path("checkpoint") / TRAINER).write_bytes(b"moments")
    for change in (seal, drop_trainer):
        change(Path("checkpoint"))
        fingerprints.append(fingerprint("checkpoint"))
    assert len(set(fingerprints)) == 1
    (Path("checkpoint") / "chat_template.jinja").write_text("another")
    assert fingerprint("checkpoint") != fingerprints[0]


def test_the_fingerprint_of_a_hub_model_is_its_commit(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text('{"model_type": "qwen2"}')
        (repository / "refs" / "main").write_text(commit)
        assert fingerprint("owner/name") == f"owner/name@{commit}"


def test_a_base_is_found_from_the_run_and_no_other_is_taken(base: str, tmp_path: Path, monkeypatch):
    checkpoint = tmp_path / "runs" / "a" / "checkpoints" / "step_000001"
    checkpoint.mkdir(parents=True)
    policy = trained(base, str(checkpoint), "float32", **LORA)
    elsewhere = tmp_path / "elsewhere"
    save_model(elsewhere / base)
    weights = load_file(elsewhere / base / "model.safetensors")
    save_file(
        {name: weight + 0.01 for name, weight in weights.items()},
        elsewhere / base / "model.safetensors",
        {"format": "pt"},
    )
    monkeypatch.chdir(elsewhere)  # where another model has the base's name
    assert hub.base_of(str(checkpoint)) == str(tmp_path / base)
    opened = open_policy(single(str(checkpoint)), CPU, 64)
    torch.testing.assert_close(logprobs(opened), logprobs(policy), rtol=0, atol=1e-6)

    shutil.rmtree(tmp_path / base)
    with pytest.raises(UserError, match=r"trained on other weights than those of .*elsewhere.*delete base.json"):
        hub.base_of(str(checkpoint))
    (checkpoint / hub.ORIGIN).rename(checkpoint / "kept")
    assert hub.base_of(str(checkpoint)) == str(elsewhere / base), "an adapter of another library has no digest"
    (checkpoint / "kept").rename(checkpoint / hub.ORIGIN)
    shutil.rmtree(elsewhere / base)
    with pytest.raises(UserError, match=r"is not there; put it into this folder, or into one above the adapter"):
        hub.base_of(str(checkpoint))


@pytest.mark.parametrize("settings", [LORA, {}], ids=["lora", "full"])
def test_a_base_that_loading_fetches_is_checked_and_is_in_the_digest(settings: dict, base: str, monkeypatch):
    trained(base, "adapter", "float32", **LORA)
    start = parse({"model": "adapter", "policy": settings})
    expected, digest, load = load_policy(start, CPU).digest, hub.weights_digest, policy_module.load_model
    fetched = []  # until it is loaded, a model of the hub has no files here

    def fetch(*arguments):
        fetched.append(True)
        return load(*arguments)

    monkeypatch.setattr(policy_module, "load_model", fetch)
    monkeypatch.setattr(hub, "weights_digest", lambda name: digest(name) if fetched or name == "adapter" else "")
    assert load_policy(start, CPU).digest == expected
    fetched.clear()
    monkeypatch.setattr(hub, "weights_digest", lambda name: "newer weights" if fetched else "")
    with pytest.raises(UserError, match="adapter was trained on other weights"):
        load_policy(start, CPU)


def test_a_digest_is_of_the_content_of_all_weight_files(base: str):
    first = hub.weights_digest(base)
    shutil.copytree(base, "copy")
    (Path("copy") / "config.json").write_text("{}")
    assert hub.weights_digest("copy") == first
    AutoModelForCausalLM.from_pretrained(base).save_pretrained("sharded", max_shard_size="10KB")
    shards = hub.weight_files("sharded")
    assert len(shards) > 1
    names = json.loads((Path("sharded") / "model.safetensors.index.json").read_text())["weight_map"].values()
    assert {path.name for path in shards} == set(names)
    whole = hub.weights_digest("sharded")
    content = bytearray(shards[-1].read_bytes())
    content[-1] ^= 1
    shards[-1].write_bytes(content)
    assert hub.weights_digest("sharded") != whole
    assert hub.weights_digest("nobody/nothing") == ""
