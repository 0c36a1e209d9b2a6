"""The exercises: the solutions pass, and each of the typical wrong answers fails with its own sentence."""

from __future__ import annotations

import ast
import importlib
import random
from types import SimpleNamespace

import pytest
import torch
from tiny_model import REPO

from course.exercises.__main__ import EXERCISES, FUNCTIONS, load, main
from course.exercises.check_reward import check_cheap, check_repaired
from course.exercises.judge import Wrong
from course.exercises.solutions import e3_normaliser, e6_hacked_reward

minimum, maximum = torch.minimum, torch.maximum


def std(r, **options):
    return r.std(-1, keepdim=True, **options)


def dev(r):
    return r - r.mean(-1, keepdim=True)


def clipped(n, o, lo, hi):
    return (n - o).exp().clamp(1 - lo, 1 + hi)


def surrogate(ratio, a, lo, hi, take=minimum):
    return -take(ratio * a, ratio.clamp(1 - lo, 1 + hi) * a)


def flat(batches):
    return torch.cat([x[m] for x, m in batches])


def cut_k3(p, r):
    return (torch.expm1(r - p) - (r - p)).detach()


def packing(place, positions=None, keep=slice(None), targets=None):
    """A pack whose predictors are `place(start, prompt length, token)`."""

    def pack(sequences):
        ids, pos, predictors, chosen = [], [], [], []
        for prompt, completion in sequences:
            row = [*prompt, *completion]
            which = range(len(prompt), len(row))[keep] if targets is None else range(1, len(row))
            predictors += [place(len(ids), len(prompt), i) for i in which]
            chosen += [row[i] for i in which]
            pos += positions(len(prompt), len(row), len(ids)) if positions else range(len(row))
            ids += row
        return ids, pos, predictors, chosen

    return pack


def before(start, prompt, i):
    return start + i - 1


def prompts_first(sequences):
    right = packing(before)(sequences)
    return [*(i for p, _ in sequences for i in p), *(i for _, c in sequences for i in c)], *right[1:]


