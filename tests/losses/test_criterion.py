import math
import re

import numpy as np
import pytest
import torch

from corrdet.losses import (
    CLASSIFICATION_LOSSES,
    COUPLINGS,
    LOCALIZATION_LOSSES,
    Criterion,
    Weight,
    build_criterion,
    correlation_loss,
    sigmoid_focal_loss,
    smooth_l1_loss,
)
from corrdet.losses.registry import LossRegistry
from corrdet.options import OptionError
from tests.helpers.losses import NORMALIZER, build, config, matched_predictions


class TestMatchedPredictions:
    def test_scores_are_those_of_the_ground_truth_class(self):
        matched = matched_predictions()
        expected = [matched.logits[i, i % 3].sigmoid().item() for i in range(5)]
        assert matched.scores.tolist() == pytest.approx(expected)

    def test_positives_may_be_anywhere(self):
        labels = torch.full((20,), 3)
        labels[[2, 7, 8, 13, 19]] = torch.tensor([1, 0, 2, 2, 1])
        positives = torch.tensor([2, 7, 8, 13, 19])
        matched = matched_predictions(labels=labels, positives=positives)
        assert matched.classes.tolist() == [1, 0, 2, 2, 1]
        expected = [matched.logits[i, labels[i]].sigmoid().item() for i in positives]
        assert matched.scores.tolist() == pytest.approx(expected)

    def test_softmax_scores_count_the_background(self):
        logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
        matched = matched_predictions(logits=logits, activation="softmax")
        assert matched.num_classes == 3
        expected = [(logits[i, i % 3].exp() / logits[i].exp().sum()).item() for i in range(5)]
        assert matched.scores.tolist() == pytest.approx(expected)

    def test_ious(self):
        boxes = torch.tensor([[20.0, 25, 40, 55]] * 5, requires_grad=True)
        matched = matched_predictions(boxes=boxes)
        assert matched.ious.tolist() == pytest.approx([1 / 7] * 5)
        matched.ious.sum().backward()
        assert (boxes.grad != 0).any(dim=1).all()

    def test_ious_of_masks_take_the_place_of_those_of_boxes(self):
        given = torch.tensor([0.1, 0.9, 0.5, 0.0, 1.0])
        matched, box_matched = matched_predictions(mask_ious=given), matched_predictions()
        assert matched.ious.tolist() == given.tolist()
        assert (
            matched.box_ious.tolist() == box_matched.ious.tolist() == box_matched.box_ious.tolist()
        )
        # Losses of boxes compare boxes.
        for name in ("harmonic_iou", "smooth_l1_harmonic_iou", "iou_balanced_smooth_l1"):
            criterion = build(LOCALIZATION=name, COUPLINGS=("correlation",))
            losses, expected = criterion(matched), criterion(box_matched)
            assert losses["loss_box_reg"] == expected["loss_box_reg"]
            assert losses["loss_correlation"] != expected["loss_correlation"]
        with pytest.raises(ValueError, match=r"mask_ious must have shape \(5,\), got \(4,\)"):
            matched_predictions(mask_ious=torch.zeros(4))

    def test_half_precision_is_widened(self):
        matched = matched_predictions(dtype=torch.float16)
        narrow = matched_predictions(
            dtype=torch.bfloat16,
            gt_boxes=matched.gt_boxes.bfloat16(),
            gt_deltas=matched.gt_deltas.bfloat16(),
            mask_ious=torch.zeros(5, dtype=torch.bfloat16),
            priors=matched.gt_boxes.bfloat16(),
        )
        for widened in (matched, narrow):
            for name in ("logits", "boxes", "gt_boxes", "deltas", "gt_deltas"):
                assert getattr(widened, name).dtype == torch.float32, name
        # Centers of priors, of which centerness is, are not rounded.
        assert narrow.mask_ious.dtype == narrow.priors.dtype == torch.float32

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"labels must have shape \(20,\), got \(7,\)"):
            matched_predictions(labels=torch.zeros(7))
        for name in ("boxes", "gt_boxes", "deltas", "gt_deltas"):
            with pytest.raises(ValueError, match=rf"^{name} must have .* \(5, 4\), got \(4, 4\)"):
                matched_predictions(**{name: torch.zeros(4, 4)})
        with pytest.raises(ValueError, match=r"image_ids must have shape \(5,\), got \(4,\)"):
            matched_predictions(image_ids=torch.zeros(4))
        with pytest.raises(ValueError, match="got 'tanh'"):
            matched_predictions(activation="tanh")
        with pytest.raises(ValueError, match=r"logits must be \(S, C\)"):
            matched_predictions(logits=torch.zeros(20))


