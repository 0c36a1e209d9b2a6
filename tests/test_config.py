from __future__ import annotations

import re
from typing import Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.cli import Parser, parse_args
from grpo.errors import UserError
from grpo.settings import (
    OTHER_TRAINERS,
    PRESETS,
    Config,
    build,
    changed,
    fields,
    flat,
    nearest,
    parse,
    read_yaml,
    short,
    typed,
)

PRESET_NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


def config(*argv: str) -> Config:
    return parse_args(argv, "cpu").config


def error(*argv: str) -> str:
    with pytest.raises(UserError) as raised:
        parse_args(argv, "cpu")
    message = str(raised.value)
    assert "\n" not in message
    return message


# ---- the command line


def test_later_layers_win():
    """the default, configs/l4.yaml, the command line"""
    assert Config().learner.lr == 1e-6
    assert config("--preset", "l4").learner.lr == 1e-5
    assert config("--preset", "l4", "--learner.lr", "2e-4").learner.lr == 2e-4


@pytest.mark.parametrize(
    "argv",
    [
        ("--learner.microbatch_tokens", "77"),
        ("--learner.microbatch_tokens=77",),
        ("--learner.microbatch-tokens", "77"),
        ("--learner.microbatch-tokens=77",),
    ],
)
def test_every_way_to_write_an_option(argv):
    assert config(*argv).learner.microbatch_tokens == 77


def test_a_mode_leaves_a_part_of_the_preset_and_what_is_typed_wins():
    """l4 has 500 steps of 128 x 8; quick leaves at most 15 of 8 x 8."""
    quick = config("--preset", "l4", "--mode", "quick", "--rollout.prompts_per_step", "3")
    assert (quick.steps, quick.rollout.prompts_per_step, quick.rollout.group_size) == (15, 3, 8)
    assert config("--preset", "cpu", "--mode", "dry-run").steps == 58
    assert config("--preset", "l4", "--mode", "full") == config("--preset", "l4")
    assert "mode is 'slow'" in error("--mode", "slow")


def test_dashes_in_values_stay():
    assert config("--data-dir", "a-b_c").data_dir == "a-b_c"
    assert config("--data_dir=a-b_c").data_dir == "a-b_c"
    assert config("--eval-every", "3").eval.every == config("--eval.every", "3").eval.every == 3


@pytest.mark.parametrize(
    ("argv", "quiet"),
    [((), False), (("--quiet",), True), (("--quiet", "--seed", "1"), True), (("--quiet", "false"), False)],
)
def test_flags_need_no_value(argv, quiet):
    assert config(*argv).quiet is quiet


def test_a_list_of_sets_is_written_with_commas():
    assert config("--eval.data", "math500, a.jsonl").eval.data == ("math500", "a.jsonl")
    assert (
        config("--eval.data", "a.jsonl").eval.data == parse({"eval": {"data": ["a.jsonl"]}}).eval.data == ("a.jsonl",)
    )
    assert config("--eval.data", "none", "--eval.every", "0").eval.data == ()
    assert parse({"eval": {"data": None, "every": 0}}).eval.data == ()  # null in a YAML file


