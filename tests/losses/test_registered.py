"""Losses by name: that the Criterion calls the functions with the right parts of the batch."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from corrdet import losses as L
from corrdet.errors import ConfigError
from corrdet.losses import (
    CLASSIFICATION_LOSSES,
    COUPLINGS,
    LOCALIZATION_LOSSES,
    Criterion,
    Weight,
    build_criterion,
)
from corrdet.losses.registry import refusal
from corrdet.losses.weight import WEIGHT_OPTIONS
from tests.helpers.losses import (
    NORMALIZER,
    build,
    config,
    matched_predictions,
    softmax_predictions,
)

HERE = Path(__file__)


def one_hot(matched, value=1.0):
    """(18, 3) targets of the samples that are not ignored, which are the fifth and sixth."""
    targets = torch.zeros(20, 3)
    targets[matched.positives, matched.classes] = value
    return targets[keep()]


def keep():
    return [i for i in range(20) if i not in (5, 6)]


def classification_loss(name, matched=None, **options):
    matched = matched or matched_predictions()
    return Criterion(name, "giou", options={name: options})(matched, NORMALIZER)["loss_cls"]


def assert_tested(here, registered):
    """Of all losses there is a test by name: here, or in a file of their own beside this one."""
    assert set(here) <= registered
    others = [path.read_text() for path in HERE.parent.glob("test_*.py") if path != HERE]
    for name in registered - set(here):
        assert any(f'"{name}"' in text for text in others), name


class TestClassification:
    def test_losses_per_sample(self):
        matched = matched_predictions()
        logits, ious = matched.logits[keep()], matched.ious.detach()
        expected = {
            "sigmoid_focal": L.sigmoid_focal_loss(logits, one_hot(matched)),
            "sigmoid_cross_entropy": F.binary_cross_entropy_with_logits(
                logits, one_hot(matched), reduction="none"
            ),
            "quality_focal": L.quality_focal_loss(logits, one_hot(matched, ious)),
            "varifocal": L.varifocal_loss(logits, one_hot(matched, ious)),
        }
        for name, value in expected.items():
            torch.testing.assert_close(
                classification_loss(name), value.sum() / NORMALIZER, msg=name
            )

    def test_softmax(self):
        matched = softmax_predictions()
        value = classification_loss("softmax_cross_entropy", matched)
        expected = F.cross_entropy(matched.logits[keep()], matched.labels[keep()], reduction="sum")
        torch.testing.assert_close(value, expected / NORMALIZER)
        # DETR's, but for its divisor, the sum of the weights.
        weights = torch.tensor([1.0, 1.0, 1.0, 0.1])
        value = classification_loss("softmax_cross_entropy", matched, background_weight=0.1)
        kept = matched.logits[keep()], matched.labels[keep()]
        expected = F.cross_entropy(*kept, weight=weights, reduction="sum")
        torch.testing.assert_close(value, expected / NORMALIZER)

    def test_losses_of_the_batch(self):
        matched = matched_predictions()
        logits, labels = matched.logits[keep()].flatten(), one_hot(matched).flatten()
        ious = matched.ious.detach()
        targets = one_hot(matched, ious).flatten()
        expected = {
            # Of the first batch the running mean is a quarter of its counts.
            "ghm_c": 4 * L.ghm_c_loss(logits, labels, bins=30),
            "dr": L.dr_loss(logits, labels),
            "ap": L.ap_loss(logits, labels),
            "pairwise_error": L.pairwise_error_loss(logits, labels),
            "ape": L.ape_loss(logits, labels, ious),
            "rank_sort": sum(L.rank_sort_loss(logits, targets)),
            "alrp": L.alrp_loss(logits, labels, 1 - ious)[0],
        }
        assert_tested(
            expected,
            {
                n
                for n in names(CLASSIFICATION_LOSSES, "sigmoid")
                if not CLASSIFICATION_LOSSES[n].per_sample
            },
        )
        for name, value in expected.items():
            torch.testing.assert_close(classification_loss(name), value, msg=name)

    def test_options_arrive(self):
        matched = matched_predictions()
        logits, labels = matched.logits[keep()].flatten(), one_hot(matched).flatten()
        ious = matched.ious.detach()
        cases = [
            ("ap", {"delta": 0.3, "interpolate": False}, L.ap_loss(logits, labels, 0.3, False)),
            (
                "pairwise_error",
                {"distance": "sigmoid", "balance": "negatives", "lam": 3.0, "delta": 2.0},
                L.pairwise_error_loss(logits, labels, "sigmoid", "negatives", 3.0, 2.0),
            ),
            (
                "ape",
                {"lam": 2.0, "weight_by_iou": False},
                L.ape_loss(logits, labels, ious, 2.0, False),
            ),
            ("dr", {"margin": 0.1}, L.dr_loss(logits, labels, 0.1)),
        ]
        for name, options, expected in cases:
            torch.testing.assert_close(classification_loss(name, **options), expected, msg=name)

    def test_ghm_keeps_counts(self):
        formula = {"ghm_c": {"variant": "formula"}, "ghm_r": {"variant": "formula"}}
        criterion = Criterion("ghm_c", "ghm_r", options=formula)
        for _ in range(2):
            criterion(matched_predictions())
        state = criterion.state_dict()
        assert state["state.ghm_c.counts[30]"].sum() == 18 * 3
        assert state["state.ghm_r.counts[10]"].sum() == 5 * 4
        other = Criterion("ghm_c", "ghm_r", options=formula)
        other.load_state_dict(state)
        matched = matched_predictions(logits=torch.randn(20, 3))
        assert (
            other(matched)
            == criterion(matched)
            != Criterion("ghm_c", "ghm_r", options=formula)(matched)
        )


class TestSelfBalance:
    def test_rank_sort(self):
        matched = matched_predictions()
        losses = Criterion("rank_sort", "giou")(matched, NORMALIZER)
        torch.testing.assert_close(losses["loss_box_reg"], losses["loss_cls"])
        (gradient,) = torch.autograd.grad(
            losses["loss_box_reg"], matched.boxes, retain_graph=True
        )  # fmt: skip
        box = L.giou_loss(matched.boxes, matched.gt_boxes).sum()
        (plain,) = torch.autograd.grad(box, matched.boxes)
        torch.testing.assert_close(gradient, plain * (losses["loss_cls"] / box).detach())

    def test_alrp(self):
        matched = matched_predictions()
        losses = Criterion("alrp", "giou")(matched, NORMALIZER)
        options = {"alrp": {"self_balance": False}}
        plain = Criterion("alrp", "giou", options=options)(matched, NORMALIZER)
        torch.testing.assert_close(losses["loss_cls"], plain["loss_cls"])
        torch.testing.assert_close(losses["loss_box_reg"], sum(plain.values()))
        localization = L.giou_loss(matched.boxes, matched.gt_boxes)
        logits, labels = matched.logits.flatten(), matched.binary_labels.flatten()
        expected = L.alrp_loss(logits, labels, localization)[1]
        torch.testing.assert_close(plain["loss_box_reg"], expected)

    def test_off(self):
        matched = matched_predictions()
        options = {"rank_sort": {"self_balance": False}}
        losses = Criterion("rank_sort", "giou", options=options)(matched, NORMALIZER)
        expected = L.giou_loss(matched.boxes, matched.gt_boxes).sum() / NORMALIZER
        torch.testing.assert_close(losses["loss_box_reg"], expected)

    @pytest.mark.parametrize("name", ["rank_sort", "alrp"])
    def test_boxes_that_are_exact(self, name):
        """A box loss of 0 cannot be scaled."""
        matched = matched_predictions()
        matched.boxes = matched.gt_boxes.clone().requires_grad_()
        losses = Criterion(name, "giou")(matched, NORMALIZER)
        assert losses["loss_box_reg"] == 0 and losses["loss_cls"].isfinite()


def test_localization():
    matched = matched_predictions()
    deltas = matched.deltas, matched.gt_deltas
    boxes = matched.boxes, matched.gt_boxes
    ious = matched.ious
    expected = {
        "smooth_l1": L.smooth_l1_loss(*deltas).sum() / NORMALIZER,
        "balanced_l1": L.balanced_l1_loss(*deltas).sum() / NORMALIZER,
        "ghm_r": L.ghm_r_loss(*deltas) / 0.3,
        "iou_balanced_smooth_l1": L.iou_balanced_smooth_l1_loss(*deltas, ious).sum() / NORMALIZER,
        "iou": L.iou_loss(*boxes).sum() / NORMALIZER,
        "giou": L.giou_loss(*boxes).sum() / NORMALIZER,
        "diou": L.diou_loss(*boxes).sum() / NORMALIZER,
        "ciou": L.ciou_loss(*boxes).sum() / NORMALIZER,
        "harmonic_iou": L.harmonic_iou_loss(ious).sum() / NORMALIZER,
        "smooth_l1_harmonic_iou": (
            L.smooth_l1_loss(*deltas).sum() + 1.5 * L.harmonic_iou_loss(ious).sum()
        )
        / NORMALIZER,
    }
    assert_tested(expected, set(LOCALIZATION_LOSSES))
    for name, value in expected.items():
        loss = Criterion("sigmoid_focal", name)(matched, NORMALIZER)["loss_box_reg"]
        torch.testing.assert_close(loss, value, msg=name)


PRIORS = torch.tensor(
    [[10.0, 10, 30, 40], [8, 14, 24, 40], [14, 14, 34, 40], [9, 9, 29, 29], [25, 30, 45, 60]]
)


def plain_centerness(prior, box):
    """FCOS, Eq. 3, of the centre of the prior; 0 outside of the box."""
    x, y = (prior[0] + prior[2]) / 2, (prior[1] + prior[3]) / 2
    left, top, right, bottom = x - box[0], y - box[1], box[2] - x, box[3] - y
    if min(left, top, right, bottom) <= 0:
        return 0.0
    across, down = sorted((left, right)), sorted((top, bottom))
    return (across[0] / across[1] * down[0] / down[1]) ** 0.5


@pytest.mark.parametrize("by", ["iou", "score", "centerness"])
@pytest.mark.parametrize("normalizer", [NORMALIZER, None])
def test_localization_weighted_by(by, normalizer):
    """Its sum over the sum of the weights, as ATSS's, FCOS's, PAA's and GFL's code have it."""
    matched = matched_predictions(priors=PRIORS)
    centerness = [
        plain_centerness(*pair)
        for pair in zip(PRIORS.tolist(), matched.gt_boxes.tolist(), strict=True)
    ]
    assert centerness[0] == 1 and centerness[4] == 0 and 0 < centerness[1] < 1
    weights = {"iou": matched.ious, "score": matched.scores, "centerness": torch.tensor(centerness)}
    weights = weights[by].detach()
    criterion = Criterion("sigmoid_focal", "giou", localization_weighted_by=by)
    loss = criterion(matched, normalizer)["loss_box_reg"]
    losses = L.giou_loss(matched.boxes, matched.gt_boxes)
    torch.testing.assert_close(loss, (losses * weights).sum() / weights.sum())
    # No gradient flows through the weight.
    assert torch.autograd.grad(loss, matched.logits, allow_unused=True)[0] is None
    empty = criterion(matched_predictions(0, priors=torch.zeros(0, 4)))
    assert empty["loss_box_reg"].item() == 0


def test_centerness_needs_priors():
    criterion = Criterion("sigmoid_focal", "giou", localization_weighted_by="centerness")
    with pytest.raises(
        ValueError, match="of the centres of priors, got MatchedPredictions without"
    ):
        criterion(matched_predictions())
    cfg = config(LOCALIZATION_WEIGHTED_BY="centerness", LOCALIZATION="giou")
    with pytest.raises(ValueError, match="^MODEL.CRITERION.LOCALIZATION_WEIGHTED_BY: .*Sparse"):
        L.build_criterion(
            cfg, activation="sigmoid", has_deltas=True, has_priors=False, owner="CorrdetSparseRCNN"
        )


class TestCouplings:
    def test_association(self):
        matched = matched_predictions()
        options = {"kind": "pce", "beta": 0.5, "k": 0.8}
        criterion = Criterion(
            "sigmoid_focal", "giou", {"association": 0.25}, {"association": options}
        )
        expected = L.association_loss(matched.scores, matched.ious, **options).sum()
        loss = criterion(matched, NORMALIZER)["loss_association"]
        torch.testing.assert_close(loss, 0.25 * expected / NORMALIZER)
        assert torch.autograd.grad(loss, matched.boxes, allow_unused=True)[0] is None

    def test_association_of_the_highest_score(self):
        matched = matched_predictions()
        options = {"association": {"max_score": True}}
        loss = Criterion("sigmoid_focal", "giou", ["association"], options)(matched, NORMALIZER)
        highest = matched.logits[:5].sigmoid().amax(dim=1)
        assert (highest > matched.scores).any()
        expected = L.association_loss(highest, matched.ious).sum() / NORMALIZER
        torch.testing.assert_close(loss["loss_association"], expected)
        softmax = softmax_predictions()
        expected = softmax.logits[:5].softmax(dim=1)[:, :3].amax(dim=1)
        torch.testing.assert_close(softmax.max_scores, expected)

    @pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
    def test_task_contrastive(self, activation):
        sigmoid = activation == "sigmoid"
        matched = matched_predictions() if sigmoid else softmax_predictions()
        logits = matched.logits[:5]
        probabilities = logits.sigmoid() if sigmoid else logits.softmax(dim=1)
        name = "sigmoid_focal" if sigmoid else "softmax_cross_entropy"
        options = {"task_contrastive": {"margin": 0.05}}
        loss = Criterion(name, "giou", ["task_contrastive"], options)(matched, NORMALIZER)
        classes = torch.arange(5) % 3
        expected = L.task_contrastive_loss(probabilities, classes, matched.ious, 0.05).sum()
        torch.testing.assert_close(loss["loss_task_contrastive"], expected / NORMALIZER)

    @pytest.mark.parametrize("weight", [1.0, 0.3])
    def test_harmonic_detection(self, weight):
        """The three together, Eq. 12 and 13."""
        matched = softmax_predictions()
        criterion = Criterion(
            "softmax_cross_entropy",
            "smooth_l1_harmonic_iou",
            {"harmonic": weight, "task_contrastive": 1.0},
        )
        loss = sum(criterion(matched, NORMALIZER).values())
        entropy = F.cross_entropy(
            matched.logits, matched.labels, ignore_index=-1, reduction="none"
        )  # fmt: skip
        localization = L.smooth_l1_loss(matched.deltas, matched.gt_deltas).sum(dim=1)
        localization = localization + 1.5 * L.harmonic_iou_loss(matched.ious)
        harmonic = L.harmonic_loss(entropy[:5], localization)
        plain = entropy[:5] + localization
        contrastive = L.task_contrastive_loss(
            matched.logits[:5].softmax(dim=1), matched.classes, matched.ious
        )
        positives_loss = plain + weight * (harmonic - plain) + contrastive
        expected = (positives_loss.sum() + entropy[7:].sum()) / NORMALIZER
        torch.testing.assert_close(loss, expected)
        inputs = matched.logits, matched.deltas, matched.boxes
        for ours, theirs in zip(
            torch.autograd.grad(loss, inputs, retain_graph=True),
            torch.autograd.grad(expected, inputs),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)

    def test_factors_are_recorded(self):
        """What the training logs of the harmonic loss, 1 + exp(-L) and 1 + exp(-CE)."""
        matched = matched_predictions()
        criterion = Criterion("sigmoid_cross_entropy", "smooth_l1", ["harmonic"])
        losses, factors = criterion.losses_and_factors(matched, NORMALIZER)
        assert losses == criterion(matched, NORMALIZER)
        targets = torch.zeros(5, 3)
        targets[range(5), matched.classes] = 1
        entropy = F.binary_cross_entropy_with_logits(matched.logits[:5], targets, reduction="none")
        localization = L.smooth_l1_loss(matched.deltas, matched.gt_deltas).sum(dim=1)
        expected = L.harmonic_factors(entropy.sum(dim=1), localization)
        assert factors.keys() == {"harmonic_classification", "harmonic_localization"}
        for ours, theirs in zip(factors.values(), expected, strict=True):
            torch.testing.assert_close(ours, theirs.detach())
            assert not ours.requires_grad
        criterion = Criterion("sigmoid_focal", "giou", ["iou_balanced", "correlation"])
        _, factors = criterion.losses_and_factors(matched, NORMALIZER)
        assert factors.keys() == {"iou_balanced_classification"}

    @pytest.mark.parametrize("name", ["sigmoid_cross_entropy", "sigmoid_focal"])
    @pytest.mark.parametrize("classes", ["own", "all"])
    def test_iou_balanced_keeps_the_sum(self, name, classes):
        """Only the losses of positives change: at their own class, as the authors' code, or all."""
        matched = matched_predictions()
        plain = Criterion(name, "smooth_l1")(matched, NORMALIZER)
        options = {"iou_balanced": {"classes": classes}}
        balanced = Criterion(name, "smooth_l1", ["iou_balanced"], options)(matched, NORMALIZER)
        torch.testing.assert_close(balanced, plain)
        ours, theirs = (
            torch.autograd.grad(losses["loss_cls"], matched.logits, retain_graph=True)[0]
            for losses in (balanced, plain)
        )
        torch.testing.assert_close(ours[7:], theirs[7:])
        losses = torch.zeros(5, 3)
        for row, cls in product(range(5), range(3)):
            p = matched.logits[row, cls].sigmoid().item()
            p = p if cls == matched.classes[row] else 1 - p
            alpha = 0.25 if cls == matched.classes[row] else 0.75
            focal = alpha * (1 - p) ** 2 if name == "sigmoid_focal" else 1
            losses[row, cls] = -focal * math.log(p)
        own = F.one_hot(matched.classes, 3).bool()
        weighted = own if classes == "own" else torch.ones_like(own)
        powers = matched.ious.detach()[:, None] ** 1.5
        weights = powers * losses[weighted].sum() / (powers * losses)[weighted].sum()
        weights = torch.where(weighted, weights, 1.0)
        torch.testing.assert_close(ours[:5], theirs[:5] * weights)
        assert weights.max() > 1.1 and weights.min() < 0.9

    @pytest.mark.parametrize("order", [("harmonic", "iou_balanced"), ("iou_balanced", "harmonic")])
    def test_iou_balanced_and_harmonic(self, order):
        """In their order; the own class's part that IoUs weight is that of the unchanged loss."""
        matched = matched_predictions()
        losses = Criterion("sigmoid_cross_entropy", "smooth_l1", order)(matched, NORMALIZER)
        p, targets = matched.logits[keep()].sigmoid(), one_hot(matched)
        entropy = -(targets * p.log() + (1 - targets) * (1 - p).log())
        classification, own = entropy[:5].sum(dim=1), (entropy * targets)[:5].sum(dim=1)
        localization = L.smooth_l1_loss(matched.deltas, matched.gt_deltas).sum(dim=1)
        powers = matched.ious.detach() ** 1.5
        moved = own * (powers * own.sum() / (powers * own).sum() - 1).detach()
        for name in order:
            if name == "iou_balanced":
                classification = classification + moved
            else:
                classification, localization = (
                    classification * (1 + (-localization).exp()),
                    localization * (1 + (-classification).exp()),
                )
        expected = (classification.sum() + entropy[5:].sum(), localization.sum())
        for name, value in zip(("loss_cls", "loss_box_reg"), expected, strict=True):
            torch.testing.assert_close(losses[name], value / NORMALIZER)
            ours, theirs = (
                torch.autograd.grad(loss, (matched.logits, matched.deltas), retain_graph=True)
                for loss in (losses[name], value / NORMALIZER)
            )
            torch.testing.assert_close(ours, theirs)

    def test_iou_balanced_of_a_softmax_has_one_class(self):
        losses = [
            Criterion("softmax_cross_entropy", "giou", ["iou_balanced"], {"iou_balanced": options})(
                softmax_predictions(), NORMALIZER
            )
            for options in ({"classes": "own"}, {"classes": "all"})
        ]
        torch.testing.assert_close(*losses)