class TestCriterion:
    def test_values(self):
        matched = matched_predictions()
        losses = build(
            COUPLINGS=("correlation",), CLASSIFICATION_WEIGHT=2.0, LOCALIZATION_WEIGHT=0.5
        )(matched, NORMALIZER)
        targets = torch.zeros(20, 3)
        for i in range(5):
            targets[i, i % 3] = 1
        focal = sigmoid_focal_loss(matched.logits, targets)
        expected = {
            "loss_cls": 2 * (focal[:5].sum() + focal[7:].sum()) / 4,
            "loss_box_reg": 0.5 * (matched.deltas - 0.3).abs().sum() / 4,
            "loss_correlation": 0.1 * correlation_loss(matched.scores, matched.ious),
        }
        assert losses.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value)

    def test_options_come_from_the_losses_own_node(self):
        matched = matched_predictions()
        cfg = config(COUPLINGS=("correlation",))
        criterion = cfg.MODEL.CRITERION
        criterion.SIGMOID_FOCAL.ALPHA, criterion.SIGMOID_FOCAL.GAMMA = 0.6, 1.0
        criterion.SMOOTH_L1.BETA = 4.0
        criterion.CORRELATION.COEFFICIENT, criterion.CORRELATION.STRENGTH = "spearman", 0.5
        criterion.CORRELATION.WEIGHT = 1.0
        losses = build_criterion(cfg, activation="sigmoid", has_deltas=True)(matched, NORMALIZER)
        targets = torch.zeros(20, 3)
        targets[matched.positives, matched.classes] = 1
        focal = sigmoid_focal_loss(matched.logits, targets, alpha=0.6, gamma=1.0)
        expected = {
            "loss_cls": (focal[:5].sum() + focal[7:].sum()) / 4,
            "loss_box_reg": smooth_l1_loss(matched.deltas, matched.gt_deltas, beta=4.0).sum() / 4,
            "loss_correlation": correlation_loss(
                matched.scores, matched.ious, "spearman", strength=0.5
            ),
        }
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value)

    def test_gradient_of_correlation_reaches_the_classifier_only(self):
        matched = matched_predictions()
        build(COUPLINGS=("correlation",))(matched, NORMALIZER)["loss_correlation"].backward()
        assert matched.boxes.grad is None
        assert matched.logits.grad[:5].abs().sum() > 0
        assert matched.logits.grad[5:].abs().sum() == 0

    @pytest.mark.parametrize("global_batch", [False, True])
    def test_gradient_of_correlation_can_reach_the_boxes(self, global_batch):
        for gradient, expected in (("ious", [False, True]), ("both", [True, True])):
            matched = matched_predictions()
            cfg = config(COUPLINGS=("correlation",))
            cfg.MODEL.CRITERION.CORRELATION.GRADIENT = gradient
            cfg.MODEL.CRITERION.CORRELATION.GLOBAL_BATCH = global_batch
            criterion = build_criterion(cfg, activation="sigmoid", has_deltas=True)
            criterion(matched, NORMALIZER)["loss_correlation"].backward()
            reached = [matched.logits.grad is not None, matched.boxes.grad is not None]
            assert reached == expected

    def test_ignored_samples_get_no_gradient(self):
        matched = matched_predictions()
        build()(matched, NORMALIZER)["loss_cls"].backward()
        assert matched.logits.grad[5:7].abs().sum() == 0
        assert matched.logits.grad[7:].abs().sum() > 0

    @pytest.mark.parametrize("localization", ["smooth_l1", "giou"])
    def test_without_positives_all_is_finite_and_attached(self, localization):
        matched = matched_predictions(num_positives=0)
        losses = build(COUPLINGS=("correlation",), LOCALIZATION=localization)(matched, NORMALIZER)
        assert losses["loss_box_reg"].item() == losses["loss_correlation"].item() == 0
        sum(losses.values()).backward()
        assert matched.logits.grad.isfinite().all()
        attached = matched.deltas if localization == "smooth_l1" else matched.boxes
        assert attached.grad is not None

    def test_autocast_runs_in_float32(self):
        @COUPLINGS.register("test_only_product")
        def _product(matched):
            return (matched.logits @ matched.logits.t())[0].sum()

        with torch.autocast("cpu", dtype=torch.bfloat16):
            matched = matched_predictions(dtype=torch.bfloat16)
            losses = build(COUPLINGS=("correlation",))(matched, NORMALIZER)
            # Autocast lets elementwise functions be, and would run this in bfloat16.
            losses |= build(COUPLINGS=("test_only_product",))(matched, NORMALIZER)
        assert {loss.dtype for loss in losses.values()} == {torch.float32}

    def test_nan_is_never_hidden(self):
        for sample in (0, 5, 15):  # a positive, an ignored one, background
            matched = matched_predictions()
            with torch.no_grad():
                matched.logits[sample, 0] = math.nan
            assert build()(matched, NORMALIZER)["loss_cls"].isnan()

    def test_weights_must_make_sense(self):
        for weight in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="LOCALIZATION_WEIGHT must be .*>= 0"):
                build(LOCALIZATION_WEIGHT=weight)
            cfg = config(COUPLINGS=("correlation",))
            cfg.MODEL.CRITERION.CORRELATION.WEIGHT = weight
            with pytest.raises(ValueError, match="CORRELATION.WEIGHT must be .*>= 0"):
                build_criterion(cfg, activation="sigmoid", has_deltas=True)


