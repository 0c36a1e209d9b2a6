"""Checkpoints on disk: whole or recognised as not; readable by anyone; everything that training needs comes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.errors import UserError
from grpo.learner import Learner
from grpo.policy import Policy
from grpo.run.checkpoint import MANIFEST, TRAINER, Checkpoints, TrainingState, check_whole
from grpo.settings import Config, LearnerConfig
from grpo.types import Problem
from rewards import make_reward

TOKENIZER = Path(__file__).resolve().parents[2] / "data" / "tiny-base"
PROBLEMS = [Problem(0, "1+1=", (3, 4), "2"), Problem(1, "2+2=", (3, 5), "4")]


def write_two(folder: Path) -> None:
    (folder / "weights").write_bytes(bytes(range(256)) * 8)
    (folder / "inner").mkdir()
    (folder / "inner" / "state").write_text("forty-two")
    (folder / TRAINER).write_bytes(b"state")


def saved(folder: Path, steps, keep: int = 9, accuracy: dict | None = None) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    checkpoints.accuracy = accuracy or {}
    for step in steps:
        checkpoints.save(step, write_two)
    return checkpoints


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "one bit": lambda path: flip(path / "weights"),
    "one bit of a file in a folder": lambda path: flip(path / "inner" / "state"),
    "cut short": lambda path: (path / "weights").write_bytes((path / "weights").read_bytes()[:-1]),
    "empty": lambda path: (path / "weights").write_bytes(b""),
    "missing file": lambda path: (path / "weights").unlink(),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "another shape of manifest": lambda path: (path / MANIFEST).write_text('{"weights": 3, "inner": []}'),
    "half a manifest": lambda path: (path / MANIFEST).write_text((path / MANIFEST).read_text()[:20]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_is_used(tmp_path, damage, capsys):
    checkpoints = saved(tmp_path, [1, 2, 3])
    for step in (1, 2, 3):
        check_whole(checkpoints.path(step))
    damage(checkpoints.path(3))
    assert checkpoints.restore(lambda path: None) == 2
    assert "step_000003 is damaged" in capsys.readouterr().err
    # Put aside, so that it neither counts as one of the newest nor stands in the way of the next step 3.
    assert checkpoints.steps() == [1, 2]
    checkpoints.save(3, write_two)
    assert checkpoints.restore(lambda path: None) == 3


def test_a_half_written_one_is_removed_and_said(tmp_path, capsys):
    checkpoints = saved(tmp_path, [1])
    leftover = tmp_path / "checkpoints" / ".unfinished_000002"
    leftover.mkdir()
    (leftover / "weights").write_bytes(b"half")
    assert checkpoints.restore(lambda path: None) == 1
    assert "before it was complete" in capsys.readouterr().err
    assert not leftover.exists()


def test_none_is_whole(tmp_path):
    checkpoints = saved(tmp_path, [1])
    flip(checkpoints.path(1) / "weights")
    assert checkpoints.restore(lambda path: None) is None
    assert Checkpoints(tmp_path / "nothing", keep=1).restore(lambda path: None) is None


@pytest.mark.parametrize(
    ("accuracy", "kept", "best"),
    [
        ({}, [5, 6], None),
        ({2: 0.5, 4: 0.4, 6: 0.3}, [2, 4, 5, 6], 2),
        ({2: 0.5, 4: 0.5, 6: 0.3}, [2, 4, 5, 6], 2),  # a tie: the earlier one
        ({1: 0.1, 6: 0.3}, [1, 5, 6], 6),
    ],
)
def test_keeps_the_newest_whole_and_the_weights_of_evaluated_steps(tmp_path, accuracy, kept, best):
    checkpoints = saved(tmp_path, range(1, 7), keep=2, accuracy=accuracy)
    assert checkpoints.steps() == kept
    assert checkpoints.best() == best
    for step in kept:
        check_whole(checkpoints.path(step))
        assert (checkpoints.path(step) / TRAINER).exists() is (step >= 5)
    for step in (5, 6):
        flip(checkpoints.path(step) / "weights")
    assert checkpoints.restore(lambda path: None) is None  # no run can continue from weights alone
    assert checkpoints.steps() == kept[:-2]


def test_where_the_disk_is_short_old_weights_make_room(tmp_path, monkeypatch, capsys):
    """Free are 4 parts in 10 of a checkpoint's size and as much for every one removed: 3 are enough, so the two oldest
    go, but not the best."""
    steps = [1, 2, 3, 4, 5]
    accuracy = dict.fromkeys([*steps, 6], 0.1) | {2: 0.9}
    checkpoints = saved(tmp_path, steps, keep=2, accuracy=accuracy)
    size = sum(path.stat().st_size for path in checkpoints.path(5).rglob("*"))

    def usage(folder):
        return SimpleNamespace(free=0.4 * size * (1 + len(steps) - len(checkpoints.steps())))

    monkeypatch.setattr("shutil.disk_usage", usage)
    checkpoints.save(6, write_two)
    assert checkpoints.steps() == [2, 4, 5, 6]
    assert "removing the weights of step 1" in capsys.readouterr().err


def test_what_the_run_did_not_write_is_left_alone(tmp_path):
    """A copy, a note, a link beside the checkpoints: neither counted nor removed."""
    checkpoints = saved(tmp_path, [1, 2], keep=1)
    shutil.copytree(checkpoints.path(2), checkpoints.folder / "step_000002_keep")
    shutil.copytree(checkpoints.path(2), checkpoints.folder / "step_000001.bak")
    (checkpoints.folder / "step_notes.txt").write_text("mine")
    (checkpoints.folder / "step_000009").symlink_to(checkpoints.path(2))
    assert checkpoints.restore(lambda path: None) == 2
    checkpoints.save(3, write_two)
    assert checkpoints.steps() == [3]
    others = {path.name for path in checkpoints.folder.iterdir()} - {"step_000003"}
    assert others == {"step_000002_keep", "step_000001.bak", "step_notes.txt", "step_000009"}


def test_a_failed_write_leaves_what_was_there(tmp_path):
    checkpoints = saved(tmp_path, [1])

    def fail(folder: Path) -> None:
        write_two(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write to .*checkpoints: No space left"):
        checkpoints.save(2, fail)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_000001"]


def test_space_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, [1])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2000))  # of more than 2048 bytes
    with pytest.raises(UserError, match=r"disk full: a checkpoint takes .* GiB"):
        checkpoints.save(2, lambda folder: pytest.fail("written"))
    assert checkpoints.steps() == [1]


def trainer(lora_rank: int = 0, dtype: torch.dtype = torch.float32, problems=PROBLEMS) -> TrainingState:
    torch.manual_seed(5)
    model = make_tiny_model(tied=True, dtype=dtype, vocabulary=200)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    policy = Policy(model, tokenizer, Config(policy={"lora_rank": lora_rank, "lora_alpha": 8}))
    learner = Learner(policy, Config(steps=9, learner=LearnerConfig(lr=0.01)))
    return TrainingState(policy, learner, make_reward("random", seed=3), problems)


def take_steps(state: TrainingState, count: int) -> None:
    for _ in range(count):
        torch.manual_seed(100 + state.learner.optimizer.steps)
        for master in state.learner.optimizer.masters:
            master.grad = torch.randn_like(master)
        state.learner.optimizer.step()
        state.learner.optimizer.zero_grad()


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(tmp_path, lora_rank, dtype):
    whole = trainer(lora_rank, dtype)
    take_steps(whole, 4)

    first = trainer(lora_rank, dtype)
    take_steps(first, 2)
    first.learner.bad_steps, first.learner.microbatch_tokens = 2, 77
    first.reward.score_batch(["a", "b", "c"], ["1", "1", "1"])
    first.notes = {"seconds": 4.5, "before": {"greedy_accuracy": 0.5}}
    first.complete(2, {"step": 2, "reward/mean": 0.25})
    # After the step: must not be in what is saved.
    first.reward.score_batch(["d"], ["1"])
    first.learner.optimizer.skip()
    first.learner.bad_steps = 3
    first.write(tmp_path)

    second = trainer(lora_rank, dtype)
    second.read(tmp_path)
    assert (second.step, second.row) == (2, {"step": 2, "reward/mean": 0.25})
    assert (second.learner.bad_steps, second.learner.microbatch_tokens) == (2, 77)
    assert second.reward.state_dict() == {"seed": 3, "tossed": 3}
    assert second.notes == first.notes
    take_steps(second, 2)
    for name, tensor in whole.policy.trainable().items():
        assert torch.equal(tensor, second.policy.trainable()[name]), name
    for a, b in zip(whole.learner.optimizer.masters, second.learner.optimizer.masters, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_full_weights_open_with_transformers(tmp_path):
    state = trainer()
    take_steps(state, 1)
    state.write(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    state.policy.network.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(ids).logits, state.policy.model(ids).logits)  # the policy's kernels are its own
    assert AutoTokenizer.from_pretrained(tmp_path)("1+1=")["input_ids"]
    assert (tmp_path / "generation_config.json").is_file()


def test_an_adapter_opens_with_peft(tmp_path):
    from peft import PeftModel

    state = trainer(lora_rank=4)
    take_steps(state, 1)
    state.write(tmp_path)
    base = make_tiny_model(tied=True, dtype=torch.float32, vocabulary=200)
    model = PeftModel.from_pretrained(base, tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    state.policy.network.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(ids).logits, state.policy.model(ids).logits)  # the policy's kernels are its own
    assert not (tmp_path / "model.safetensors").exists()  # the base is not saved again
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)  # the same bytes in every process
    assert (tmp_path / "tokenizer.json").is_file()
    assert (tmp_path / "generation_config.json").is_file()


def test_nothing_is_unpickled(tmp_path):
    """A pickle that would run code is refused, not run."""

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    state = trainer()
    state.write(tmp_path)
    torch.save({"step": 1, "notes": Evil()}, tmp_path / "trainer.pt")
    with pytest.raises(ValueError, match=r"trainer.pt cannot be read: Weights only load failed"):
        trainer().read(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("*.bin"))


def test_the_checkpoint_of_another_version_is_refused(tmp_path):
    torch.save({"step": 1, "settings": {}}, tmp_path / "trainer.pt")
    with pytest.raises(UserError, match="written by another version"):
        trainer().read(tmp_path)


def test_other_problems_are_refused(tmp_path):
    trainer().write(tmp_path)
    for problems in (PROBLEMS[::-1], PROBLEMS[:1], [PROBLEMS[0], Problem(1, "2+2=", (3, 5), "5")]):
        with pytest.raises(UserError, match="started with other settings: data"):
            trainer(problems=problems).read(tmp_path)
