"""Is an answer mathematically the ground truth? `judge(answer, truth)` says, and nothing else needs to be called.

From the outside in: judge.py, compare.py (shapes), shape.py, leaf.py and numbers.py (no sympy), grammar.py and
algebra.py (sympy). workers.py asks `judge` in processes that can be killed.
"""