class TestRefusals:
    def test_unknown_names_come_with_the_nearest(self):
        with pytest.raises(ValueError, match="unknown coupling 'corelation'; did you mean 'corr"):
            build(COUPLINGS=("corelation",))
        with pytest.raises(ValueError, match="unknown localization loss 'xyz'; there are: .*giou"):
            build(LOCALIZATION="xyz")
        with pytest.raises(ValueError, match="unknown classification loss 'focal'.*sigmoid_focal"):
            build(CLASSIFICATION="focal")

    def test_loss_and_head_that_do_not_fit(self):
        with pytest.raises(ValueError, match="'sigmoid_focal' works on sigmoid heads.*softmax"):
            build(activation="softmax")
        with pytest.raises(ValueError, match="'smooth_l1' compares box deltas"):
            build(has_deltas=False)
        build(has_deltas=False, LOCALIZATION="giou")

    def test_a_coupling_twice(self):
        with pytest.raises(ValueError, match="names one twice"):
            build(COUPLINGS=("correlation", "correlation"))

    def test_options_that_a_loss_does_not_have(self):
        cfg = config()
        cfg.MODEL.CRITERION.SIGMOID_FOCAL.ALPHAA = 1.0
        with pytest.raises(ValueError, match="ALPHAA: unknown option.*did you mean 'alpha'"):
            build_criterion(cfg, activation="sigmoid", has_deltas=True)

    def test_a_registered_name_is_taken(self):
        registry = LossRegistry("coupling")
        registry.register("mine")(lambda matched: matched.scores.sum())
        with pytest.raises(ValueError, match="there already is a coupling named 'mine'"):
            registry.register("mine")(lambda matched: matched.ious.sum())


def test_ones_own_loss_is_a_function_and_a_name():
    @COUPLINGS.register("test_only_gap")
    def _gap(matched, *, power=2):
        return (matched.scores - matched.ious.detach()).abs().pow(power).sum()

    matched = matched_predictions()
    losses = build(COUPLINGS=("test_only_gap",))(matched, NORMALIZER)
    expected = (matched.scores - matched.ious).square().sum()
    torch.testing.assert_close(losses["loss_test_only_gap"], expected)


