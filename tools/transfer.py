"""Tabulates the transfer matrix of one-shot RLVR: `python -m tools.transfer EVALS --base BASE_EVALS --out PREFIX`.

EVALS holds the evaluations that eval.py wrote of the models of configs/sweeps/transfer.yaml on data/products/all.jsonl;
BASE_EVALS those of the base model. Writes PREFIX.csv (a row for each training product, seed and way of sampling) and
PREFIX.png (the heat map), and prints the tests of the registered prediction, docs/measurements/transfer-prediction.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd

from data.products import ALL
from grpo.cli import Parser
from grpo.errors import UserError, one_line
from grpo.evaluation.results import Evaluation
from rewards import make_reward

ANSWERS = {f"{a}x{b}": a * b for a, b in ALL}
RESAMPLES = 10_000


def read_evaluations(root: Path) -> pd.DataFrame:
    """Returns the share of right answers to each product: index (example, seed, way), a column for each product.

    `way` is greedy or sampled. `example` is "base" and `seed` 0 for a model that no run of the sweep has trained.
    """
    completions = []
    with closing(make_reward("multi_signal", verifier="last_number")) as reward:
        for path in sorted(root.glob("**/settings.json")):
            folder = Evaluation(path.parent)
            name = re.search(r"(\dx\d)-seed(\d+)", folder.settings["model"]) or ("", "base", 0)
            model = {"example": name[1], "seed": int(name[2])}
            model["way"] = "sampled" if folder.settings["temperature"] else "greedy"
            rows = folder.rows()
            scores = reward.score_batch([row["completion"] for row in rows], [row["ground_truth"] for row in rows])
            completions += [row | model | {"right": score.correct} for row, score in zip(rows, scores, strict=True)]
    if not completions:
        raise UserError(f"{root} holds no evaluation; run eval.py with --out {root} first")
    table = pd.DataFrame(completions).pivot_table("right", ["example", "seed", "way"], "problem")
    return table.set_axis(ANSWERS, axis="columns")


def row_means(matrix: pd.DataFrame) -> pd.Series:
    """Returns the mean accuracy on the other 63 products, for each row of one way of sampling."""
    others = [row.drop(index[0]).mean() for index, row in matrix.iterrows()]
    return pd.Series(others, index=matrix.index)


def quantities(base: pd.Series) -> pd.DataFrame:
    """Returns the registered quantities of each product, from the base model's accuracies and the numbers alone."""
    digits = {product: set(str(answer)) for product, answer in ANSWERS.items()}
    shared = {product: sum(bool(own & other) for other in digits.values()) - 1 for product, own in digits.items()}
    known = {"accuracy": base, "variance": base * (1 - base), "answer": ANSWERS, "digits": shared}
    return pd.DataFrame({name: pd.Series(values) for name, values in known.items()})


def spearman(x: np.ndarray, y: np.ndarray) -> pd.Series:
    """Returns Spearman's rho of each column of x with that of y: the correlation of the ranks, ties at their mean rank.

    >>> spearman(np.array([1, 2, 3, 4]), np.array([1, 3, 2, 4])).round(3)[0]  # 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1))
    np.float64(0.8)
    """
    return pd.DataFrame(x).rank().corrwith(pd.DataFrame(y).rank())


def bootstrap_interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Returns the 95% percentile interval of Spearman's rho over resampled pairs. Equal values have no correlation."""
    draws = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x))).T
    low, high = spearman(x[draws], y[draws]).quantile([0.025, 0.975])
    return float(low), float(high)


def heat_map(trained: pd.DataFrame, path: Path) -> None:
    """Draws accuracy by training product (rows) and test product (columns), with the training product marked."""
    from matplotlib.figure import Figure

    products = list(ANSWERS)
    figure = Figure(figsize=(15, 1.5 + 0.1 * len(trained.index.unique("example"))), layout="constrained")
    for chart, way in zip(figure.subplots(1, 2), ("sampled", "greedy"), strict=True):
        matrix = trained.xs(way, level="way").groupby("example").mean()  # sorted by the digits, as the products are
        image = chart.imshow(100 * matrix, vmin=0, vmax=100, cmap="viridis")
        columns = [products.index(product) for product in matrix.index]
        chart.plot(columns, range(len(matrix)), "s", markersize=5, fillstyle="none", color="red")
        chart.set(title=f"{way} accuracy, %", xlabel="test product", ylabel="training product")
        chart.set_xticks(range(0, len(products), 8), products[::8])
        chart.set_yticks(range(len(matrix)), matrix.index, fontsize=6)
    figure.colorbar(image)
    figure.savefig(path, dpi=90)


def prediction_tests(means: pd.Series, base: pd.Series) -> pd.DataFrame:
    """Returns Spearman's rho of each registered quantity with the row means, and its 95% bootstrap interval."""
    known = quantities(base).loc[means.index]
    y = means.to_numpy()
    tests = [(spearman(x, y)[0], *bootstrap_interval(x, y)) for x in known.to_numpy().T]
    return pd.DataFrame(tests, index=known.columns, columns=["rho", "low", "high"])


@one_line()
def main(argv: Sequence[str]) -> int:
    cli = Parser(prog="python -m tools.transfer", description=__doc__)
    cli.add_argument("evals", type=Path, metavar="EVALS", help="evaluations of the trained models")
    cli.add_argument("--base", type=Path, required=True, help="evaluations of the base model")
    cli.add_argument("--out", type=Path, required=True, metavar="PREFIX", help="writes PREFIX.csv and PREFIX.png")
    args = cli.parse_args(argv)
    trained = read_evaluations(args.evals).drop(index="base", level="example", errors="ignore")
    base = read_evaluations(args.base).xs(("base", 0, "sampled"))
    trained.round(4).to_csv(args.out.with_suffix(".csv"))
    heat_map(trained, args.out.with_suffix(".png"))
    means = row_means(trained.xs("sampled", level="way")).groupby("example").mean()
    print(f"sampled accuracy on the other products (base: {base.mean():.1%} of all)")
    print((100 * means).sort_values(ascending=False).round(1).to_string())
    print(prediction_tests(means, base).round(2).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
