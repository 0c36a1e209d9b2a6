"""The exception that means "the input was wrong": entry points print its line and exit with code 2. And one that never
may be ignored: the sampler and the trainer disagree."""


class UserError(ValueError):
    """Bad input. The message is one line: the value, the limit, and what to do about it."""


class SamplerMismatch(RuntimeError):
    """The sampler did not draw from the policy that is being trained."""