def names(registry, activation):
    return [n for n, x in registry.items() if activation in x.activations]


@pytest.mark.slow
@pytest.mark.parametrize("num_positives", [5, 1, 0])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_every_composition_is_finite(activation, num_positives):
    make = matched_predictions if activation == "sigmoid" else softmax_predictions
    couplings = names(COUPLINGS, activation)
    checked = 0
    for classification, localization, coupled, scale in product(
        names(CLASSIFICATION_LOSSES, activation),
        names(LOCALIZATION_LOSSES, activation),
        [(), *((name,) for name in couplings), couplings],
        (1.0, 1e4),
    ):
        if refusal(classification, localization, coupled):
            with pytest.raises(ValueError, match=refusal(classification, localization, coupled)):
                Criterion(classification, localization, coupled)
            continue
        matched = make(num_positives)
        matched.logits = (matched.logits.detach() * scale).requires_grad_()
        loss = sum(Criterion(classification, localization, coupled)(matched, NORMALIZER).values())
        loss.backward()
        what = (classification, localization, coupled, scale)
        assert loss.isfinite(), what
        for tensor in (matched.logits, matched.boxes, matched.deltas):
            assert tensor.grad is None or tensor.grad.isfinite().all(), what
        assert (matched.logits.grad[5:7] == 0).all() or num_positives < 5  # ignored
        checked += 1
    assert checked > 60


