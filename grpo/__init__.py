"""GRPO in plain PyTorch: one process, one GPU. `train.py` is the algorithm; everything here is one small job each."""

__version__ = "0.1.0"
