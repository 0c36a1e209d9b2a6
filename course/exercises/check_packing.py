"""The check of exercise 5: each of the four lists is compared, first what stands in the row, then what points at it."""

from __future__ import annotations

from course.exercises.judge import Wrong, call, shown


def pack(sequences, *, restart=True, shift=-1, absolute=True, prompts=True, first=0, last=None, prompt_targets=False):
    """The right packing, and with each argument a wrong one."""
    ids, positions, predictors, targets = [], [], [], []
    for prompt, completion in sequences:
        start = len(ids)
        length = len(prompt) + len(completion)
        ids += [*(prompt if prompts else ()), *completion]
        positions += range(length) if restart is True else [*range(len(prompt)), *range(len(completion))]
        begin = 1 if prompt_targets else len(prompt)
        kept = range(begin, length)[first:last]
        predictors += [(start if absolute else 0) + i + shift for i in kept]
        targets += [(*prompt, *completion)[i] for i in kept]
    return ids, list(range(len(ids))) if restart is None else positions, predictors, targets


def check_packing(module) -> None:
    pieces = ("input_ids", "position_ids", "predictors", "targets")
    wrong = {
        "input_ids": {
            "input_ids: the prompts are missing; the model has to read them": lambda s: pack(s, prompts=False),
            "input_ids: all prompts come first and all completions after them; keep each sequence together": lambda s: (
                [*(i for p, _ in s for i in p), *(i for _, c in s for i in c)],
            ),
        },
        "position_ids": {
            "position_ids: they count through the whole row; each sequence counts from 0": lambda s: pack(
                s, restart=None
            ),
            "position_ids: they start again at the completion; it goes on counting where its prompt ended": lambda s: (
                pack(s, restart=False)
            ),
            "position_ids: they count from 1; the first position is 0": lambda s: (None, [p + 1 for p in pack(s)[1]]),
        },
        "targets": {
            "targets: prompt tokens are among them; the model did not choose those": lambda s: pack(
                s, prompt_targets=True
            ),
            "targets: the last token of each completion is missing; it is the stop token, which has to be learned": (
                lambda s: pack(s, last=-1)
            ),
            "targets: the first token of each completion is missing; the last prompt token predicts it": lambda s: pack(
                s, first=1
            ),
            "targets: this is the whole row; only completion tokens are targets": lambda s: (0, 0, 0, pack(s)[0]),
        },
        "predictors": {
            "predictors: they point at the targets themselves; the output one index before predicts them": lambda s: (
                pack(s, shift=0)
            ),
            "predictors: they are shifted to the right; a token is predicted by the one before it": lambda s: pack(
                s, shift=1
            ),
            "predictors: they are shifted by two; one before the target is enough": lambda s: pack(s, shift=-2),
            "predictors: they count within each sequence; they are indices in the whole row": lambda s: pack(
                s, absolute=False
            ),
        },
    }
    cases = [
        [((11, 12, 13), (21, 22)), ((14, 15), (31, 32, 33))],
        [((5,), (6,)), ((7, 8, 9, 10), (1, 2, 3)), ((4, 4), (4, 4))],
    ]
    found = [call(module.pack, case) for case in cases]
    for result in found:
        if not isinstance(result, tuple | list) or len(result) != 4:
            raise Wrong(f"pack should return four lists, {', '.join(pieces)}; it returned {shown(result)}")
    found = [[list(piece) for piece in result] for result in found]
    for name in ("input_ids", "position_ids", "targets", "predictors"):
        i = pieces.index(name)
        if all(result[i] == pack(case)[i] for result, case in zip(found, cases, strict=True)):
            continue
        for words, formula in wrong[name].items():
            if all(result[i] == formula(case)[i] for result, case in zip(found, cases, strict=True)):
                raise Wrong(words)
        case, result = next((c, r) for c, r in zip(cases, found, strict=True) if r[i] != pack(c)[i])
        raise Wrong(f"{name}: for {case} it should be {pack(case)[i]}, but it is {result[i]}")
