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

PRODUCTS = [f"{a}x{b}" for a, b in ALL]
RESAMPLES = 10_000


def read_evaluations(root: Path) -> pd.DataFrame:
    """Returns the share of right answers to each product: index (example, seed, way), a column for each product.

    `way` is greedy or sampled. `example` is "base" and `seed` 0 for a model that no run of the sweep has trained.
    """
    rows = {}
    with closing(make_reward("multi_signal", verifier="last_number")) as reward:
        for path in sorted(root.glob("**/settings.json")):
            folder = Evaluation(path.parent)
            name = re.search(r"(\dx\d)-seed(\d+)", folder.settings["model"])
            example, seed = (name[1], int(name[2])) if name else ("base", 0)
            way = "sampled" if folder.settings["temperature"] else "greedy"
            outputs = pd.DataFrame(folder.rows())
            if outputs.empty:
                continue
            scores = reward.score_batch(list(outputs["completion"]), list(outputs["ground_truth"]))
            outputs["right"] = [score.signals["verify"] for score in scores]
            rows[example, seed, way] = outputs.groupby("problem")["right"].mean()
    if not rows:
        raise UserError(f"{root} holds no evaluation; run eval.py with --out {root} first")
    table = pd.DataFrame(rows).T
    table.index.names = ["example", "seed", "way"]
    return table.set_axis(PRODUCTS, axis="columns")


def row_means(matrix: pd.DataFrame) -> pd.Series:
    """Returns the mean accuracy on the other 63 products, for each row of one way of sampling."""
    others = [row.drop(index[0]).mean() for index, row in matrix.iterrows()]
    return pd.Series(others, index=matrix.index)


def quantities(base: pd.Series) -> pd.DataFrame:
    """Returns the registered quantities of each product, from the base model's accuracies and the numbers alone."""
    answers = {product: str(a * b) for product, (a, b) in zip(PRODUCTS, ALL, strict=True)}
    shared = {
        product: sum(bool(set(answer) & set(other)) for name, other in answers.items() if name != product)
        for product, answer in answers.items()
    }
    return pd.DataFrame(
        {
            "accuracy": base,
            "variance": base * (1 - base),
            "answer": {product: int(answer) for product, answer in answers.items()},
            "digits": shared,
        }
    ).loc[PRODUCTS]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Returns Spearman's rho: the correlation of the ranks, with mean ranks for ties.

    >>> round(spearman(np.array([1, 2, 3, 4]), np.array([1, 3, 2, 4])), 3)  # 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1))
    0.8
    """
    return float(np.corrcoef(pd.Series(x).rank(), pd.Series(y).rank())[0, 1])


def bootstrap_interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Returns the 95% percentile interval of Spearman's rho over resampled pairs."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(x), size=(RESAMPLES, len(x)))
    varied = [draw for draw in draws if np.ptp(x[draw]) and np.ptp(y[draw])]  # equal values have no correlation
    rhos = [spearman(x[draw], y[draw]) for draw in varied]
    low, high = np.quantile(rhos, [0.025, 0.975])
    return float(low), float(high)


def heat_map(trained: pd.DataFrame, path: Path) -> None:
    """Draws accuracy by training product (rows) and test product (columns), with the training product marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 1.5 + 0.1 * len(trained.index.unique("example"))), layout="constrained")
    for chart, way in zip(figure.subplots(1, 2), ("sampled", "greedy"), strict=True):
        matrix = trained.xs(way, level="way").groupby("example").mean()
        matrix = matrix.loc[[product for product in PRODUCTS if product in matrix.index]]
        image = chart.imshow(100 * matrix, vmin=0, vmax=100, cmap="viridis")
        columns = [PRODUCTS.index(product) for product in matrix.index]
        chart.plot(columns, range(len(matrix)), "s", markersize=5, fillstyle="none", color="red")
        chart.set(title=f"{way} accuracy, %", xlabel="test product", ylabel="training product")
        chart.set_xticks(range(0, len(PRODUCTS), 8), PRODUCTS[::8])
        chart.set_yticks(range(len(matrix)), matrix.index, fontsize=6)
    figure.colorbar(image)
    figure.savefig(path, dpi=90)


def report(trained: pd.DataFrame, base: pd.Series) -> str:
    """Returns the summary: row means, and the test of each registered quantity."""
    means = row_means(trained.xs("sampled", level="way")).groupby("example").mean()
    ordered = means.sort_values(ascending=False)
    known = quantities(base).loc[means.index]
    lines = [
        f"{len(means)} training products, base {base.mean():.1%} sampled",
        f"row mean: median {means.median():.1%}, from {means.min():.1%} to {means.max():.1%}",
        "best: " + ", ".join(f"{name} {value:.1%}" for name, value in ordered.head(5).items()),
        "worst: " + ", ".join(f"{name} {value:.1%}" for name, value in ordered.tail(5).items()),
    ]
    for name in known:
        x, y = known[name].to_numpy(), means.to_numpy()
        if not np.ptp(x) or not np.ptp(y):
            lines.append(f"{name}: all values are equal")
            continue
        low, high = bootstrap_interval(x, y)
        lines.append(f"{name}: rho {spearman(x, y):+.2f} [{low:+.2f}, {high:+.2f}]")
    return "\n".join(lines)


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
    print(report(trained, base))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
