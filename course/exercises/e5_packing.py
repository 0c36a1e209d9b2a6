"""Exercise 5: packing, and the shift by one.

Completions have different lengths. Padding them to the longest wastes time, so they are laid end to end in one row,
and the attention is told where each sequence begins. A sequence is a prompt followed by its completion. With

    prompt (11, 12, 13), completion (21, 22)    and    prompt (14, 15), completion (31, 32, 33)

the row is

    index          0   1   2   3   4     5   6   7   8   9
    input_ids     11  12  13  21  22    14  15  31  32  33
    position_ids   0   1   2   3   4     0   1   2   3   4      each sequence counts from 0

The loss needs the log-probability of each completion token: these are the targets. The model's output at an index is
its prediction of the *next* token. So the output that predicts a target stands one index before it. The first
completion token is predicted by the last prompt token:

    targets       21  22  31  32  33      all completion tokens, and no prompt token
    predictors     2   3   6   7   8      the index in the row whose output predicts each target

The last token of a sequence (22 above, at index 4) predicts nothing: what follows it in the row belongs to another
sequence. The stop token is the last token of a completion and a target like any other.

In the repository: grpo/packing.py, pack. (It also lays a prompt that several completions share down only once.)
"""

Sequence = tuple[tuple[int, ...], tuple[int, ...]]


def pack(sequences: list[Sequence]) -> tuple[list[int], list[int], list[int], list[int]]:
    """[(prompt ids, completion ids), ...] -> input_ids, position_ids, predictors, targets, in this order, as lists."""
    ...  # your code here
