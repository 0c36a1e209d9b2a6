"""A driver that torch cannot use is named; nobody trains on a CPU for hours because of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from grpo.errors import UserError
from grpo.settings import build, parse
from train import choose_device

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a usable GPU")
def test_a_driver_without_a_device_is_no_machine_without_a_gpu(tmp_path: Path):
    driver = tmp_path / "version"
    assert choose_device(parse({}), driver) == CPU  # no such file: no driver
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14\nGCC version: 12\n")
    with pytest.raises(UserError, match=r"sees no CUDA device: .*550\.54\.14\).*--device cpu"):
        choose_device(parse({}), driver)
    assert choose_device(parse({"device": "cpu"}), driver) == CPU
    assert choose_device(build("cpu", {}), driver) == CPU