def test_none_only_where_none_is_a_value():
    assert config("--eval.limit", "none").eval.limit is config("--eval.limit", "None").eval.limit is None
    assert config("--model", "none").model == "none"
    assert "steps is 'none'" in error("--steps", "none")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--quiett",), "unknown option --quiett; did you mean --quiet?"),
        (("--lr", "3"), "unknown option --lr; did you mean --learner.lr?"),
        (("--kl_coef=0.1",), "unknown option --kl_coef; did you mean --learner.kl_coef?"),
        (("--learner.lrr", "3"), "unknown option --learner.lrr; did you mean --learner.lr?"),
        (("--rollout.temprature=1",), "unknown option --rollout.temprature; did you mean --rollout.temperature?"),
        (("stray",), "unexpected argument 'stray'"),
        (("--quiet", "true", "stray"), "unexpected argument 'stray'"),
        (("--steps",), "argument --steps: expected one argument"),
        (("--num_generations", "8"), "--num_generations is --rollout.group_size here"),
        (("--actor.optim.lr", "1"), "unknown option --actor.optim.lr; did you mean --learner.lr?"),
        (("--rollout.top_p", "0.9"), "there is no option --rollout.top_p: the whole distribution is sampled"),
        (("--mode", "[quick]"), "did you mean quick?"),
        (("--preset", "h10"), "unknown preset 'h10'; there are cpu, h100, l4, "),
        (("--preset", "h10"), "; did you mean h100?"),
        (
            ("--policy.quant", "nf5"),
            "policy.quant is 'nf5'; it must be 'none', 'nf4' or 'auto'; did you mean nf4?",
        ),
        (("--learner.advantage", "drgrpo"), "did you mean dr_grpo?"),
        (("--policy.dtype", "float16"), "did you mean bfloat16?"),
        (("--steps", "0"), "steps is '0'; it must be greater than or equal to 1"),
        (("--steps", "1000000"), "steps is '1000000'; it must be less than or equal to 999999"),
        (("--steps", "ten"), "steps is 'ten'; it must be a valid integer"),
        (("--seed", "1.5"), "seed is '1.5'; it must be a valid integer"),
        (("--learner.microbatch_tokens", "0"), "greater than or equal to 1 or it must be 'auto'"),
        (("--out", "r\udcff"), "must be text in UTF-8"),
        (("--learner.lr", "nan"), "learner.lr is 'nan'; it must be a finite number"),
        (("--rollout.group_size", "1"), "rollout.group_size is '1'; it must be greater than or equal to 2"),
        (("--learner.clip_low", "1"), "learner.clip_low is '1'; it must be less than 1"),
        (("--quiet", "maybe"), "quiet is 'maybe'; it must be a valid boolean"),
        (("--name", "a/b"), "name is 'a/b'; String should match pattern"),
        (("--name", ".."), "name is '..'"),
        (("--threads", "99999"), "less than or equal to 1024"),
        (("--config", "none-such.yaml"), "cannot read none-such.yaml"),
        (("--name", "x" * 101), "at most 100 characters"),
        (("--rollout.group_size", "100000000"), "less than or equal to 65536"),
    ],
)
def test_bad_input_is_one_line_that_says_what_would_be_good(argv, message):
    assert message in error(*argv)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ("--rollout.prompts_per_step", "16", "--learner.minibatches_per_rollout", "3"),
            ("rollout.prompts_per_step 16", "minibatches_per_rollout 3", "change one"),
        ),
        (("--preset", "h100", "--quant", "auto"), ("policy.quant is auto",)),
        (("--policy.quant", "nf4"), ("policy.quant is nf4", "4-bit weights have no gradient", "policy.lora_rank 64")),
        (("--learner.kl_coef", "0.1"), ("skip_zero_variance", "kl_coef 0.1")),
        (("--learner.entropy_coef", "0.1"), ("skip_zero_variance", "entropy_coef 0.1")),
        (("--eval.data", "none"), ("eval.every is", "eval.data")),
        (
            ("--learner.loss", "gspo", "--learner.sampler_correction", "token_mask"),
            ("token_mask weighs single tokens", "gspo has one ratio", "use sequence_mask or none"),
        ),
        (
            ("--learner.advantage", "maxrl", "--reward.name", "hybrid"),
            ("maxrl needs rewards of at least 0", "reward.hybrid.a 0.5", "learner.advantage rloo"),
        ),
    ],
)
def test_settings_that_exclude_each_other(argv, words):
    message = error(*argv)
    assert all(word in message for word in words), message


def test_the_home_folder_is_written_as_a_tilde(monkeypatch):
    """In settings that are paths, wherever they come from; nowhere else."""
    monkeypatch.setenv("HOME", "/home/me")
    named = config("--out=~/runs", "--data", "~/d.jsonl", "--eval.data", "math500,~/e.jsonl")
    assert (named.out, named.data) == ("/home/me/runs", "/home/me/d.jsonl")
    assert named.eval.data == parse({"eval": {"data": ["math500", "~/e.jsonl"]}}).eval.data
    assert named.eval.data == ("math500", "/home/me/e.jsonl")
    assert parse({"out": "runs/~"}).out == "runs/~"
    assert "cannot read /home/me/none.yaml" in error("--config", "~/none.yaml")
    cli = Parser(prog="x")
    cli.add_argument("--data-dir")
    assert cli.parse_args(["--data_dir=~/x"]).data_dir == "/home/me/x"


# ---- every field


