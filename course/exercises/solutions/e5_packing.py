"""`first` is the index of the sequence's first completion token; its predictor is one before it."""


def pack(sequences):
    input_ids, position_ids, predictors, targets = [], [], [], []
    for prompt, completion in sequences:
        first = len(input_ids) + len(prompt)
        input_ids += [*prompt, *completion]
        position_ids += range(len(prompt) + len(completion))
        predictors += range(first - 1, first - 1 + len(completion))
        targets += completion
    return input_ids, position_ids, predictors, targets