MUTANTS = {
    "e1_advantage": [
        (lambda r: dev(r) / (r.std(-1, keepdim=True, correction=0) + 1e-6), "population's"),
        (dev, "do not divide by the standard deviation"),
        (lambda r: dev(r) / (r.var(-1, keepdim=True) + 1e-6), "variance"),
        (lambda r: (r - r.mean()) / (r.std() + 1e-6), "are over all rewards; each group"),
        (lambda r: dev(r) / (r.std() + 1e-6), "your std is over all rewards"),
        (lambda r: (r - r.mean()) / (std(r) + 1e-6), "your mean is over all rewards"),
        (lambda r: r / (std(r) + 1e-6), "do not subtract the mean"),
        (lambda r: -dev(r) / (std(r) + 1e-6), "sign is turned"),
        (lambda r: dev(r) / std(r), "0 / 0"),
        (lambda r: dev(r) / (r.var(-1, keepdim=True) + 1e-6) ** 0.5, "under the square root"),
        (lambda r: (r - r.mean(0)) / (r.std(0) + 1e-6), "along the columns"),
        (lambda r: dev(r) / (std(r) + 1e-4), "the result should be"),
        (lambda r: (dev(r) / (std(r) + 1e-6)).mean(), "leave out the mean"),
        (lambda r: (dev(r) / (std(r) + 1e-6)).tolist(), "should be a tensor"),
        (lambda r: None, "still blank"),
        (lambda r: dev(r) / (r.std(7) + 1e-6), "raised IndexError"),
    ],
    "e2_ratio_and_clip": [
        (lambda n, o, a, lo, hi: -surrogate((n - o).exp(), a, lo, hi), "sign is turned"),
        (lambda n, o, a, lo, hi: surrogate((n - o).exp(), a, lo, hi, maximum), "take the max of"),
        (lambda n, o, a, lo, hi: -surrogate((n - o).exp(), a, lo, hi, maximum), "minus sign is missing"),
        (lambda n, o, a, lo, hi: surrogate((o - n).exp(), a, lo, hi), "old / new"),
        (lambda n, o, a, lo, hi: surrogate(n - o, a, lo, hi), "take its exp"),
        (lambda n, o, a, lo, hi: surrogate(n / o, a, lo, hi), "divides log-probabilities"),
        (lambda n, o, a, lo, hi: -clipped(n, o, lo, hi) * a, "clipped ratio alone"),
        (lambda n, o, a, lo, hi: -(n - o).exp() * a, "do not clip"),
        (lambda n, o, a, lo, hi: -minimum((n - o).exp(), clipped(n, o, lo, hi)) * a, "min of the ratios"),
        (lambda n, o, a, lo, hi: surrogate((n - o).exp(), a, hi, lo), "exchanged"),
        (lambda n, o, a, lo, hi: surrogate((n - o).exp(), a, 1 - lo, hi - 1), "to [clip_low, clip_high]"),
        (lambda n, o, a, lo, hi: surrogate((n - o).exp(), a, 1, hi), "at the top only"),
        (lambda n, o, a, lo, hi: surrogate((n - o).exp(), a, lo, 1e9), "at the bottom only"),
        (lambda n, o, a, lo, hi: surrogate((n - o).exp().detach(), a, lo, hi), "no gradient flows"),
        (lambda n, o, a, lo, hi: surrogate((n - o).exp(), a, lo, hi).mean(), "leave out the mean"),
    ],
    "e3_normaliser": [
        (lambda b: sum(x[m].mean() for x, m in b) / len(b), "averages"),
        (lambda b: sum(x[m].mean() for x, m in b), "added up the means"),
        (lambda b: torch.stack([x[i][m[i]].mean() for x, m in b for i in range(len(x))]).mean(), "each completion"),
        (lambda b: flat(b).sum(), "this is the sum"),
        (lambda b: flat(b).sum() / sum(x.shape[0] for x, _ in b), "number of completions"),
        (lambda b: flat(b).sum() / len(b), "number of micro-batches"),
        (lambda b: flat(b).sum() / sum(x.numel() for x, _ in b), "denominator counts padding"),
        (lambda b: sum(x.sum() for x, _ in b) / len(flat(b)), "sum contains the padding"),
        (lambda b: torch.cat([x.flatten() for x, _ in b]).mean(), "ignore the mask"),
        (lambda b: flat(b).sum() / b[-1][1].sum(), "last micro-batch only"),
        (lambda b: b[-1][0][b[-1][1]].mean(), "the others are lost"),
        (lambda b: b[0][0][b[0][1]].mean(), "inside the loop"),
        (lambda b: flat(b).mean().detach(), "no gradient flows"),
        (lambda b: flat(b).mean().item(), "should be a tensor"),
        (lambda b: flat(b), "should have the shape"),
    ],
    "e4_k3": [
        (lambda p, r: torch.expm1(p - r) - (p - r), "turned around"),
        (lambda p, r: p - r, "this is k1"),
        (lambda p, r: r - p, "this is d"),
        (lambda p, r: 0.5 * (p - r) ** 2, "this is k2"),
        (lambda p, r: (r - p).exp() - (r - p), "the 1 is missing"),
        (lambda p, r: (r - p).exp() - 1, "the d is missing"),
        (lambda p, r: (r - p).exp() - 1 + (r - p), "you add d"),
        (lambda p, r: 1 - (r - p).exp() + (r - p), "sign is turned"),
        (lambda p, r: torch.expm1(r - p) - 1 - (r - p), "twice"),
        (lambda p, r: r.exp() / p.exp(), "this is the ratio"),
        (lambda p, r: p.exp() * (p - r), "weigh the token"),
        (lambda p, r: (r - p).exp() - 1 - (r - p), "use torch.expm1"),
        (cut_k3, "no gradient flows"),
        (lambda p, r: (torch.expm1(r - p) - (r - p)).mean(), "leave out the mean"),
    ],
    "e5_packing": [
        (packing(lambda start, prompt, i: start + i), "at the targets themselves"),
        (packing(lambda start, prompt, i: start + i + 1), "to the right"),
        (packing(lambda start, prompt, i: start + i - 2), "shifted by two"),
        (packing(lambda start, prompt, i: i - 1), "within each sequence"),
        (packing(lambda start, prompt, i: start + max(i - 1, prompt)), "predictors: for"),
        (packing(before, positions=lambda p, n, start: range(start, start + n)), "through the whole row"),
        (packing(before, positions=lambda p, n, start: [*range(p), *range(n - p)]), "start again at the completion"),
        (packing(before, positions=lambda p, n, start: range(1, n + 1)), "count from 1"),
        (packing(before, keep=slice(None, -1)), "last token of each completion"),
        (packing(before, keep=slice(1, None)), "first token of each completion"),
        (packing(before, targets="all"), "prompt tokens are among them"),
        (lambda s: (lambda ids, pos, pred, _: (ids, pos, pred, ids))(*packing(before)(s)), "this is the whole row"),
        (prompts_first, "all prompts come first"),
        (lambda s: packing(before)([((), c) for _, c in s]), "prompts are missing"),
        (lambda s: packing(before)(s)[:3], "four lists"),
    ],
    "e7_sequence_ratio": [
        (lambda n, o, m: ((n - o) * m).sum(1).exp(), "this is the product"),
        (lambda n, o, m: ((n - o).exp() * m).sum(1) / m.sum(1), "mean of the token ratios"),
        (lambda n, o, m: ((n - o) * m).sum(1) / m.sum(1), "this is the log"),
        (lambda n, o, m: (((o - n) * m).sum(1) / m.sum(1)).exp(), "your ratio is old / new"),
        (lambda n, o, m: ((n - o) * m).mean(1).exp(), "you divide by T"),
        (lambda n, o, m: (n - o).mean(1).exp(), "you ignore the mask"),
        (lambda n, o, m: ((n - o).sum(1) / m.sum(1)).exp(), "your sum contains"),
        (lambda n, o, m: (n - o)[m].mean().exp().repeat(len(m)), "over all completions"),
        (lambda n, o, m: (((n - o) * m).sum(1) / m.sum(1)).exp().detach(), "no gradient flows"),
        (lambda n, o, m: (((n - o) * m).sum(1) / m.sum(1)).exp().mean(), "leave out the mean"),
    ],
}  # fmt: skip