def help_text(capsys, preset: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_args(["--preset", preset, "--help"])
    assert ended.value.code == 0
    return re.sub(r"[\s│]+", "", capsys.readouterr().out)


def test_every_field_is_documented_and_an_option(capsys):
    text = help_text(capsys, "h100")
    for name, field in fields().items():
        assert field.description, f"{name} has no docstring"
        assert field.description[-1] in ".)", f"{name}: {field.description}"
        assert f"--{name}" in text
        assert re.sub(r"\s+", "", field.description) in text
        for choice in get_args(field.annotation) if get_origin(field.annotation) is Literal else ():
            assert choice in text.partition(f"--{name}{{")[2].partition("}")[0]


def test_help_shows_the_values_of_the_preset(capsys):
    assert "(default:1e-05)" in help_text(capsys, "l4")
    assert "(default:1e-05)" not in help_text(capsys, "h100")


def test_names_of_other_trainers_lead_to_settings_that_exist():
    """A name that is also the end of one of ours would never be asked for here."""
    elsewhere = read_yaml(OTHER_TRAINERS)
    assert set(elsewhere.values()) <= fields().keys()
    assert not {name.rpartition(".")[2] for name in fields()} & elsewhere.keys()


def other_value(name: str, value):
    """A legal value that is not this one."""
    if name == "preset":
        return "l4"
    choices = {
        "policy.dtype": "float32",
        "policy.attention": "sdpa",
        "rollout.engine": "torch",
        "learner.schedule": "linear",
        "reward.verifier": "last_number",
        "reward.workers": 3,
        "learner.optimizer": "adamw_8bit",
        "learner.advantage": "dr_grpo",
        "learner.loss": "cispo",
        "learner.loss_aggregation": "seq-mean",
        "learner.sampler_correction": "sequence_mask",
        "eval.data": ("math500", "my own.jsonl"),
        "eval.sampling": "greedy",
        "template_args": {"enable_thinking": False, "style": "short", "level": 2},
        "template_date": "2001-02-03",
        "device": "cpu",
        "mode": "quick",
        "tracker": "wandb",
    }
    if name in choices:
        return choices[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 2
    if isinstance(value, float):
        return value / 2 + 0.1
    return "3.0" if name in ("rollout.kv_gib", "reward.call_limit_s") else "3" if value is None else f"{value}x"


@pytest.mark.parametrize("name", [name for name in fields() if name != "preset"])
def test_every_field_can_be_set_from_the_command_line_and_survives_yaml(name):
    other = {"policy.quant": "nf4", "eval.every": 2}.get(name, other_value(name, flat(Config())[name]))
    needs = {
        "policy.quant": {"policy.lora_rank": "4"},
        "eval.every": {"eval.data": "x"},
        "learner.skip_zero_variance": {"learner.kl_coef": "0", "learner.entropy_coef": "0"},
    }.get(name, {})
    if name == "learner.minibatches_per_rollout":
        other = 2
    options = [word for key, value in ({name: typed(other)} | needs).items() for word in (f"--{key}", value)]
    changed_ = parse_args(["--preset", "h100", *options], "cpu").config
    assert typed(flat(changed_)[name]) == typed(other)
    assert parse(yaml.safe_load(yaml.safe_dump(changed_.model_dump()))) == changed_


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_a_resolved_config_round_trips_through_yaml(preset):
    whole = build(preset, {})
    assert parse(yaml.safe_load(yaml.safe_dump(whole.model_dump(), sort_keys=False))) == whole
    assert changed(whole, {}) == whole


@settings(max_examples=25)
@given(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20))
def test_no_text_breaks_the_parser(text):
    """Whatever is typed gives settings, or one line, or the help text. (main spells control characters out.)"""
    try:
        parse_args(["--model", text, f"--{text}", "1"], "cpu")
        message = ""
    except UserError as problem:
        message = str(problem)
    except SystemExit:
        message = "" if text in ("h", "help") else "\n"
    assert "\n" not in message


# ---- the short form


def test_short_names_only_what_differs_from_the_preset():
    assert short(config()) == "--preset cpu"
    assert short(config("--learner.lr", "3e-4", "--quiet")) == "--preset cpu --quiet true --learner.lr 0.0003"
    assert short(config("--preset", "l4", "--eval.limit", "none", "--learner.lr", "0.00001")) == "--preset l4"
    assert short(Config()) == "--preset none"


def test_short_can_be_typed_again():
    first = config(
        "--preset",
        "l4",
        "--rollout.group_size",
        "4",
        "--eval.limit",
        "3",
        "--tracker",
        "wandb",
        "--learner.lr",
        "3e-05",
    )
    assert parse_args(short(first).split(), "cpu").config == first


# ---- the reward's weights


def test_reward_weights_from_the_environment_are_part_of_the_resolved_config(monkeypatch):
    monkeypatch.setenv("REWARD_WEIGHTS", "2,0.25,0")
    reward = config().reward
    assert (reward.alpha, reward.beta, reward.gamma) == (2.0, 0.25, 0.0)
    assert config("--reward.beta", "0.125").reward.beta == 0.125  # what is typed now wins over what was exported
    monkeypatch.setenv("REWARD_WEIGHTS", "1,2")
    assert "REWARD_WEIGHTS='1,2'" in error()


def test_nearest_says_nothing_when_nothing_is_near():
    assert nearest("zzzz", ["learner.lr", "steps"]) == ""