def test_every_registered_default_is_in_the_config():
    cfg = config()
    for registry in (CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS):
        for name, loss in registry.items():
            expected = {option.upper(): key.default for option, key in loss.options.items()}
            if registry is COUPLINGS:
                expected |= {"WEIGHT": loss.weight, "WARMUP_ITERS": 0, "SCHEDULE": ()}
            assert dict(cfg.MODEL.CRITERION[name.upper()]) == expected, name
            assert dict(cfg.MODEL.RPN_CRITERION[name.upper()]) == expected, name


def test_defaults_of_the_config():
    """As published, and as configs and checkpoints of version 0.1 had them."""
    node = config().MODEL.CRITERION
    assert (node.CLASSIFICATION, node.LOCALIZATION) == ("sigmoid_focal", "smooth_l1")
    assert config().MODEL.RPN_CRITERION.CLASSIFICATION == "sigmoid_cross_entropy"
    assert node.COUPLINGS == () and node.LOCALIZATION_WEIGHTED_BY == "none"
    assert node.CLASSIFICATION_WEIGHT == node.LOCALIZATION_WEIGHT == 1.0
    assert dict(node.SIGMOID_FOCAL) == {"ALPHA": 0.25, "GAMMA": 2.0}
    assert dict(node.GHM_C) == {"BINS": 30, "MOMENTUM": 0.75, "VARIANT": "mmdetection"}
    assert dict(node.GHM_R) == {
        "MU": 0.02, "BINS": 10, "MOMENTUM": 0.7, "VARIANT": "mmdetection",
    }  # fmt: skip
    assert dict(node.APE) == {
        "LAM": 8.0, "WEIGHT_BY_IOU": True, "OVER": "batch",
            "GLOBAL_BATCH": False, "MEMORY": 0,
    }  # fmt: skip
    assert dict(node.IOU_BALANCED_SMOOTH_L1) == {"LAM": 1.5, "WEIGHT": 3.049, "DELTA": 0.111}
    assert dict(node.CORRELATION) == {
        "COEFFICIENT": "concordance", "STRENGTH": None, "GRADIENT": "scores",
        "UNBIASED": False, "SOFT_BOTH": False, "OVER": "batch", "REDUCTION": "mean",
        "GLOBAL_BATCH": False, "MEMORY": 0, "WEIGHT": 0.1, "WARMUP_ITERS": 0, "SCHEDULE": (),
    }  # fmt: skip
    assert node.ASSOCIATION.WEIGHT == node.HARMONIC.WEIGHT == 1.0


def test_weights_of_couplings_by_name_alone_are_those_of_the_config():
    matched = matched_predictions()
    plain = Criterion("sigmoid_focal", "giou", ["correlation", "association"])(matched)
    by_config = build(LOCALIZATION="giou", COUPLINGS=("correlation", "association"))(matched)
    assert plain == by_config
    weights = {"correlation": 0.1, "association": 1.0}
    assert plain == Criterion("sigmoid_focal", "giou", weights)(matched)


def test_criterion_without_a_config():
    criterion = Criterion("sigmoid_focal", "giou", {"correlation": 0.3, "association": 1.0})
    losses = criterion(matched_predictions())
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_correlation", "loss_association"}


def test_ones_own_loss_has_its_options_in_the_config():
    @COUPLINGS.register("test_only_power")
    def _power(matched, *, power=2.0, kind="mean"):
        assert kind == "sum"
        return (matched.scores - matched.ious.detach()).abs().pow(power).sum()

    cfg = config(COUPLINGS=("test_only_power",))
    node = cfg.MODEL.CRITERION.TEST_ONLY_POWER
    defaults = {"WEIGHT": 1.0, "WARMUP_ITERS": 0, "SCHEDULE": ()}
    assert dict(node) == {"POWER": 2.0, "KIND": "mean", **defaults}
    node.POWER, node.KIND, node.WEIGHT = 3.0, "sum", 0.5
    matched = matched_predictions()
    losses = build_criterion(cfg, activation="sigmoid", has_deltas=True)(matched, NORMALIZER)
    expected = 0.5 * (matched.scores - matched.ious).abs().pow(3).sum()
    torch.testing.assert_close(losses["loss_test_only_power"], expected)


