"""Focal, smooth L1 and GIoU losses against the plainest formulas."""

import fvcore.nn
import pytest
import torch

from corrdet.losses import giou_loss, sigmoid_focal_loss, smooth_l1_loss


def hostile_logits():
    generator = torch.Generator().manual_seed(0)
    return torch.cat(
        [torch.randn(200, generator=generator) * 3, torch.tensor([0.0, 1e4, -1e4, 50.0, -50.0])]
    )


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("alpha", [0.25, 0.7, -1.0])
def test_focal_is_the_formula(alpha, gamma):
    logits = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets = (torch.arange(100) % 3 == 0).double()
    p_t = torch.where(targets == 1, logits.sigmoid(), 1 - logits.sigmoid())
    alpha_t = torch.where(targets == 1, alpha, 1 - alpha) if alpha >= 0 else torch.ones(())
    expected = -alpha_t * (1 - p_t) ** gamma * p_t.log()
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets, alpha, gamma), expected)


def test_focal_is_detectron2s_on_hostile_logits():
    logits = hostile_logits()
    targets = torch.cat([torch.zeros_like(logits), torch.ones_like(logits)])
    logits = logits.repeat(2).requires_grad_()
    ours = sigmoid_focal_loss(logits, targets)
    theirs = fvcore.nn.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    assert gradient.isfinite().all()


def test_focal_gradient():
    logits = torch.randn(20, dtype=torch.float64, requires_grad=True)
    targets = (torch.arange(20) % 2).double()
    assert torch.autograd.gradcheck(sigmoid_focal_loss, (logits, targets))


def test_smooth_l1_by_hand():
    pred, target = torch.tensor([0.0, 0.5, 1.0, -3.0]), torch.zeros(4)
    assert smooth_l1_loss(pred, target, beta=1.0).tolist() == [0, 0.125, 0.5, 2.5]
    assert smooth_l1_loss(pred, target).tolist() == [0, 0.5, 1, 3]


@pytest.mark.parametrize("beta", [0.0, 0.11, 1.0])
def test_smooth_l1_is_detectron2s(beta):
    pred = torch.cat([torch.randn(100), torch.tensor([1e30, -1e30])]).requires_grad_()
    target = torch.cat([torch.randn(100), torch.zeros(2)])
    ours = smooth_l1_loss(pred, target, beta)
    theirs = fvcore.nn.smooth_l1_loss(pred, target, beta)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss.sum(), pred)[0] for loss in (ours, theirs))
    )


def test_giou_is_detectron2s():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(100, 2, 4, generator=generator) * 50
    corners[..., 2:] += corners[..., :2]
    pred, target = corners[:, 0].requires_grad_(), corners[:, 1]
    ours, theirs = giou_loss(pred, target), fvcore.nn.giou_loss(pred, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss.sum(), pred)[0] for loss in (ours, theirs)), rtol=1e-4, atol=1e-6
    )


def test_bad_input():
    with pytest.raises(ValueError, match=r"got \(3,\) and \(4,\)"):
        sigmoid_focal_loss(torch.rand(3), torch.rand(4))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(4,\)"):
        smooth_l1_loss(torch.rand(3), torch.rand(4))
    with pytest.raises(ValueError, match="beta must be >= 0, got -1"):
        smooth_l1_loss(torch.rand(3), torch.rand(3), beta=-1)