@pytest.mark.parametrize("name", CLASSIFICATION_LOSSES)
def test_nan_is_never_hidden(name):
    is_sigmoid = "sigmoid" in CLASSIFICATION_LOSSES[name].activations
    make = matched_predictions if is_sigmoid else softmax_predictions
    # A positive, background, and an ignored sample of losses that are computed for each.
    samples = [(0, 5), (15, 5), (15, 0)]
    if CLASSIFICATION_LOSSES[name].per_sample:
        samples.append((5, 5))
    for sample, num_positives in samples:
        matched = make(num_positives)
        with torch.no_grad():
            matched.logits[sample] = torch.nan
        assert classification_loss(name, matched).isnan()
    for localization in names(LOCALIZATION_LOSSES, "sigmoid"):
        if refusal(name, localization):
            continue
        matched = make()
        with torch.no_grad():
            matched.boxes[2] = matched.deltas[2] = torch.nan
        assert Criterion(name, localization)(matched, NORMALIZER)["loss_box_reg"].isnan()


def test_half_precision():
    for classification, localization in product(
        names(CLASSIFICATION_LOSSES, "sigmoid"), names(LOCALIZATION_LOSSES, "sigmoid")
    ):
        if refusal(classification, localization):
            continue
        matched = matched_predictions(dtype=torch.float16)
        losses = Criterion(classification, localization, ["correlation", "association"])(
            matched, NORMALIZER
        )
        assert {loss.dtype for loss in losses.values()} == {torch.float32}


