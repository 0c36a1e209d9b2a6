"""Models on this machine and on the hub: the cached ones, the files of their weights, the base of an adapter.

Availability is checked once, before anything is loaded: Hugging Face's client itself tries for half a minute.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import threading
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from http.client import HTTPException
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any
from urllib.error import HTTPError

from safetensors import SafetensorError, safe_open

from data import sources
from grpo.errors import UserError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
ADAPTER, ADAPTER_WEIGHTS, ORIGIN = "adapter_config.json", "adapter_model.safetensors", "base.json"
PIECE = 2**26
"""Bytes of a weights file that are hashed at a time, by one thread"""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
PATIENCE_S = 3.0


def located(name: str, run: Path) -> str:
    """A file or folder that a run's settings name from where the run was started; any other name as it is."""
    places = (Path(), *run.absolute().parents, Path(__file__).parents[1])
    return next((str(place / name) for place in places if (place / name).exists()), name)


def require(models: Iterable[str], sets: Iterable[str] = (), data_dir: str | None = None) -> None:
    """Raises UserError where `missing` finds something."""
    if line := missing(models, sets, data_dir):
        raise UserError(line)


def missing(models: Iterable[str], sets: Iterable[str] = (), data_dir: str | None = None) -> str:
    """One line that names the models and data sets to fetch, and how, where there is no network; else nothing.

    Without a network, cached models are used and Hugging Face's client is told not to ask for newer ones.
    """
    elsewhere = [model for model in models if not Path(model).exists()]
    if nowhere := [name for name in elsewhere if name.startswith((".", "/")) or name.count("/") > 1]:
        return f"there is no folder {nowhere[0]}; give one that holds a model, or a Hugging Face id as owner/name"
    if runs := [name for name in elsewhere if Path("runs", name).is_dir()]:
        return f"there is no folder {runs[0]}; did you mean runs/{runs[0]}?"
    if not elsewhere or reachable():
        return ""
    variable = _told_offline()
    reason = f"{variable} is set" if variable else f"{_endpoint()} cannot be reached"
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
    if "huggingface_hub.constants" in sys.modules:  # which have been read from the environment already
        constants: Any = sys.modules["huggingface_hub.constants"]
        constants.HF_HUB_OFFLINE = True


def is_cached(model: str) -> bool:
    """True where this machine holds the hub's copy of this model with its weights."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(model, name), str) for name in WEIGHTS)


def weights_problem(folder: Path) -> str | None:
    """The first file of a model folder's weights that is missing or cut off, among those that transformers would read:
    it takes safetensors first."""
    if not folder.is_dir():
        return None
    try:
        paths = weight_files(str(folder))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{folder / WEIGHTS[1]} is cut off or damaged ({error}): copy or download it again"
    for path in paths:
        if path.suffix == ".bin":
            continue
        if not path.is_file():
            return f"{folder} has no {path.name}: copy or download the model again"
        try:
            safe_open(path, "pt")  # reads the header, which holds the file's length
        except SafetensorError as error:
            return f"{path} is cut off or damaged ({error}): copy or download it again"
    return None


def weight_files(model: str) -> list[Path]:
    """The files with a model's or an adapter's weights that transformers reads, in a folder or the hub's cache; sorted.

    Empty for a hub id that is not on this machine. ValueError and its like for a damaged index.
    """
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = [path for name in WEIGHTS if isinstance(path := try_to_load_from_cache(model, name), str)]
        if not cached:
            return []
        folder = Path(cached[0]).parent
    if (folder / ADAPTER).is_file():
        return [folder / ADAPTER_WEIGHTS]
    whole, index, pickled = (folder / name for name in WEIGHTS)
    if index.is_file():
        return sorted(folder / name for name in set(json.loads(index.read_text())["weight_map"].values()))
    return [pickled] if pickled.is_file() and not whole.is_file() else [whole]


def weights_digest(model: str) -> str:
    """SHA-256 over the content of a model's weight files; empty where they are not on this machine."""
    digests = [_digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(model)]
    return hashlib.sha256(b"".join(digests)).hexdigest() if digests else ""


