"""Decides whether an answer is mathematically the ground truth, in this order:

1. plain.py: identical text, or two exact rational numbers. server.py runs the rest, compare.py, in killable processes.
2. text.py: one spelling for TeX, Unicode and Python.
3. kinds.py: the kind of a text (date, ratio, word, ...), before letters become operators.
4. shape.py: list, set, tuple, interval, matrix, relation; compared part by part.
5. units.py: a value and its unit. A word that is not a known unit makes the answer another text.
6. grammar.py and algebra.py: math-verify's grammar and sympy. Sums, limits and infinity are compared as text.

tables.yaml holds spellings, units and words.
"""