class TestRefusals:
    @pytest.mark.parametrize(
        "classification, localization, couplings, message",
        [
            ("ap", "giou", ["harmonic"], "'harmonic' needs the classification loss.*'ap'"),
            ("rank_sort", "giou", ["iou_balanced"], "'iou_balanced' needs.*'rank_sort'"),
            ("sigmoid_focal", "ghm_r", ["harmonic"], "'harmonic' needs the localiz.*'ghm_r'"),
            ("rank_sort", "ghm_r", [], "'rank_sort' reads the localization loss.*'ghm_r'"),
            ("alrp", "smooth_l1", [], "'alrp' ranks by.*'smooth_l1' is not; there are: giou"),
            ("alrp", "iou", [], "to be bounded, and 'iou' is not"),
        ],
    )
    def test_pairs(self, classification, localization, couplings, message):
        with pytest.raises(ValueError, match=message):
            Criterion(classification, localization, couplings)
        with pytest.raises(ValueError, match=f"^MODEL.CRITERION: .*{message}"):
            build(
                CLASSIFICATION=classification, LOCALIZATION=localization, COUPLINGS=couplings
            )  # fmt: skip

    def test_weighting_a_sum(self):
        with pytest.raises(ValueError, match="'ghm_r' cannot be weighted by iou"):
            build(LOCALIZATION="ghm_r", LOCALIZATION_WEIGHTED_BY="iou")
        with pytest.raises(ValueError, match="'scores'; did you mean 'score'"):
            build(LOCALIZATION_WEIGHTED_BY="scores")

    def test_unknown_options(self):
        with pytest.raises(ValueError, match="^ap.dleta: unknown option of ap 'dleta'.*'delta'"):
            Criterion("ap", "giou", options={"ap": {"dleta": 1.0}})
        with pytest.raises(ValueError, match="couplings names one twice"):
            Criterion("ap", "giou", ["correlation", "correlation"])

    @pytest.mark.parametrize(
        "name, option, value, message",
        [
            ("SIGMOID_FOCAL", "ALPHA", 2.0, "must be <= 1, got 2.0"),
            ("SIGMOID_FOCAL", "GAMMA", -1.0, "must be >= 0, got -1.0"),
            ("QUALITY_FOCAL", "BETA", -1.0, "must be >= 0, got -1.0"),
            ("VARIFOCAL", "ALPHA", -1.0, "must be >= 0, got -1.0"),
            ("VARIFOCAL", "GAMMA", math.inf, "must be a finite number >= 0, got inf"),
            ("IA_BCE", "ALPHA", 1.5, r"must be in \[0, 1\], got 1.5"),
            ("MAL", "GAMMA", -1.0, "must be >= 0, got -1.0"),
            ("MAL", "ALPHA", -1.0, "must be >= 0, or None, got -1.0"),
            ("POSITION_SUPERVISED", "EXPONENT", -1.0, "must be >= 0, got -1.0"),
            ("TASK_ALIGNED", "BETA", -1.0, "must be >= 0, got -1.0"),
            ("APE", "OVER", "images", ": unknown name 'images'; did you mean 'image'"),
            ("GHM_C", "BINS", 0, "must be >= 1, got 0"),
            ("GHM_C", "MOMENTUM", 1.0, r"must be in \[0, 1\), got 1.0"),
            ("DR", "MARGIN", math.nan, "must be a finite number >= 0, got nan"),
            ("DR", "LAM_NEG", 0.0, "must be > 0, got 0.0"),
            ("AP", "DELTA", 0.0, "must be > 0, got 0.0"),
            ("AP", "INTERPOLATE", 1, "must be True or False, got 1"),
            ("AP", "MEMORY", -1, "must be >= 0, got -1"),
            ("PAIRWISE_ERROR", "DISTANCE", "stepp", ": unknown name 'stepp'; did you mean 'step'"),
            ("PAIRWISE_ERROR", "BALANCE", "ranks", ": unknown name 'ranks'; did you mean 'rank'"),
            ("PAIRWISE_ERROR", "LAM", -1.0, "must be > 0, got -1.0"),
            ("APE", "LAM", 0.0, "must be > 0, got 0.0"),
            ("APE", "LAM", "8", "must be a finite number > 0, got '8'"),
            ("RANK_SORT", "DELTA", -0.5, "must be > 0, got -0.5"),
            ("RANK_SORT", "SELF_BALANCE", None, "must be True or False, got None"),
            ("ALRP", "DELTA", 0.0, "must be > 0, got 0.0"),
            ("SMOOTH_L1", "BETA", math.inf, "must be a finite number >= 0, got inf"),
            ("BALANCED_L1", "ALPHA", 0.0, "must be > 0, got 0.0"),
            ("GHM_R", "MU", 0.0, "must be > 0, got 0.0"),
            ("IOU_BALANCED_SMOOTH_L1", "LAM", -1.0, "must be >= 0, got -1.0"),
            ("IOU_BALANCED_SMOOTH_L1", "WEIGHT", 0.0, "must be > 0, or None, got 0.0"),
            ("HARMONIC_IOU", "GAMMA", 1.5, "must be <= 1, got 1.5"),
            ("SMOOTH_L1_HARMONIC_IOU", "GAMMA", 1.5, "must be <= 1, got 1.5"),
            ("SMOOTH_L1_HARMONIC_IOU", "ALPHA", -1.0, "must be >= 0, got -1.0"),
            ("ASSOCIATION", "KIND", "pze", ": unknown name 'pze'; did you mean 'pse'"),
            ("ASSOCIATION", "BETA", math.inf, "must be a finite number >= 0, got inf"),
            ("TASK_CONTRASTIVE", "MARGIN", -0.1, "must be >= 0, got -0.1"),
            ("IOU_BALANCED", "ETA", -0.1, "must be >= 0, got -0.1"),
            ("CORRELATION", "MEMORY", -1, "must be >= 0, got -1"),
            ("CORRELATION", "GLOBAL_BATCH", 1, "must be True or False, got 1"),
            ("HARMONIC", "WEIGHT", -1.0, "must be >= 0, got -1.0"),
            ("HARMONIC", "WARMUP_ITERS", -1, "must be >= 0, got -1"),
            ("HARMONIC", "SCHEDULE", (1, 2), r"must be pairs .* got \(1, 2\)"),
        ],
    )
    def test_values(self, name, option, value, message):
        kinds = {
            "CLASSIFICATION": CLASSIFICATION_LOSSES,
            "LOCALIZATION": LOCALIZATION_LOSSES,
        }
        cfg = config()
        for key, registry in kinds.items():
            if name.lower() in registry:
                cfg.MODEL.CRITERION[key] = name.lower()
        if name.lower() in COUPLINGS:
            cfg.MODEL.CRITERION.COUPLINGS = (name.lower(),)
        setattr(cfg.MODEL.CRITERION[name], option, value)
        with pytest.raises(ConfigError, match=rf"^MODEL\.CRITERION\.{name}\.{option} ?{message}"):
            build_criterion(cfg, activation="sigmoid", has_deltas=True)


