"""Accuracy that can be trusted: the papers' benchmarks, two ways of grading, intervals, and figures during training."""
