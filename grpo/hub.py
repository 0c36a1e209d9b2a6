"""Models on this machine and on the hub: the cached ones, the files of their weights, the base of an adapter.

Availability is checked once, before anything is loaded, because Hugging Face's client retries for half a minute.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import prompts
from data import rows, sources, tasks
from grpo.errors import UserError

ADAPTER, ADAPTER_WEIGHTS, ORIGIN = "adapter_config.json", "adapter_model.safetensors", "base.json"
MANIFEST = "manifest.json"
"""Of a checkpoint: the size and SHA-256 of its files"""
PATIENCE_S = 3.0


def places(name: str, start: Path, fits: Callable[[Path], bool] = Path.is_dir) -> list[str]:
    """Paths of this name that are a folder, or that `fits` accepts.

    Relative names are tried from the current folder, from each parent of `start` and from the repository.
    """
    roots = (Path(), *start.absolute().parents, Path(__file__).parents[1])
    return [str(root / name) for root in roots if fits(root / name)]


def located_folder(name: str, run: Path) -> str:
    """Resolves a folder in a run's settings, wherever this command runs; returns other names unchanged."""
    return next(iter(places(name, run)), name)


def located_prompt(name: str, run: Path) -> str:
    """The same for a system message in a text file. A name of prompts/ stays a name, as in `prompts.load`."""
    return name if name in prompts.NAMES else next(iter(places(name, run, Path.is_file)), name)


def located_data(name: str, run: Path) -> str:
    """The same for a data file, or a data set in a folder. The name of a published set or of a task stays a name.

    So does owner/name:config:split: it is the hub's, even if a folder is called owner/name.
    """
    if Path(name).suffix in rows.READERS:
        return next(iter(places(name, run, Path.is_file)), name)
    folder, colon, rest = name.partition(":")
    of_hub = colon and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", folder)
    if of_hub or name in sources.SOURCES or name.startswith(tasks.PREFIX):
        return name
    return located_folder(folder, run) + colon + rest


def located_benchmark(name: str, run: Path) -> str:
    """The same for held-out data. A bare name is a benchmark's, even if a folder has it too."""
    bare = Path(name).suffix not in rows.READERS and not {"/", ":"} & set(name)
    return name if bare else located_data(name, run)


def require(models: Iterable[str], sets: Iterable[str] = (), data_dir: str | None = None) -> None:
    """Raises UserError with the line of `missing`, if any."""
    if line := missing(models, sets, data_dir):
        raise UserError(line)


def missing(models: Iterable[str], sets: Iterable[str] = (), data_dir: str | None = None) -> str:
    """Returns a line with the models and data sets to fetch, and how, if there is no network; else "".

    Without a network, cached models are used, and Hugging Face's client is told not to look for newer ones.
    """
    elsewhere = [model for model in models if not Path(model).exists()]
    if nowhere := [name for name in elsewhere if name.startswith((".", "/")) or name.count("/") > 1]:
        return f"there is no folder {nowhere[0]}; give one that holds a model, or a Hugging Face id as owner/name"
    if runs := [name for name in elsewhere if Path("runs", name).is_dir()]:
        return f"there is no folder {runs[0]}; did you mean runs/{runs[0]}?"
    if not elsewhere or reachable():
        return ""
    from huggingface_hub import constants, is_offline_mode

    reason = f"{constants.ENDPOINT} cannot be reached"
    if is_offline_mode():
        reason = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    go_offline()
    elsewhere = [model for model in elsewhere if not is_cached(model)]
    if not elsewhere:
        return ""
    sets = list(dict.fromkeys(Path(name).stem for name in sets if _to_be_fetched(name, data_dir)))
    commands = [f"hf download {model}" for model in elsewhere]
    commands += [f"python -m data fetch {' '.join(sets)}"] if sets else []
    return (
        f"not on this machine: {', '.join([*elsewhere, *sets])}, and {reason}. Where there is a network, "
        f"{' && '.join(commands)}; then copy the downloaded files to this machine, or name a model's folder by --model"
    )