def in_place(r):
    r -= r.mean(-1, keepdim=True)
    return r / (std(r) + 1e-6)


RIGHT = {
    "e1_advantage": [in_place, lambda r: (dev(r) / (std(r) + 1e-6)).float()],
    "e2_ratio_and_clip": [lambda n, o, a, lo, hi: surrogate(n.exp() / o.exp(), a, lo, hi)],
    "e3_normaliser": [lambda b: flat(b).mean()],
    "e7_sequence_ratio": [
        lambda n, o, m: torch.where(m, (n - o).exp(), 1.0).prod(1) ** (1 / m.sum(1)),
        lambda n, o, m: torch.stack([(a - b)[c].mean().exp() for a, b, c in zip(n, o, m, strict=True)]),
    ],
}


@pytest.mark.parametrize("exercise", RIGHT)
def test_a_right_answer_may_be_written_in_another_way(exercise: str):
    for answer in RIGHT[exercise]:
        EXERCISES[exercise](SimpleNamespace(**{FUNCTIONS[exercise][0]: answer}))


@pytest.mark.parametrize("exercise", MUTANTS)
def test_each_wrong_answer_is_told_what_is_wrong_with_it(exercise: str):
    said = []
    for mutant, words in MUTANTS[exercise]:
        with pytest.raises(Wrong) as wrong:
            EXERCISES[exercise](SimpleNamespace(**{FUNCTIONS[exercise][0]: mutant}))
        said.append(str(wrong.value))
        assert words in said[-1]
    assert len(set(said)) == len(said) >= 8


