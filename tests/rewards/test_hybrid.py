"""The hybrid reward, end to end with a tiny random reward model."""

from __future__ import annotations

import inspect

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification

from grpo.rollout import calibrate
from grpo.settings import HybridConfig, build
from grpo.types import Completion, Problem
from rewards import load_reward, make_reward
from rewards.hybrid import HybridReward, RewardModel

RIGHT, WRONG = r"so \boxed{5}", r"so \boxed{6}"
WORDS = ["<pad>", "<eos>", "<unk>", "so", "\\", "boxed", "{", "}", "5", "6", "?", "a", "b", "c"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("reward-model")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Punctuation()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_labels=1, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def asking(questions) -> list[dict[str, str]]:
    return [{"question": question} for question in questions]


def test_the_formula(model):
    """correct: (1 - b) + 2b s, wrong: -a + 2a s, s = (rm - min) / (max - min + eps)."""
    reward = HybridReward(model, a=0.3, b=0.4, eps=0.01)
    completions, prompts = [RIGHT, WRONG, RIGHT, "a"], ["a", "b", "c?", "a b c"]
    scores = reward.score_batch(completions, ["5"] * 4, asking(prompts))
    opinions = reward.model.score(prompts, completions)
    low, high = min(opinions), max(opinions)
    assert high - low > 0.1, "the random model tells texts apart"
    for score, opinion, correct in zip(scores, opinions, [True, False, True, False], strict=True):
        s = (opinion - low) / (high - low + 0.01)
        assert score.total == pytest.approx((1 - 0.4) + 2 * 0.4 * s if correct else -0.3 + 2 * 0.3 * s)
        assert score.signals == {"hybrid": score.total, "verify": float(correct), "model": pytest.approx(s)}
        assert score.total == sum(reward.weights[name] * value for name, value in score.signals.items())
    reward.close()


def test_a_wrong_answer_never_outranks_a_right_one(model):
    """After a warm-up that saw a single score every other one lies outside: clipped, wrong <= 0.5 <= right."""
    reward = HybridReward(model)
    reward.calibrate([RIGHT], asking("a"))
    prompts = [" ".join(WORDS[3 + i : 6 + i]) for i in range(9)]
    right = reward.score_batch([RIGHT] * 9, ["5"] * 9, asking(prompts))
    wrong = reward.score_batch([RIGHT] * 9, ["6"] * 9, asking(prompts))
    assert max(score.total for score in wrong) <= 0.5 <= min(score.total for score in right)
    reward.close()


def test_the_scale_is_set_once_saved_and_restored(model):
    reward = HybridReward(model, warmup=2)
    assert reward.calibration_size == 2
    reward.score_batch([RIGHT, WRONG], ["5", "5"], asking("ab"))
    scale = reward.scale
    reward.score_batch([RIGHT, "a"], ["5", "5"], asking(["c c c", "?"]))
    assert reward.scale == scale
    resumed = HybridReward(model, warmup=2)
    resumed.load_state_dict(reward.state_dict())
    assert resumed.calibration_size == 0
    batch = ([RIGHT, WRONG, "b"], ["5"] * 3, asking(["a a", "b b", "c"]))
    assert resumed.score_batch(*batch) == reward.score_batch(*batch)
    with pytest.raises(ValueError, match="checkpoint was made with"):
        resumed.load_state_dict({**reward.state_dict(), "model": "another"})
    for each in (reward, resumed):
        each.close()


def test_a_pass_before_training_sets_the_scale(model):
    """Twelve completions of the first problems at temperature 1, four a problem; a resumed run makes no such pass."""
    config = build(
        "cpu",
        {"reward.name": "hybrid", "reward.hybrid.model": model, "reward.hybrid.warmup": 12, "rollout.group_size": 4},
    )
    chats = [[{"role": "user", "content": word}] for word in "abc?so"]
    problems = [Problem(i, f"<user>{chat[0]['content']}", (i,), "5", chat=chat) for i, chat in enumerate(chats)]
    asked = []

    class Echo:
        def generate(self, requests, sampling):
            asked.extend(requests)
            return [
                [Completion((request.prompt_ids[0] + 8 + i,), (0.0,), "length") for i in range(request.n)]
                for request in requests
            ]

    reward = load_reward({}, config.seed, "cpu", **config.reward.model_dump())
    calibrate(reward, Echo(), reward.model.tokenizer, problems, config)
    assert [(request.prompt_ids, request.n) for request in asked] == [((0,), 4), ((1,), 4), ((2,), 4)]
    texts = [WORDS[8 + index + i] if 8 + index + i < len(WORDS) else "" for index in range(3) for i in range(4)]
    opinions = reward.model.score([word for word in "abc" for _ in range(4)], texts)
    assert reward.scale == (min(opinions), max(opinions))
    resumed = load_reward({}, config.seed, "cpu", **config.reward.model_dump())
    resumed.load_state_dict(reward.state_dict())
    calibrate(resumed, None, None, problems, config)
    for each in (reward, resumed):
        each.close()


def test_the_class_and_the_settings_have_the_same_defaults():
    """Settings must not import rewards/hybrid.py, which imports torch."""
    parameters = inspect.signature(HybridReward).parameters
    defaults = HybridConfig().model_dump()
    assert {name: parameters[name].default for name in defaults} == defaults


def test_the_settings_reach_the_reward(model):
    given = {"a": 0.25, "b": 0.75, "eps": 0.5, "warmup": 7, "offload": True}
    config = build(
        "cpu",
        {"reward.name": "hybrid", "reward.hybrid.model": model} | {f"reward.hybrid.{k}": v for k, v in given.items()},
    )
    reward = load_reward({}, config.seed, "cpu", **config.reward.model_dump())
    assert {
        **{name: getattr(reward, name) for name in ("a", "b", "eps", "warmup")},
        "offload": reward.model.offload,
    } == given
    reward.close()


def test_the_reward_model_reads_its_own_chat_template(model):
    judge = RewardModel(model)
    assert judge.conversation("so?", "5") == "so?\n\n5<eos>"
    plain = judge.score(["a"], ["b"])
    judge.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert judge.conversation("so?", "5") == "[user]so?[assistant]5"
    assert judge.score(["so?"], ["\ud800"]) == judge.score(["so?"], ["?"])
    assert judge.score(["a"], ["b"]) != plain


def test_batches_order_and_offload_do_not_change_scores(model, monkeypatch):
    prompts = [" ".join(WORDS[3 : 4 + i]) for i in range(7)]
    texts = ["a b c"] * 7
    monkeypatch.setattr("rewards.hybrid.BATCH", 1)
    one_by_one = RewardModel(model).score(prompts, texts)
    monkeypatch.setattr("rewards.hybrid.BATCH", 3)
    batched = RewardModel(model, offload=True).score(prompts, texts)
    assert len(set(one_by_one)) > 1
    # bf16 keeps 8 bits: padding changes the order of sums, not more
    assert batched == pytest.approx(one_by_one, rel=0.05, abs=0.05)
    assert RewardModel(model).model.dtype == torch.bfloat16


def test_by_name_with_its_options_and_any_text(model):
    reward = make_reward("hybrid", hybrid={"model": model, "warmup": 4})
    texts = ["", "\ud800", "a " * 6000, RIGHT]
    scores = reward.score_batch(texts, ["5"] * 4, asking("aaaa"))
    assert [score.outcome for score in scores] == ["no_answer"] * 3 + ["correct"]
    reward.self_test({})
    reward.close()
    assert (
        make_reward("hybrid", hybrid={"model": model}, verifier="last_number")
        .score_batch(["5"], ["5"], asking("a"))[0]
        .verify
    )


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="cannot read the reward model"):
        make_reward("hybrid", hybrid={"model": str(tmp_path / "none")})


def test_prompts_are_needed_and_impossible_settings_refused(model):
    reward = HybridReward(model)
    with pytest.raises(ValueError, match="pass the questions"):
        reward.score_batch([RIGHT], ["5"])
    with pytest.raises(ValueError, match="could outrank"):
        HybridReward(model, a=0.7, b=0.7)


def test_the_reward_model_obeys_device(model):
    """--device cpu holds for the reward model too; the device `meta` shows it on a machine without a GPU."""
    judge = RewardModel(model, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        judge.score(["a"], ["b"])
    assert judge.model.device.type == "meta"
    config = build("cpu", {"reward.name": "hybrid", "reward.hybrid.model": model})
    reward = load_reward({}, 0, "meta", **config.reward.model_dump())
    assert reward.model.device == "meta"
    reward.close()
