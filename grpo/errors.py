"""The exceptions that a person is meant to read: entry points print their line instead of a traceback."""


class UserError(ValueError):
    """Bad input, exit code 2. The message is one line: the value, the limit, and what to do about it."""


class TrainingStopped(RuntimeError):
    """Going on would only waste time, exit code 1. The message is one line with the likely causes."""


class SamplerMismatch(TrainingStopped):
    """The sampler did not draw from the policy that is being trained."""


class NonFiniteLoss(TrainingStopped):
    """Too many optimiser steps in a row without a finite loss and gradient."""