CHEAP = [
    (lambda text: None, "still blank"),
    (lambda text: "short", "should return a number"),
    (lambda text: float("nan"), "has to be finite"),
    (lambda text: random.random(), "noise teaches nothing"),
    (lambda text: 1.0, "all advantages are 0"),
    (lambda text: float("1443" in text), "must not know the answer"),
    (lambda text: len(text.split("boxed")[1]), "raised IndexError"),
    (lambda text: text.count("hmm"), "never ends"),
]  # fmt: skip
REPAIRED = [
    (lambda text, answer: None, "still blank"),
    (lambda text, answer: float(answer in text), "anywhere in the text"),
    (lambda text, answer: float(f"boxed{{{answer}}}" in text), "in the last one"),
    (lambda text, answer: float(text.endswith("boxed{1443}") or "{1443}<" in text), "another problem"),
    (lambda text, answer: -e6_hacked_reward.repaired(text, answer), "sign is turned"),
    (lambda text, answer: e6_hacked_reward.repaired(text, answer) - len(text) / 100, "lower the weight"),
]


@pytest.mark.parametrize(("check", "mutants"), [(check_cheap, CHEAP), (check_repaired, REPAIRED)])
def test_a_reward_that_breaks_a_rule_is_told_before_training(check, mutants, monkeypatch):
    monkeypatch.setattr("course.exercises.check_reward.train", None)
    said = []
    for mutant, words in mutants:
        with pytest.raises(Wrong) as wrong:
            check(mutant)
        said.append(str(wrong.value))
        assert words in said[-1]
    assert len(set(said)) == len(said)


def test_a_cheap_reward_that_teaches_care_is_found_out_by_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPO)
    with pytest.raises(Wrong, match="made the model better"):
        check_cheap(lambda text: float("<reflection>correct" in text))


def test_the_solutions_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(REPO)
    assert main(["--solutions"]) == 0
    assert capsys.readouterr().out.count("right (") == len(EXERCISES)


def test_the_blanks_are_blank_and_say_so(capsys: pytest.CaptureFixture):
    assert main([]) == 1
    assert capsys.readouterr().out.count("still blank") == len(EXERCISES)


def test_a_file_that_python_cannot_read_is_one_line(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "e1_advantage.py").write_text("def group_advantages(rewards)\n    return rewards\n")
    (tmp_path / "broken" / "e4_k3.py").write_text("def kl(a, b):\n    return a\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Wrong, match=r"cannot import e1_advantage.py: SyntaxError.*line 1"):
        load("broken", "e1_advantage")
    with pytest.raises(Wrong, match=r"e4_k3.py has no function k3"):
        load("broken", "e4_k3")


def test_an_exercise_that_does_not_exist_is_named(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as left:
        main(["8"])
    assert left.value.code == 2
    assert "there is no exercise 8; they are numbered 1 to 7" in capsys.readouterr().err


@pytest.mark.parametrize("exercise", EXERCISES)
def test_each_file_has_its_text_above_the_blank_and_a_solution(exercise: str):
    tree = ast.parse((REPO / "course" / "exercises" / f"{exercise}.py").read_text())
    assert len(ast.get_docstring(tree)) > 500
    solution = importlib.import_module(f"course.exercises.solutions.{exercise}")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            assert isinstance(node.body[-1].value, ast.Constant)
            assert hasattr(solution, node.name)


def test_the_solution_of_the_normaliser_is_the_learners_weight():
    """The same numbers as token_weights: 1 / tokens of the step."""
    from grpo.loss import token_weights

    losses = [torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0]])]
    masks = [torch.tensor([[True, False, False]]), torch.tensor([[True, True, True]])]
    ours = sum((w * x * m).sum() for w, x, m in zip(token_weights([1, 3], "token-mean", 8), losses, masks, strict=True))
    assert e3_normaliser.step_loss(list(zip(losses, masks, strict=True))) == ours == 1.5