def test_weights_and_schedules_by_config():
    cfg = config(COUPLINGS=("association",))
    cfg.merge_from_list(
        [
            "MODEL.CRITERION.ASSOCIATION.WEIGHT", "0.5",
            "MODEL.CRITERION.ASSOCIATION.WARMUP_ITERS", "10",
            "MODEL.CRITERION.ASSOCIATION.SCHEDULE", "((10, 1.0), (20, 0.0))",
        ]
    )  # fmt: skip
    criterion = build_criterion(cfg, activation="sigmoid", has_deltas=True)
    assert criterion.coupling_weights["association"] == Weight(0.5, 10, ((10, 1.0), (20, 0.0)))
    matched = matched_predictions()
    plain = Criterion("sigmoid_focal", "smooth_l1", ["association"])(matched, NORMALIZER)[
        "loss_association"
    ]
    for iteration, factor in ((0, 0.0), (5, 0.25), (10, 0.5), (15, 0.25), (20, 0.0)):
        loss = criterion(matched, NORMALIZER, iteration)["loss_association"]
        torch.testing.assert_close(loss, factor * plain)
    assert WEIGHT_OPTIONS.keys() == {"weight", "warmup_iters", "schedule"}


def test_none_for_a_number_by_config():
    """IoU-balanced localization in its other normalization."""
    cfg = config(LOCALIZATION="iou_balanced_smooth_l1")
    cfg.merge_from_list(["MODEL.CRITERION.IOU_BALANCED_SMOOTH_L1.WEIGHT", "None"])
    criterion = build_criterion(cfg, activation="sigmoid", has_deltas=True)
    matched = matched_predictions()
    expected = L.smooth_l1_loss(matched.deltas, matched.gt_deltas, 0.111).sum() / NORMALIZER
    torch.testing.assert_close(criterion(matched, NORMALIZER)["loss_box_reg"], expected)
