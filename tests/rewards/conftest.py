"""Properties are tested without a deadline: the first example of a run imports sympy."""

from hypothesis import settings

settings.register_profile("rewards", deadline=None)
settings.load_profile("rewards")
