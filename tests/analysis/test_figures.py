"""The figures are made, and what they show is what the papers say about the losses."""

import numpy as np
import pytest
import torch
from PIL import Image

from corrdet.analysis import figures
from corrdet.analysis.figures import (
    FIGURES,
    IOU_BALANCED_PAIRS,
    association_surface,
    association_valley,
    boxes_off_by,
    harmonic_gradients,
    iou_balanced_gradient_norms,
    main,
)
from corrdet.losses import smooth_l1_loss
from corrdet.ops import elementwise_iou


def line(start, end, steps):
    return torch.linspace(start, end, steps, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_drawn(name, tmp_path):
    main(["--output", str(tmp_path / "new"), "--only", name])
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"{name}.png"]
    assert (tmp_path / "new" / f"{name}.png").stat().st_size < 150_000
    with Image.open(tmp_path / "new" / f"{name}.png") as picture:
        assert min(picture.size) > 400
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_all_are_drawn_and_a_wrong_name_is_refused(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(figures, "FIGURES", {name: drawn.append for name in FIGURES})
    main(["--output", str(tmp_path)])
    assert drawn == [str(tmp_path / f"{name}.png") for name in FIGURES]
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--only", "harmonic"])
    assert "harmonic_gradient" in capsys.readouterr().err


def test_no_half_written_figure(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        figures.iou_balanced_gradient(str(tmp_path / "picture.png"))
    assert not list(tmp_path.iterdir())


class TestAssociation:
    """ "Association Loss for Visual Object Detection", Fig. 3 and section III."""

    scores = line(0.001, 0.999, 2001)
    ious = line(0.001, 0.95, 40)

    def test_without_pse_the_iou_changes_nothing_and_scores_only_rise(self):
        losses, gradients = association_surface(self.scores, self.ious, beta=0.0)
        assert (losses == losses[0]).all()
        assert (gradients < 0).all()
        assert association_valley(self.scores, gradients).isnan().all()

    @pytest.mark.parametrize("beta", [0.25, 1.0])
    def test_the_two_sides_of_the_valley_have_opposite_signs(self, beta):
        losses, gradients = association_surface(self.scores, self.ious, beta)
        valley = association_valley(self.scores, gradients)[:, None]
        assert valley.isfinite().all()
        assert (gradients[self.scores < valley - 1e-3] < 0).all()
        assert (gradients[self.scores > valley + 1e-3] > 0).all()
        # It is where the loss is smallest.
        lowest = self.scores[losses.argmin(dim=1)]
        torch.testing.assert_close(lowest, valley[:, 0], atol=1e-3, rtol=0)

    def test_a_larger_beta_brings_the_valley_closer_to_the_iou(self):
        valleys = torch.stack(
            [
                association_valley(self.scores, association_surface(self.scores, self.ious, b)[1])
                for b in (0.25, 1.0, 4.0, 16.0)
            ]
        )
        gaps = valleys - self.ious
        # The focal loss pulls up: scores come to rest above the IoU, the more so the smaller it is.
        assert (gaps > 0).all()
        assert (gaps.diff(dim=0) < 0).all()
        assert (gaps.diff(dim=1) < 0).all()

    @pytest.mark.parametrize(("beta", "k"), [(0.25, 1.0), (1.0, 1.0), (1.0, 0.8), (4.0, 1.5)])
    def test_with_gamma_0_the_valley_is_where_the_mended_equation_11_is_0(self, beta, k):
        """alpha - 2 beta p^2 + 2 beta k I p = 0: p - alpha / (2 beta p) = k I. Printed with +."""
        alpha = 0.25
        _, gradients = association_surface(self.scores, self.ious, beta, k, alpha, gamma=0.0)
        p, iou = self.scores, self.ious[:, None]
        formula = (p - 1) * (alpha - 2 * beta * p**2 + 2 * beta * k * iou * p)
        torch.testing.assert_close(gradients, formula)
        valley = association_valley(p, gradients)
        there = valley.isfinite()
        assert there.any()
        valley, iou = valley[there], self.ious[there]
        torch.testing.assert_close(valley - alpha / (2 * beta * valley), k * iou, atol=1e-4, rtol=0)
        # Where there is none, it would be at a score of 1 or more.
        assert (1 - alpha / (2 * beta) <= k * self.ious[~there] + 2e-3).all()


class TestHarmonic:
    """ "Reconcile Prediction Consistency for Balanced Object Detection", Fig. 2 and Eq. 7."""

    scores = line(0.05, 1, 96)
    localization = line(0, 3, 31)

    def test_gradients_are_those_of_equation_7(self):
        harmonic, standard = harmonic_gradients(self.scores, self.localization)
        p, loss = self.scores, self.localization[:, None]
        torch.testing.assert_close(harmonic, loss - (1 + torch.exp(-loss)) / p)
        torch.testing.assert_close(standard, (-1 / p).expand(31, 96))

    def test_it_weakens_with_the_localization_loss_up_to_where_it_turns(self):
        harmonic, standard = harmonic_gradients(self.scores, self.localization)
        assert (standard == standard[0]).all()
        assert (harmonic.diff(dim=0) > 0).all()
        negative = harmonic[1:] < 0
        assert (harmonic.abs().diff(dim=0)[negative] < 0).all()
        # The paper has it negative always. It is for any score up to a localization loss of 1.278;
        # above that, it pushes high scores of such boxes down.
        assert (harmonic[self.localization < 1.278] < 0).all()
        assert (harmonic[self.localization > 1.279, -1] > 0).all()


class TestIoUBalanced:
    """ "IoU-balanced Loss Functions for Single-stage Object Detection", Fig. 1 and Eq. 6 to 12."""

    deltas = line(0.001, 0.999, 999)

    def test_ious_are_the_upper_bounds(self):
        d = self.deltas
        centers = elementwise_iou(*boxes_off_by(d, "center"))
        torch.testing.assert_close(centers, (1 - d) / (1 + d))  # Eq. 9 with w_t = w_s
        for sign in (1, -1):
            sizes = elementwise_iou(*boxes_off_by(sign * d, "size"))
            torch.testing.assert_close(sizes, torch.exp(-d))  # Eq. 10

    @pytest.mark.parametrize("what", ["center", "size"])
    def test_lambda_0_is_smooth_l1(self, what):
        d = self.deltas.clone().requires_grad_()
        loss = smooth_l1_loss(d, torch.zeros_like(d), beta=0.111).sum()
        (expected,) = torch.autograd.grad(loss, d)
        torch.testing.assert_close(
            iou_balanced_gradient_norms(self.deltas, what, 0.0, 1.0), expected
        )

    @pytest.mark.parametrize("what", ["center", "size"])
    def test_inliers_get_larger_and_outliers_smaller_gradients(self, what):
        norms = torch.stack(
            [iou_balanced_gradient_norms(self.deltas, what, *pair) for pair in IOU_BALANCED_PAIRS]
        )
        inliers, outliers = self.deltas <= 0.111, self.deltas > (0.45 if what == "center" else 0.95)
        # More so with each larger lambda.
        assert (norms[:, inliers].diff(dim=0) > 0).all()
        assert (norms[:, outliers].diff(dim=0) < 0).all()
        ratio = norms[1:] / norms[0]
        assert (ratio.diff(dim=1) < 0).all()

    @pytest.mark.parametrize("what", ["center", "size"])
    def test_equations_11_and_12(self, what):
        d = self.deltas
        iou = (1 - d) / (1 + d) if what == "center" else torch.exp(-d)
        for lam, weight in IOU_BALANCED_PAIRS:
            torch.testing.assert_close(
                iou_balanced_gradient_norms(d, what, lam, weight),
                weight * iou**lam * (d / 0.111).clamp(max=1),
            )
