"""Figures about the losses themselves: ``python -m corrdet.analysis.figures --output DIR``."""

import argparse
import os

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

from corrdet.data.files import atomic_write  # noqa: E402
from corrdet.losses import pearson_correlation, spearman_correlation  # noqa: E402
from corrdet.losses.correlation import average_ranks  # noqa: E402
from corrdet.ops import soft_rank  # noqa: E402


def example_positives(n: int, seed: int = 0):
    """Scores and IoUs as a trained detector's positives have them: skewed, weakly correlated."""
    rng = np.random.default_rng(seed)
    ious = rng.beta(6, 2, n)
    scores = 1 / (1 + np.exp(-(6 * (ious - 0.8) + rng.normal(-2, 1.2, n))))
    return torch.tensor(scores), torch.tensor(ious)


def soft_rank_regimes(path: str) -> None:
    """What the strength of soft ranks does, and where the default is."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    scores, _ = example_positives(200)
    unit = (3**0.5 * scores.std(correction=0) / len(scores)).item()
    order = scores.argsort()
    for factor, label in [
        (0.01, "0.01 x default (exact ranks)"),
        (1, "default"),
        (10, "10 x default"),
    ]:
        left.plot(scores[order], soft_rank(scores, strength=factor * unit)[order], label=label)
    left.plot(scores[order], soft_rank(scores, strength=1.0)[order], label="strength 1")
    left.set(xlabel="score", ylabel="soft rank", title="200 positives")
    left.legend()

    factors = np.logspace(-3, 4, 57)
    for n, style in [(20, ":"), (200, "--"), (2000, "-")]:
        scores, ious = example_positives(n)
        scores.requires_grad_()
        unit = (3**0.5 * scores.std(correction=0) / n).item()
        exact = pearson_correlation(average_ranks(scores), average_ranks(ious)).item()
        errors, shares = [], []
        for factor in factors:
            rho = spearman_correlation(scores, ious, strength=factor * unit)
            (gradient,) = torch.autograd.grad(rho, scores)
            errors.append(abs(rho.item() - exact))
            shares.append((gradient != 0).double().mean().item())
        right.plot(factors, shares, style, color="C0", label=f"share with gradient, n = {n}")
        right.plot(factors, errors, style, color="C1", label=f"error of the coefficient, n = {n}")
    right.axvline(1, color="black", lw=0.8)
    right.set(
        xscale="log", xlabel="strength / default", ylim=(-0.02, 1.05), title="why this default"
    )
    right.legend(fontsize=8)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="folder for the figures")
    args = parser.parse_args(arguments)
    soft_rank_regimes(os.path.join(args.output, "soft_rank_regimes.png"))


if __name__ == "__main__":
    main()
