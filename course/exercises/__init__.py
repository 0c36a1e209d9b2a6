"""Seven exercises, each one file with a blank and the text above it. `make exercises` reports which are right.

Read the text, replace the `...` with your code, run `make exercises` (or `python -m course.exercises 1` for one). The
solutions are in course/exercises/solutions/; `python -m course.exercises --solutions` runs them.
"""
