"""Six exercises, each one file with a blank and the text above it. `make exercises` says what is right and what is not.

Read the text, replace the `...` by your code, run `make exercises` (or `python -m exercises 1` for one of them). The
solutions are in exercises/solutions/; `python -m exercises --solutions` runs them.
"""
