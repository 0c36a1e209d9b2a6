"""Is an answer mathematically the ground truth?

plain.py decides what needs no algebra: the same text, or two numbers. For the rest server.py asks compare.py (shapes
and words) and algebra.py (sympy), in processes that can be killed. text.py, units.py, kinds.py, shape.py and grammar.py
read; tables.yaml holds their spellings, units and words.
"""
