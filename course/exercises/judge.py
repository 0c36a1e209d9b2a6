"""Compares a student's function with the right one, and reports a mistake in words.

The checks know the usual wrong answers. An answer that is wrong is compared with each of them, and when one gives the
same numbers on every case, its sentence is the message. Otherwise the message shows the first case that differs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch


class Wrong(Exception):
    """A mistake in the answer, in words."""


def call(function: Callable, *case: Any) -> Any:
    """Returns the result of the student's function for a case. Raises Wrong where it returns nothing or raises."""
    try:
        found = function(*case)
    except Exception as error:  # whatever a student's code raises
        raise Wrong(f"{function.__name__} raised {type(error).__name__}: {error}") from error
    if found is None:
        raise Wrong(f"{function.__name__} is still blank, or its `return` is missing")
    return found


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(
        found.double(), expected.double(), rtol=1e-5, atol=1e-9, equal_nan=True
    )


def judge(answer: Callable, right: Callable, wrong: dict[str, Callable], cases: Sequence[tuple]) -> None:
    """Raises Wrong unless `answer` equals `right` on every case, to rtol 1e-5 in float64."""
    found = [call(answer, *copy.deepcopy(case)) for case in cases]  # whose code may change its arguments
    expected = [right(*case) for case in cases]
    for result, target in zip(found, expected, strict=True):
        if not isinstance(result, torch.Tensor):
            raise Wrong(f"the result should be a tensor, but it is a {type(result).__name__}: {result}")
        if result.shape != target.shape:
            raise Wrong(_shape(result, target))
    if all(map(close, found, expected)):
        return
    for words, formula in wrong.items():
        if all(close(result, formula(*case)) for result, case in zip(found, cases, strict=True)):
            raise Wrong(words)
    case, result, target = next(
        (case, result, target)
        for case, result, target in zip(cases, found, expected, strict=True)
        if not close(result, target)
    )
    raise Wrong(f"for the arguments {shown(case)} the result should be {shown(target)}, but it is {shown(result)}")


def judge_gradient(answer: Callable, right: Callable, arguments: Callable[[], tuple]) -> None:
    """Raises Wrong unless the sum of the result has the right gradient with respect to the first of `arguments()`."""
    gradients = []
    for function in (answer, right):
        first, *others = arguments()
        result = function(first, *others).sum()
        if not result.requires_grad:
            raise Wrong(
                "the numbers are right, but no gradient flows back: something cuts the graph, such as .detach(), "
                ".item(), .data or torch.no_grad()"
            )
        result.backward()
        gradients.append(torch.zeros_like(first) if first.grad is None else first.grad)
    if not close(*gradients):
        raise Wrong(
            f"the numbers are right, but the gradient should be {shown(gradients[1])} and is {shown(gradients[0])}"
        )


def _shape(found: torch.Tensor, expected: torch.Tensor) -> str:
    found_shape, shape = list(found.shape), list(expected.shape)
    if found.numel() == 1 and expected.numel() > 1:
        return f"the result should have the shape {shape}, but it is one number: leave out the mean or sum"
    return f"the result should have the shape {shape}, but it has {found_shape}"


def shown(value: Any) -> str:
    """A value as a student would write it: tensors as lists with four digits."""
    if isinstance(value, torch.Tensor):
        return (
            str(torch.round(value.detach().double(), decimals=4).tolist())
            if value.is_floating_point()
            else str(value.tolist())
        )
    if isinstance(value, tuple | list) and any(isinstance(v, torch.Tensor | tuple | list) for v in value):
        return "(" + ", ".join(map(shown, value)) + ")"
    return str(value)