def test_options_need_defaults():
    registry = LossRegistry("coupling")
    with pytest.raises(ValueError, match="option 'power' of the coupling 'mine' needs a default"):
        registry.register("mine")(lambda matched, power: matched.scores.sum())
    assert "mine" not in registry


@pytest.mark.parametrize(
    "node, option, value, message",
    [
        ("CORRELATION", "COEFFICIENT", "spaerman", ".COEFFICIENT: .*did you mean 'spearman'"),
        ("CORRELATION", "STRENGTH", 0, ".STRENGTH must be .*> 0, or None, got 0"),
        ("CORRELATION", "STRENGTH", "abc", ".STRENGTH must be .*> 0, or None, got 'abc'"),
        ("CORRELATION", "WEIGHT", -1.0, ".WEIGHT must be >= 0, got"),
        ("SMOOTH_L1", "BETA", -1.0, ".BETA must be >= 0, got -1.0"),
    ],
)
def test_values_are_checked_when_the_criterion_is_built(node, option, value, message):
    cfg = config(COUPLINGS=("correlation",))
    setattr(cfg.MODEL.CRITERION[node], option, value)
    with pytest.raises(ValueError, match=f"^MODEL.CRITERION.{node}{message}"):
        build_criterion(cfg, activation="sigmoid", has_deltas=True)


