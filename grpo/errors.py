"""The one exception that means "the input was wrong": entry points print its line and exit with code 2."""


class UserError(ValueError):
    """Bad input. The message is one line: the value, the limit, and what to do about it."""
