"""`python train.py --preset l4 --check`: all that can be known about a run before it starts. Loads nothing big."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import torch
from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers
from transformers import AutoTokenizer

from data.sources import find_source
from grpo.config import Config, short
from grpo.errors import UserError
from grpo.plan import traps
from grpo.plan.forecast import Plan, make_plan
from grpo.plan.hardware import GIB, this_card
from grpo.plan.plan import check_fits, resolve_quant
from grpo.plan.text import describe
from grpo.problems import draw, ground_truth, load_problems, locate, prompt_text, read_data
from grpo.run import files
from grpo.run.terminal import printable
from rewards import make_reward, self_test, weight_warnings


def check(config: Config, device: torch.device) -> int:
    """Prints what would run and everything that is wrong with it. 1 if the run would fail, else 0."""
    print(short(config))
    failures: list[str] = []
    plan: list[Plan] = []

    def section(name: str, lines: Callable[[], Iterator[str]]) -> None:
        try:
            for line in lines():
                print(f"{name:9} {printable(line)}")
                name = ""
        except (UserError, ValueError, OSError) as error:
            failures.append(str(error))
            print(f"{name:9} FAILS: {printable(str(error))}")

    def planned() -> Iterator[str]:
        settled, note = resolve_quant(config, this_card(device))
        plan.append(make_plan(settled, this_card(device)))
        yield from describe(plan[0]).removeprefix("plan: ").splitlines()
        if note:
            yield note
        check_fits(plan[0])

    section("versions", _versions)
    section("machine", lambda: _machine(config, device))
    section("model", lambda: _model(config))
    section("data", lambda: _data(config))
    section("reward", lambda: _reward(config))
    section("plan", planned)
    for line in traps.problems(plan[0]) if plan else traps.environment_problems(config):
        failures.append(line)
        print(f"problem   {printable(line)}")
    for line in traps.warnings(plan[0]) if plan else []:
        print(f"warning   {printable(line)}")
    print(f"{len(failures)} problem{'s' * (len(failures) != 1)}: the run would fail" if failures else "ready to run")
    return int(bool(failures))


def _versions() -> Iterator[str]:
    found = files.versions()
    yield ", ".join(f"{name} {found[name]}" for name in ("python", *files.PACKAGES) if name in found)
    yield f"commit {found['commit']}" if "commit" in found else "no git commit"


def _machine(config: Config, device: torch.device) -> Iterator[str]:
    memory = psutil.virtual_memory()
    found = files.versions()
    free, total = memory.available / GIB, memory.total / GIB
    yield f"{found['cpu']}, {found['cpu_cores']} cores, {free:.1f} of {total:.1f} GiB free"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        yield f"{torch.cuda.get_device_name(device)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    else:
        yield "no GPU is used" + (": torch sees no CUDA device" if not torch.cuda.is_available() else "")
    there = traps.existing_parent(Path(config.out))
    yield f"disk: {shutil.disk_usage(there).free / GIB:.1f} GiB free under {config.out}"


def _model(config: Config) -> Iterator[str]:
    if Path(config.model).is_dir():
        yield f"{config.model}: a folder of {_size(config.model) / GIB:.2f} GiB"
    elif traps.is_cached(config.model):
        yield f"{config.model}: in the Hugging Face cache"
    else:
        url = hf_hub_url(config.model, "config.json")
        try:
            urlopen(Request(url, method="HEAD", headers=build_hf_headers()), timeout=10).close()
        except OSError as error:
            raise UserError(
                f"{config.model} is not on this machine, and {url} cannot be read ({error}); check the name and the "
                "network, or give a local folder"
            ) from error
        yield f"{config.model}: not on this machine; the run will download it"


def _size(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _data(config: Config) -> Iterator[str]:
    """Every file of the run: rows, checksum, ground truths, and with a tokenizer at hand the prompts' lengths."""
    prompt_text(config.prompt)
    tokenizer = _tokenizer(config)
    for name in dict.fromkeys(filter(None, [config.data, config.eval.data, config.eval.test])):
        path = locate(name, config.data_dir)
        rows = read_data(path)
        checksum = "" if Path(name).is_file() else f", sha256 {find_source(name).sha256[:12]} verified"
        if tokenizer is None:
            yield f"{name}: {len(rows)} rows{checksum}; prompts are measured once the model's tokenizer is here"
            continue
        problems = load_problems(name, tokenizer, config.prompt, config.rollout.max_prompt_tokens, config.data_dir)
        longest = max(len(problem.prompt_ids) for problem in problems)
        limit = config.rollout.max_prompt_tokens
        yield f"{name}: {len(rows)} rows{checksum}; longest prompt {longest} of {limit} tokens"
        if name == config.data:
            draw(problems, config.rollout.problems, config.seed, step=1)


def _tokenizer(config: Config):
    """The model's, if it is on this machine."""
    try:
        return AutoTokenizer.from_pretrained(
            config.model, local_files_only=True, trust_remote_code=config.policy.trust_remote_code
        )
    except (OSError, ValueError, KeyError):
        return None


def _reward(config: Config) -> Iterator[str]:
    """The self-test that a run starts with, on the data's own ground truths. hybrid's reward model is not loaded."""
    weights = (config.reward.alpha, config.reward.beta, config.reward.gamma)
    name = "multi_signal" if config.reward.name == "hybrid" else config.reward.name
    reward = make_reward(name, weights=weights, workers=1, timeout_s=config.reward.timeout_s)
    try:
        rows = read_data(locate(config.data, config.data_dir))
        truths = {ground_truth(row, f"{config.data}, row {index}") for index, row in enumerate(rows)}
        self_test(reward, sorted(truths))
        terms = " + ".join(f"{weight:g} {signal}" for signal, weight in reward.weights.items())
        yield f"{config.reward.name}: {terms}; self-test passed on {len(truths)} ground truth{'s' * (len(truths) != 1)}"
        yield from weight_warnings(reward.weights)
    finally:
        reward.close()