def test_names_are_reported_with_their_key():
    for key, value in (
        ("COUPLINGS", ("corelation",)), ("CLASSIFICATION", "focal"), ("LOCALIZATION", "smoothl1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^MODEL.CRITERION.{key}: unknown "):
            build(**{key: value})


class TestOnesOwnLosses:
    """What they return is checked: a wrong shape would train on something else."""

    @pytest.mark.parametrize(
        "returned, message",
        [
            (lambda m: m.scores[:, None], r"shape \(\) or a tensor of shape \(5,\), got \(5, 1\)"),
            (lambda m: None, "got NoneType"),
        ],
    )
    def test_couplings(self, returned, message):
        name = f"test_only_returned_{len(COUPLINGS)}"
        COUPLINGS.register(name)(returned)
        with pytest.raises(ValueError, match=f"the coupling '{name}' must return .*{message}"):
            Criterion("sigmoid_focal", "giou", [name])(matched_predictions())

    def test_couplings_that_change_losses(self):
        @COUPLINGS.register("test_only_one")
        def _one(matched, *, classification, localization):
            return classification

        @COUPLINGS.register("test_only_sum")
        def _sum(matched, *, classification, localization):
            return classification.sum(), localization

        for name, message in (("one", "(classification, localization), got Tensor"),
                              ("sum", r"shape \(5,\), got \(\)")):  # fmt: skip
            message = message if name == "sum" else re.escape(message)
            with pytest.raises(
                ValueError, match=f"coupling 'test_only_{name}' must return .*{message}"
            ):
                Criterion("sigmoid_focal", "giou", [f"test_only_{name}"])(matched_predictions())

    def test_classification_and_localization(self):
        @CLASSIFICATION_LOSSES.register("test_only_elements")
        def _elements(matched):
            return matched.logits

        @CLASSIFICATION_LOSSES.register("test_only_per_sample", per_sample=False)
        def _per_sample(matched):
            return matched.logits.sum(dim=1)

        @LOCALIZATION_LOSSES.register("test_only_total")
        def _total(matched):
            return matched.ious.sum()

        for names, message in (
            (("test_only_elements", "giou"), r"\(20,\), got \(20, 3\)"),
            (("test_only_per_sample", "giou"), r"\(\), got \(20,\)"),
            (("sigmoid_focal", "test_only_total"), r"\(5,\), got \(\)"),
        ):
            own = names[0] if names[0].startswith("test") else names[1]
            with pytest.raises(
                ValueError, match=f"'{own}' must return a tensor of shape {message}"
            ):
                Criterion(*names)(matched_predictions())


def test_a_batch_that_a_loss_cannot_work_with():
    with pytest.raises(ValueError, match="'smooth_l1' compares box deltas, got .* without deltas"):
        Criterion("sigmoid_focal", "smooth_l1")(matched_predictions(deltas=None))
    logits = torch.randn(20, 4)
    softmax = matched_predictions(logits=logits, activation="softmax")
    with pytest.raises(ValueError, match="'sigmoid_focal' works on sigmoid heads, got .*softmax"):
        Criterion("sigmoid_focal", "giou")(softmax)
    with pytest.raises(ValueError, match="'softmax_cross_entropy' works on softmax.*a sigmoid"):
        Criterion("softmax_cross_entropy", "giou")(matched_predictions())


def test_options_of_losses_that_are_not_used():
    with pytest.raises(ValueError, match="unknown loss 'corelation'"):
        Criterion("sigmoid_focal", "giou", options={"corelation": {"strength": 1.0}})
    with pytest.raises(ValueError, match="couplings must be a list of names, got 'correlation'"):
        Criterion("sigmoid_focal", "giou", "correlation")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("COUPLINGS", None, "COUPLINGS must be a list of names, got None"),
        ("CLASSIFICATION", None, "expected the name of a classification loss, got None"),
        ("LOCALIZATION_WEIGHT", None, "LOCALIZATION_WEIGHT must be a finite number >= 0, got None"),
        ("COUPLINGS", (1,), "COUPLINGS: expected the name of a coupling, got 1"),
        ("CLASSIFICATION", "giou", "'giou' is a localization loss, expected a classification"),
        ("CORRELATION.WEIGHT", None, "CORRELATION.WEIGHT must be a finite number >= 0, got None"),
        ("SIGMOID_FOCAL.GAMMA", None, "SIGMOID_FOCAL.GAMMA must be a finite number >= 0, got None"),
    ],
)
def test_values_that_are_missing_or_of_another_kind(key, value, message):
    cfg = config(COUPLINGS=("correlation",))
    node, _, option = key.rpartition(".")
    (cfg.MODEL.CRITERION[node] if node else cfg.MODEL.CRITERION)[option] = value
    with pytest.raises(ValueError, match=f"^MODEL.CRITERION.*{message}"):
        build_criterion(cfg, activation="sigmoid", has_deltas=True)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (([],), {}, r"^options: expected {\"<loss>\": .*, got \[\]$"),
        (({"giou": 3},), {}, "^giou: expected its options by name, got 3$"),
        (({"sigmoid_focal": ["alpha"]},), {}, r"^sigmoid_focal: expected its .* got \['alpha'\]$"),
        (({"sigmoid_focal": {"gamma": "2"}},), {}, "^sigmoid_focal.gamma must be a finite number"),
        (({3: {}},), {}, "^options: unknown loss 3; there are: giou, sigmoid_focal$"),
        (({"sigmoid_focal": {3: 1}},), {}, "^sigmoid_focal.3: unknown option of sigmoid_focal 3"),
        ((), {"classification_weight": "1"}, "^classification_weight must be a finite number >= 0"),
        ((), {"localization_weight": torch.ones(1)}, r"^localization_weight .*tensor\(\[1.\]\)$"),
        ((), {"localization_weighted_by": None}, "^localization_weighted_by must be one of"),
    ],
)
def test_arguments_of_another_type(arguments, options, message):
    with pytest.raises(OptionError, match=message):
        Criterion("sigmoid_focal", "giou", (), *arguments, **options)


def test_couplings_of_another_type():
    for couplings, message in (
        (3, "^couplings must be a list of names, got 3$"),
        ([["association"]], r"^couplings: expected the name of a coupling, got \['association'\]$"),
        ({"association": "1"}, "^association.weight must be a finite number >= 0, got '1'$"),
        ({"association": None}, "^association.weight must be a finite number >= 0, got None$"),
        ({"association": -1}, "^association.weight must be >= 0, got -1$"),
    ):
        with pytest.raises(OptionError, match=message):
            Criterion("sigmoid_focal", "giou", couplings)


