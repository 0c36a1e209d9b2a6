"""Carries a test environment to a GPU machine without a network, where single files are limited to 60 MiB.

    python benchmarks/kit.py pack --out kit --have freeze.txt vllm==0.26.0        # here, where there is a network
    python benchmarks/kit.py pack --out kit --model models/smollm2
    python benchmarks/kit.py join kit --to /tmp/kit                               # there
    PYTHONPATH=/tmp/kit/site python benchmarks/gpu.py --minutes 13 --model /tmp/kit/model

`pack` fetches what the named packages need and freeze.txt (pip freeze of that machine) lacks, strips the libraries, and
writes parts with a list of their sha256. `join` checks every part before it unpacks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

PART_BYTES = 60 * 2**20
MANIFEST = "manifest.json"


class Parts:
    """A file-like target that writes one stream as numbered parts of equal size."""

    def __init__(self, folder: Path, name: str, size: int):
        self.folder, self.name, self.size = folder, name, size
        self.digests: dict[str, str] = {}
        self._buffer = bytearray()

    def write(self, data: bytes) -> int:
        self._buffer += data
        while len(self._buffer) >= self.size:
            self._emit(bytes(self._buffer[: self.size]))
            del self._buffer[: self.size]
        return len(data)

    def close(self) -> None:
        if self._buffer:
            self._emit(bytes(self._buffer))

    def _emit(self, content: bytes) -> None:
        part = f"{self.name}.{len(self.digests):03}"
        (self.folder / part).write_bytes(content)
        self.digests[part] = hashlib.sha256(content).hexdigest()


def pack(folder: Path, out: Path, name: str, size: int = PART_BYTES) -> dict[str, str]:
    """Writes `folder` as parts under `out` and adds their digests to the manifest. Returns part -> sha256."""
    out.mkdir(parents=True, exist_ok=True)
    parts = Parts(out, name, size)
    with tarfile.open(fileobj=parts, mode="w|gz") as archive:
        archive.add(folder, name)
    parts.close()
    manifest = read_manifest(out)
    kept = {part: digest for part, digest in manifest.items() if part.rpartition(".")[0] != name}
    (out / MANIFEST).write_text(json.dumps(kept | parts.digests, indent=1))
    return parts.digests


def join(kit: Path, to: Path) -> None:
    """Unpacks every archive of the kit. Raises ValueError naming the first part that is missing or damaged."""
    manifest = read_manifest(kit)
    for part, digest in manifest.items():
        path = kit / part
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{path} is missing or damaged: bring it again")
    for name in dict.fromkeys(part.rpartition(".")[0] for part in manifest):
        with tempfile.TemporaryFile() as whole:
            for part in sorted(part for part in manifest if part.rpartition(".")[0] == name):
                append(whole, kit / part)
            whole.seek(0)
            with tarfile.open(fileobj=whole, mode="r:gz") as archive:
                archive.extractall(to, filter="data")


def append(whole: BinaryIO, path: Path) -> None:
    with path.open("rb") as part:
        shutil.copyfileobj(part, whole)


def read_manifest(kit: Path) -> dict[str, str]:
    path = kit / MANIFEST
    return json.loads(path.read_text()) if path.is_file() else {}


def fetch_packages(packages: Iterable[str], have: Path | None, site: Path) -> list[str]:
    """Installs into `site` what the packages need and the machine lacks; returns their names and versions."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        resolve = [*pip, "install", "--dry-run", "--ignore-installed", "--quiet", "--report", report.name, *packages]
        subprocess.run(resolve, check=True)
        plan = json.loads(Path(report.name).read_text())
    present = installed_names(have.read_text()) if have else set()
    wanted = [item["metadata"] for item in plan["install"] if plain(item["metadata"]["name"]) not in present]
    pins = [f"{item['name']}=={item['version']}" for item in wanted]
    if pins:
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(site), *pins], check=True)
    return pins


def installed_names(freeze: str) -> set[str]:
    return {plain(re.split(r"[=@ ]", line)[0]) for line in freeze.splitlines() if line and not line.startswith("#")}


def plain(name: str) -> str:
    """PyPI's normal form of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def strip_libraries(site: Path) -> None:
    """Removes symbols that no import needs."""
    for library in site.rglob("*.so*"):
        subprocess.run(["strip", "--strip-unneeded", str(library)], check=False, stderr=subprocess.DEVNULL)


def main(argv: list[str]) -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = cli.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("packages", nargs="*")
    packing.add_argument("--have", type=Path, help="pip freeze of the other machine")
    packing.add_argument("--model", type=Path, help="a model's folder")
    packing.add_argument("--out", type=Path, default=Path("kit"))
    joining = commands.add_parser("join")
    joining.add_argument("kit", type=Path)
    joining.add_argument("--to", type=Path, required=True)
    args = cli.parse_args(argv)
    if args.command == "join":
        return join(args.kit, args.to)
    if args.packages:
        with tempfile.TemporaryDirectory() as folder:
            site = Path(folder) / "site"
            print("packages:", *fetch_packages(args.packages, args.have, site))
            strip_libraries(site)
            print("parts:", *pack(site, args.out, "site"))
    if args.model:
        print("parts:", *pack(args.model, args.out, "model"))


if __name__ == "__main__":
    main(sys.argv[1:])
