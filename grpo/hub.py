"""What a run needs from elsewhere: is it on this machine, and if not, is there a network to fetch it by?

Asked once and before anything is loaded. Left to itself, Hugging Face's client tries for half a minute.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from ssl import SSLCertVerificationError
from urllib.error import HTTPError

from safetensors import SafetensorError, safe_open

from data import sources
from grpo.errors import UserError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
PATIENCE_S = 3.0


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
    if not elsewhere or reachable():
        return ""
    told = _told_offline()
    reason = f"{told} is set" if told else f"{_endpoint()} cannot be reached"
    go_offline()
    elsewhere = [model for model in elsewhere if not is_cached(model)]
    if not elsewhere:
        return ""
    sets = list(dict.fromkeys(Path(name).stem for name in sets if _to_be_fetched(name, data_dir)))
    commands = [f"hf download {model}" for model in elsewhere]
    commands += [f"python -m data fetch {' '.join(sets)}"] if sets else []
    return (
        f"not on this machine: {', '.join([*elsewhere, *sets])}, and {reason}. Where there is a network, "
        f"{' && '.join(commands)}; then copy here what these say they wrote, or name a model's folder by --model"
    )


def go_offline() -> None:
    """Tells Hugging Face's clients, `datasets` too, to use what is on this machine and to ask for nothing."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "huggingface_hub.constants" in sys.modules:  # which have been read from the environment already
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = True


def is_cached(model: str) -> bool:
    """Whether the hub's copy of this model is on this machine, weights and all."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(model, name), str) for name in WEIGHTS)


def weights_problem(folder: Path) -> str | None:
    """The first file of a model folder's weights that is missing or cut off, among those that transformers would read:
    it takes safetensors first."""
    whole, index, pickled = (folder / name for name in WEIGHTS)
    if not folder.is_dir() or (pickled.is_file() and not whole.is_file() and not index.is_file()):
        return None
    try:
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {whole.name}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{index} is cut off or damaged ({error}): copy or download it again"
    for path in sorted(folder / name for name in names):
        if not path.is_file():
            return f"{folder} has no {path.name}: copy or download the model again"
        try:
            safe_open(path, "pt")  # reads the header, which says how long the file is
        except SafetensorError as error:
            return f"{path} is cut off or damaged ({error}): copy or download it again"
    return None


def reachable() -> bool:
    """Whether the hub answers within three seconds, through the proxy where the environment names one."""
    if _told_offline():
        return False
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(_answers()), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)  # urllib's timeout is for each address, and does not cover a name server that hangs
    return found == [True]


def _answers() -> bool:
    """Whether the hub answers, with an error too, or with a certificate that Python's own list does not know."""
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