def test_options_may_be_numbers_of_numpy():
    """And are kept as Python's, so that a model that is saved as a whole has no others."""
    options = {"sigmoid_focal": {"gamma": np.float32(1.5)}, "correlation": {"memory": np.int64(2)}}
    criterion = Criterion("sigmoid_focal", "giou", {"correlation": np.float32(0.5)}, options)
    expected = {"sigmoid_focal": {"gamma": 1.5}, "correlation": {"memory": 2}}
    other = Criterion("sigmoid_focal", "giou", {"correlation": 0.5}, expected)
    matched = matched_predictions()
    assert criterion(matched, np.float32(4), np.int64(3)) == other(matched, 4.0, 3)
    assert type(criterion.classification.options["gamma"]) is float
    assert type(criterion.couplings["correlation"].options["memory"]) is int
    assert type(criterion.coupling_weights["correlation"].value) is float


class TestArgumentsOfAStep:
    @pytest.mark.parametrize(
        "normalizer, message",
        [
            (0, "must be > 0, got 0"),
            (-1.5, "must be > 0, got -1.5"),
            (math.nan, "must be a finite number > 0, got nan"),
            (math.inf, "must be a finite number > 0, got inf"),
            ("4", "must be a finite number > 0, got '4'"),
            (True, "must be a finite number > 0, got True"),
            (torch.ones(1), r"must be a number or a tensor of shape \(\), got shape \(1,\)"),
            (torch.ones(20), r"must be a number or a tensor of shape \(\), got shape \(20,\)"),
        ],
    )
    def test_normalizers(self, normalizer, message):
        with pytest.raises(OptionError, match=f"^normalizer {message}$"):
            Criterion("sigmoid_focal", "giou")(matched_predictions(), normalizer)

    def test_the_value_of_a_normalizer_on_a_device_is_not_looked_at(self):
        """It would wait for the device; that it is not finite shows in the losses."""
        matched = matched_predictions()
        criterion = Criterion("sigmoid_focal", "giou", ["correlation"])
        assert criterion(matched, torch.tensor(4.0)) == criterion(matched, 4)
        losses = criterion(matched, torch.tensor(math.nan))
        assert losses["loss_cls"].isnan() and losses["loss_box_reg"].isnan()
        # A tensor without a value.
        losses = criterion(matched, torch.empty((), device="meta"))
        assert losses["loss_cls"].shape == ()

    @pytest.mark.parametrize(
        "iteration, message",
        [
            (-1, ">= 0, got -1"),
            (2.0, "a whole number >= 0, got 2.0"),
            ("3", "a whole number >= 0, got '3'"),
            (True, "a whole number >= 0, got True"),
        ],
    )
    def test_iterations(self, iteration, message):
        weights = {"correlation": Weight(1.0, warmup_iters=10)}
        for couplings in (weights, ()):
            with pytest.raises(OptionError, match=f"^iteration must be {message}$"):
                Criterion("sigmoid_focal", "giou", couplings)(
                    matched_predictions(), iteration=iteration
                )

    def test_no_matched_predictions(self):
        with pytest.raises(TypeError, match="^expected MatchedPredictions, got dict$"):
            Criterion("sigmoid_focal", "giou")({"logits": torch.zeros(3, 3)})


@pytest.mark.parametrize("classification", ["alrp", "task_aligned"])
def test_what_weights_positives_itself_is_given_no_weighted_losses(classification):
    Criterion(classification, "giou")
    message = rf"localization_weighted_by must be 'none'.*{classification}"
    with pytest.raises(OptionError, match=message):
        Criterion(classification, "giou", localization_weighted_by="iou")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_ids": torch.zeros(5)}, "image_ids must be int64, got torch.float32"),
        ({"image_ids": torch.arange(5), "num_images": 4}, "image_ids must be from 0 .* 0 to 4"),
        ({"levels": torch.full((5,), -1)}, "levels must be from 0 to num_levels - 1, got -1"),
        ({"levels": torch.full((5,), 7), "num_levels": 3}, "got 7 to 7 with num_levels 3"),
        ({"num_images": "2"}, "num_images must be an integer >= 0 or None, got '2'"),
    ],
)
def test_images_and_levels_are_counted_from_0(changes, message):
    with pytest.raises(ValueError, match=message):
        matched_predictions(**changes)
