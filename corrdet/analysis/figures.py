"""Figures about the losses themselves: ``python -m corrdet.analysis.figures --output DIR``.

Everything drawn is computed by corrdet's losses and autograd, so a picture shows the code, not what
the formulas in a paper were meant to be.
"""

import argparse
import io
import os
from collections.abc import Callable, Sequence

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib import patheffects  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from corrdet.files import atomic_write  # noqa: E402
from corrdet.losses import (  # noqa: E402
    association_loss,
    harmonic_loss,
    iou_balanced_smooth_l1_loss,
    pearson_correlation,
    sigmoid_focal_loss,
    spearman_correlation,
)
from corrdet.losses.correlation import average_ranks  # noqa: E402
from corrdet.ops import elementwise_iou, soft_rank  # noqa: E402

# lambda and w_loc, Table 4 of "IoU-balanced Loss Functions for Single-stage Object Detection".
IOU_BALANCED_PAIRS = ((0.0, 1.0), (0.5, 1.575), (1.0, 2.226), (1.5, 3.049), (1.8, 3.649))


def example_positives(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
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
    for factor, label, color in [
        (0.01, "0.01 x default (exact ranks)", "black"),
        (1, "default", "C1"),
        (10, "10 x default", "C0"),
    ]:
        ranks = soft_rank(scores, strength=factor * unit)
        left.plot(scores[order], ranks[order], color=color, label=label)
    left.plot(
        scores[order], soft_rank(scores, strength=1.0)[order], color="0.6", label="strength 1"
    )
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
    _save(figure, path)


def association_surface(
    scores: Tensor,
    ious: Tensor,
    beta: float,
    k: float = 1.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Focal loss + PSE of positives, over score and IoU, and its gradient at the logit.

    Args:
        scores: (n,) p, between 0 and 1 without these, float64.
        ious: (m,) I, float64.
        beta: weight of PSE, 0 for the focal loss alone.
        k: slope of PSE.
        alpha, gamma: of the focal loss.

    Returns:
        losses and derivatives of them with respect to the logit, (m, n) each.
    """
    shape = len(ious), len(scores)
    logits = scores.logit().expand(shape).flatten().requires_grad_()
    losses = sigmoid_focal_loss(logits, torch.ones_like(logits), alpha, gamma)
    losses = losses + association_loss(
        logits.sigmoid(), ious[:, None].expand(shape).flatten(), "pse", beta, k
    )
    (gradients,) = torch.autograd.grad(losses.sum(), logits)
    return losses.detach().view(shape), gradients.view(shape)


def association_valley(scores: Tensor, gradients: Tensor) -> Tensor:
    """Where a gradient turns from pulling the score up to pushing it down.

    Args:
        scores: (n,) ascending.
        gradients: (m, n) as of :func:`association_surface`.

    Returns:
        (m,) the score, between two grid points by linear interpolation; NaN where there is none.
    """
    turns = (gradients[:, :-1] < 0) & (gradients[:, 1:] >= 0)
    at = turns.to(torch.int8).argmax(dim=1)
    row = torch.arange(len(gradients))
    before, after = gradients[row, at], gradients[row, at + 1]
    share = before / (before - after)
    valley = scores[at] + share * (scores[at + 1] - scores[at])
    return torch.where(turns.any(dim=1), valley, torch.nan)


def association_surfaces(path: str) -> None:
    """ "Association Loss for Visual Object Detection", Fig. 3, with the valley marked."""
    scores = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    ious = torch.linspace(0.001, 1, 100, dtype=torch.float64)
    figure, axes = plt.subplots(
        2, 3, figsize=(11, 7.4), layout="constrained", subplot_kw={"projection": "3d"}
    )
    p, iou = np.meshgrid(scores, ious)
    for column, (beta, name) in enumerate(
        [(0.0, "focal"), (0.25, r"focal + PSE, $\beta$ = 0.25"), (1.0, r"focal + PSE, $\beta$ = 1")]
    ):
        losses, gradients = association_surface(scores, ious, beta)
        for row, (values, title) in enumerate(
            [(losses, name), (gradients.abs(), f"|gradient at the logit| of\n{name}")]
        ):
            ax = axes[row, column]
            surface = {"cmap": "viridis", "rcount": 50, "ccount": 80, "linewidth": 0}
            ax.plot_surface(p, iou, values.numpy(), antialiased=False, **surface)
            ax.set(xlabel="score p", ylabel="IoU I", xlim=(0, 1), ylim=(0, 1))
            ax.set_title(f"({'abcdef'[3 * row + column]}) {title}", fontsize=11)
            # The valley runs from front to back.
            ax.view_init(elev=38, azim=-118)
        if beta:
            ax = axes[1, column]
            valley = association_valley(scores, gradients)
            outline = [patheffects.withStroke(linewidth=4, foreground="black")]
            # A little above the surface, which would hide them.
            style = {"lw": 2, "zorder": 10, "path_effects": outline}
            ax.plot(valley, ious, 0.01, color="red", label="valley: gradient 0", **style)
            ax.plot([0, 1], [0, 1], 0.01, "--", color="white", label="p = I", **style)
            ax.legend(loc="upper left", fontsize=9, facecolor="0.8")
    _save(figure, path)


def harmonic_gradients(scores: Tensor, localization: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the harmonic loss and of the plain sum of both losses at the score.

    The classification loss is cross entropy, -log p.

    Args:
        scores: (n,) p, positive, float64.
        localization: (m,) L, values of the localization loss, float64.

    Returns:
        derivatives with respect to p of the harmonic loss, and of -log p + L: (m, n) each.
    """
    shape = len(localization), len(scores)
    localization = localization[:, None].expand(shape).flatten()
    gradients = []
    for loss in (harmonic_loss, torch.add):
        p = scores.expand(shape).flatten().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(-p.log(), localization).sum(), p)
        gradients.append(gradient.view(shape))
    return gradients[0], gradients[1]


def harmonic_gradient(path: str) -> None:
    """ "Reconcile Prediction Consistency for Balanced Object Detection", Fig. 2."""
    scores = torch.linspace(0.1, 1, 181, dtype=torch.float64)
    localization = torch.linspace(0, 2, 101, dtype=torch.float64)
    gradients = harmonic_gradients(scores, localization)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    levels = np.array([-20, -15, -10, -7, -5, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1])
    titles = ["(a) harmonic loss", "(b) cross entropy + localization loss"]
    for ax, values, title in zip(axes, gradients, titles, strict=True):
        norm = matplotlib.colors.BoundaryNorm(levels, 256)
        filled = ax.contourf(scores, localization, values, levels, cmap="cividis", norm=norm)
        # Black is not seen on the dark end, nor white on the light one.
        lines = ax.contour(
            scores,
            localization,
            values,
            levels,
            colors=["white" if level < -3 else "black" for level in levels],
            linewidths=[2.5 if level == 0 else 0.8 for level in levels],
            linestyles="solid",
        )
        # Those left of -5 are too close to the border to be written on.
        ax.clabel(lines, levels[levels >= -5], fontsize=9, fmt="%g")
        ax.set(xlabel="score p of the ground-truth class", title=title)
    axes[0].set_ylabel("localization loss L")
    bar = figure.colorbar(filled, ax=axes, ticks=levels, spacing="uniform")
    bar.set_label("derivative with respect to p")
    _save(figure, path)


def boxes_off_by(deltas: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Boxes that differ from their ground truth in one delta alone.

    The IoU of such a pair is the largest there is for that delta: the upper bound of Eq. 9 (for
    anchors as wide as their ground truth) or Eq. 10 of the IoU-balanced paper.

    Args:
        deltas: (n,) d, the predicted delta minus its target.
        what: "center" or "size".

    Returns:
        predicted and ground-truth boxes, XYXY, (n, 4) each.
    """
    gt_boxes = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=deltas.dtype).repeat(len(deltas), 1)
    boxes = gt_boxes.clone()
    if what == "center":
        boxes[:, [0, 2]] += deltas[:, None]
    else:
        boxes[:, 0] = 0.5 - deltas.exp() / 2
        boxes[:, 2] = 0.5 + deltas.exp() / 2
    return boxes, gt_boxes


def iou_balanced_gradient_norms(deltas: Tensor, what: str, lam: float, weight: float) -> Tensor:
    """Gradient norm of IoU-balanced smooth L1 for boxes that are off in one delta alone.

    Args:
        deltas: (n,) d, as of :func:`boxes_off_by`.
        what: "center" or "size".
        lam, weight: of :func:`corrdet.losses.iou_balanced_smooth_l1_loss`.

    Returns:
        (n,) the norm of the gradient with respect to d.
    """
    ious = elementwise_iou(*boxes_off_by(deltas, what))
    pred = torch.zeros(len(deltas), 4, dtype=deltas.dtype)
    pred[:, 0 if what == "center" else 2] = deltas
    pred.requires_grad_()
    losses = iou_balanced_smooth_l1_loss(pred, torch.zeros_like(pred), ious, lam, weight)
    (gradient,) = torch.autograd.grad(losses.sum(), pred)
    return gradient.norm(dim=1)


def iou_balanced_gradient(path: str) -> None:
    """ "IoU-balanced Loss Functions for Single-stage Object Detection", Fig. 1."""
    deltas = torch.linspace(0, 1, 501, dtype=torch.float64)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    colors = plt.get_cmap("viridis")(np.linspace(0.85, 0, len(IOU_BALANCED_PAIRS)))
    panels = [("center", "$d^{cx}$, $d^{cy}$"), ("size", "$d^w$, $d^h$")]
    for ax, (what, label) in zip(axes, panels, strict=True):
        for (lam, weight), color in zip(IOU_BALANCED_PAIRS, colors, strict=True):
            norms = iou_balanced_gradient_norms(deltas, what, lam, weight)
            name = rf"$\lambda$ = {lam:g}, $w_{{loc}}$ = {weight:g}"
            style = {"color": "black", "ls": "--"} if lam == 0 else {"color": color}
            ax.plot(deltas, norms, label=name + (" (smooth L1)" if lam == 0 else ""), **style)
        ax.axvline(0.111, color="0.6", lw=0.8, zorder=0)
        ax.text(0.12, 0.03, r"$\delta$ = 0.111", color="0.35", transform=ax.get_xaxis_transform())
        ax.set(xlabel=f"|d| of {label} (no unit)", xlim=(0, 1))
    axes[0].set(ylabel="gradient norm (upper bound)", ylim=(0, None))
    axes[0].legend()
    _save(figure, path)


FIGURES: dict[str, Callable[[str], None]] = {
    "soft_rank_regimes": soft_rank_regimes,
    "association_surfaces": association_surfaces,
    "harmonic_gradient": harmonic_gradient,
    "iou_balanced_gradient": iou_balanced_gradient,
}


def _save(figure: plt.Figure, path: str) -> None:
    """Write a PNG of 256 colours, which is a third of the size and looks the same."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    plt.close(figure)
    with atomic_write(path, "wb") as file:
        Image.open(drawn).convert("RGB").quantize().save(file, format="png", optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder for the figures")
    parser.add_argument(
        "--only", nargs="+", choices=FIGURES, metavar="NAME", help=f"of {', '.join(FIGURES)}"
    )
    args = parser.parse_args(arguments)
    for name in args.only or FIGURES:
        FIGURES[name](os.path.join(args.output, f"{name}.png"))


if __name__ == "__main__":
    main()