def go_offline() -> None:
    """Tells Hugging Face's clients, `datasets` too, to use the files on this machine and to send no request."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "huggingface_hub.constants" in sys.modules:  # it has read the environment already
        constants: Any = sys.modules["huggingface_hub.constants"]
        constants.HF_HUB_OFFLINE = True


def is_cached(model: str) -> bool:
    """True if the hub's cache on this machine has the weights of this model."""
    return bool(weight_files(model))


def weight_files(model: str) -> list[Path]:
    """The files with the weights of a model or an adapter, in a folder or the hub's cache; sorted.

    Prefers safetensors, as transformers does. Empty for a hub id that is not on this machine.
    """
    from huggingface_hub import try_to_load_from_cache

    folder = Path(model)
    if not folder.is_dir():
        config = try_to_load_from_cache(model, "config.json")
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def weights_digest(model: str) -> str:
    """SHA-256 over the content of a model's weight files; empty if they are not on this machine."""
    digests = [_digest(path, path.stat().st_mtime_ns) for path in weight_files(model)]
    return hashlib.sha256(b"".join(digests)).hexdigest() if digests else ""


@cache
def _digest(path: Path, _changed: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# ---- LoRA adapters: a folder of PEFT's, with the digest of its base beside it


def base_of(model: str) -> str:
    """The model itself or, for an adapter's folder, the model that the adapter was trained on.

    A relative folder is looked for here and in every folder above the adapter. Raises UserError if it is missing or
    holds other weights than those that the adapter was trained on.
    """
    config = Path(model) / ADAPTER
    if not config.is_file():
        return model
    base = json.loads(config.read_text()).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{config} does not name base_model_name_or_path; add the model the adapter was trained on")
    origin = read_origin(model)
    folders = [str(Path(place).absolute()) for place in places(base, Path(model))]
    if not folders and (origin.get("folder") or Path(base).is_absolute()):
        raise UserError(
            f"the adapter {model} was trained on the model in {base}, which is not there; put it into this folder, or "
            "into one above the adapter"
        )
    digest = origin.get("sha256")
    for candidate in folders or [base]:
        if digest is None or weights_digest(candidate) in ("", digest):
            return candidate
    raise UserError(
        f"the adapter {model} was trained on other weights than those of {', '.join(folders or [base])} (sha256 "
        f"{str(digest)[:12]}); bring its base back, or delete {ORIGIN} from the adapter to use it on this one"
    )


def check_base(model: str) -> None:
    """Raises UserError if loading a model brought a base from the hub that the adapter was not trained on."""
    base_of(model)


def read_origin(model: str) -> dict[str, Any]:
    """For an adapter of this trainer: its base's `sha256`, whether that was a `folder`, and the `dtype` and `quant` of
    its training. Empty for any other model."""
    path = Path(model) / ORIGIN
    return json.loads(path.read_text()) if path.is_file() else {}


def write_origin(folder: Path, base: str, digest: str, dtype: str, quant: str) -> None:
    origin = {"sha256": digest, "folder": Path(base).is_dir(), "dtype": dtype, "quant": quant}
    (folder / ORIGIN).write_text(json.dumps(origin, indent=1))


def reachable() -> bool:
    """True if the hub answers Hugging Face's own client within three seconds, even with an error."""
    from huggingface_hub import constants, is_offline_mode
    from huggingface_hub.utils import get_session

    if is_offline_mode():
        return False
    answers: list[object] = []

    def ask() -> None:
        with suppress(Exception):  # any exception: no answer
            answers.append(get_session().head(constants.ENDPOINT, timeout=PATIENCE_S))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)  # the client's timeout does not cover a name server that hangs
    return bool(answers)


def _to_be_fetched(name: str, data_dir: str | None) -> bool:
    """True for a published set, named without a path, that is not on this machine yet."""
    known = sources.SOURCES.get(Path(name).stem)
    return known is not None and not Path(name).is_file() and sources.locate(known, data_dir) is None