@cache
def _digest(path: Path, size: int, _changed: int) -> bytes:
    """SHA-256 of a file's pieces, each hashed by a thread: 3 GB take a second on two cores."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
        ThreadPoolExecutor() as threads,
    ):
        pieces = (view[start : start + PIECE] for start in range(0, size, PIECE))
        return hashlib.sha256(b"".join(threads.map(_sha256, pieces))).digest()


def _sha256(piece: memoryview) -> bytes:
    with piece:
        return hashlib.sha256(piece).digest()


# ---- LoRA adapters: a folder of PEFT's, with the digest of its base beside it


def base_of(model: str) -> str:
    """The model itself or, of an adapter's folder, the model that it was trained on.

    A relative folder is looked for from here and from every folder above the adapter. UserError where it is missing,
    and where its weights are not those that the adapter was trained on.
    """
    config = Path(model) / ADAPTER
    if not config.is_file():
        return model
    base = json.loads(config.read_text()).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{config} does not name base_model_name_or_path; add the model the adapter was trained on")
    places = list(dict.fromkeys([Path(base).absolute(), *(place / base for place in Path(model).absolute().parents)]))
    folders = [str(place) for place in places if place.is_dir()]
    origin = read_origin(model)
    if not folders and (origin.get("folder") or Path(base).is_absolute()):
        looked = ", ".join(map(str, places))
        raise UserError(
            f"the adapter {model} was trained on the model in {base}, which is not there; looked for {looked}"
        )
    candidates = folders or [base]
    for candidate in candidates:
        if weights_digest(candidate) in ("", origin.get("sha256", weights_digest(candidate))):
            return candidate
    raise UserError(
        f"the adapter {model} was trained on other weights than those of {', '.join(candidates)} (sha256 "
        f"{origin['sha256'][:12]}); bring its base back, or delete {ORIGIN} from the adapter to use it on this one"
    )


def read_origin(model: str) -> dict[str, Any]:
    """Of an adapter that this trainer wrote: its base's `sha256`, whether that was a `folder`, and the `dtype` and the
    `quant` of the weights that it was trained on. Empty for any other model."""
    path = Path(model) / ORIGIN
    return json.loads(path.read_text()) if path.is_file() else {}


def write_origin(folder: Path, base: str, digest: str, dtype: str, quant: str) -> None:
    origin = {"sha256": digest, "folder": Path(base).is_dir(), "dtype": dtype, "quant": quant}
    (folder / ORIGIN).write_text(json.dumps(origin, indent=1))


def reachable() -> bool:
    """True where the hub answers within three seconds, through the proxy where the environment names one."""
    if _told_offline():
        return False
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(_answers()), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)  # urllib's timeout is for each address, and does not cover a name server that hangs
    return found == [True]


def _answers() -> bool:
    """True where the hub answers, be it with an error, or with a certificate that Python's own list does not know."""
    try:
        urllib.request.urlopen(urllib.request.Request(_endpoint(), method="HEAD"), timeout=PATIENCE_S).close()
    except HTTPError:
        return True
    except (OSError, HTTPException, ValueError) as error:
        return isinstance(getattr(error, "reason", None), SSLCertVerificationError)
    return True


def _told_offline() -> str:
    """The environment variable that forbids the network; "" where none does."""
    return next((name for name in OFFLINE if os.environ.get(name, "0").lower() not in ("", "0", "false", "no")), "")


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _to_be_fetched(name: str, data_dir: str | None) -> bool:
    """A published set by its bare name that is not on this machine yet."""
    known = sources.SOURCES.get(Path(name).stem)
    return known is not None and not Path(name).exists() and sources.locate(known, data_dir) is None
