import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage

from corrdet import add_corrdet_config
from corrdet.losses import correlation_loss
from corrdet.modeling import load_old_state
from corrdet.modeling.core.bounds import bound_logits
from corrdet.modeling.core.training import RunningPositives
from tests.helpers.detectors import batch, build_dense, match, quick_cfg


def pair_of_models(cfg, localization="smooth_l1"):
    """corrdet's and Detectron2's RetinaNet with the same weights."""
    cfg.MODEL.CRITERION.LOCALIZATION = localization
    ours = build_model(cfg)
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = localization
    theirs = build_model(cfg)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("num_objects", [(3, 1), (0, 4), (0, 0)])
@pytest.mark.parametrize("localization", ["smooth_l1", "giou"])
def test_losses_and_gradients_are_detectron2s(localization, num_objects):
    ours, theirs = pair_of_models(quick_cfg(), localization)
    for seed in range(3):  # the normalizer is a running mean: it has to agree step after step
        images = batch(num_objects, seed)
        losses, positives = [], []
        for model in (ours, theirs):
            with EventStorage() as storage:
                losses.append(model(images))
            positives.append(storage.latest()["num_pos_anchors"])
        assert positives[0] == positives[1]
        assert losses[0].keys() == losses[1].keys() == {"loss_cls", "loss_box_reg"}
        for name in losses[0]:
            torch.testing.assert_close(losses[0][name], losses[1][name], rtol=1e-5, atol=1e-7)
        for model, values in zip((ours, theirs), losses, strict=False):
            model.zero_grad()
            sum(values.values()).backward()
        for (name, parameter), reference in zip(
            ours.named_parameters(), theirs.parameters(), strict=False
        ):
            if reference.grad is not None:
                torch.testing.assert_close(
                    parameter.grad, reference.grad, rtol=1e-3, atol=1e-6, msg=name
                )


def test_detections_are_detectron2s():
    ours, theirs = pair_of_models(quick_cfg())
    ours.eval().inference.score_threshold = 0.005
    theirs.eval().test_score_thresh = 0.005
    images = batch()
    for image in images:  # boxes come in the size that the image had before it was resized
        image["height"], image["width"] = 2 * image["height"], 3 * image["width"]
    with torch.no_grad():
        for result, expected in zip(ours(images), theirs(images), strict=False):
            assert len(expected["instances"]) > 0
            for field in ("scores", "pred_classes"):
                torch.testing.assert_close(
                    result["instances"].get(field), expected["instances"].get(field)
                )
            torch.testing.assert_close(
                result["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor
            )


def test_names_of_weights_are_those_of_the_model_zoo():
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.merge_from_file("configs/retinanet/retinanet_R50_1x_spearman.yaml", False)
    cfg.MODEL.DEVICE = "cpu"
    pair_of_models(cfg)  # loads strictly


class TestPositives:
    def evaluate(self, images):
        model = build_model(quick_cfg()).eval()
        with torch.no_grad():
            return model, model(images)

    def test_are_the_anchors_that_detectron2_matches(self):
        ours, theirs = pair_of_models(quick_cfg())
        images = batch((3, 2))
        with torch.no_grad():
            outputs = ours.eval()(images)
            features = theirs.eval().backbone(theirs.preprocess_image(images).tensor)
            features = [features[name] for name in theirs.head_in_features]
            logits, deltas = theirs._transpose_dense_predictions(theirs.head(features), [10, 4])
            logits, deltas = torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
        anchors = theirs.anchor_generator(features)
        labels, gt_boxes = theirs.label_anchors(anchors, [image["instances"] for image in images])
        anchors = Boxes.cat(anchors).tensor
        assert len(outputs) == 2
        for index, output in enumerate(outputs):
            where = torch.nonzero((labels[index] >= 0) & (labels[index] < 10))[:, 0]
            assert len(where) > 1
            boxes = theirs.box2box_transform.apply_deltas(deltas[index, where], anchors[where])
            ious = pairwise_iou(Boxes(boxes), Boxes(gt_boxes[index][where])).diagonal()
            scores = logits[index, where, labels[index][where]].sigmoid()
            torch.testing.assert_close(output["positives"]["scores"], scores)
            torch.testing.assert_close(output["positives"]["ious"], ious)

    @pytest.mark.parametrize("with_objects", [0, 1])
    def test_images_without_ground_truth_have_none(self, with_objects):
        images = batch()
        for image in images[with_objects:]:
            del image["instances"]
        _, outputs = self.evaluate(images)
        assert all(output.keys() == {"instances"} for output in outputs)

    def test_images_without_objects(self):
        _, outputs = self.evaluate(batch((0, 0)))
        assert [len(output["positives"]["scores"]) for output in outputs] == [0, 0]


class TestImageBounds:
    @pytest.fixture
    def model(self):
        cfg = quick_cfg()
        cfg.TEST.IMAGE_BOUNDS = True
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        torch.nn.init.normal_(model.head.cls_score.weight, std=0.1)  # scores that differ
        return model

    @torch.no_grad()
    def test_only_the_order_of_the_positives_scores_changes(self, model):
        images = batch((3, 2))
        _, features, predictions = model.predict(images)
        logits, anchors = predictions.logits, model.anchor_generator(features)
        instances = [image["instances"] for image in images]
        before = model.match(anchors, predictions, instances).matched
        for upper in (True, False):
            bound = bound_logits(before, logits, upper=upper)
            assert [level.shape for level in bound] == [level.shape for level in logits]
            after = model.match(anchors, predictions._replace(logits=bound), instances).matched
            torch.testing.assert_close(after.ious, before.ious)
            entries = before.positives, before.labels[before.positives]
            others = torch.ones_like(before.logits, dtype=torch.bool)
            others[entries] = False
            assert torch.equal(after.logits[others], before.logits[others])
            for image_id in range(2):
                image_positives = before.image_ids == image_id
                scores, ious = after.scores[image_positives], after.ious[image_positives]
                assert len(scores) > 3 and before.scores[image_positives].std() > 0
                assert torch.equal(
                    scores.sort().values, before.scores[image_positives].sort().values
                )
                assert torch.equal(scores[ious.argsort(descending=not upper)], scores.sort().values)
                assert not torch.equal(scores, before.scores[image_positives])

    @torch.no_grad()
    def test_are_in_the_output(self, model):
        images = batch((3, 2))
        outputs = model(images)
        names = {"instances", "positives", "instances_upper", "instances_lower"}
        assert all(output.keys() == names for output in outputs)
        model.image_bounds = False
        for output, without in zip(outputs, model(images), strict=True):
            assert without.keys() == {"instances", "positives"}
            assert torch.equal(output["instances"].scores, without["instances"].scores)
        for image in images:
            del image["instances"]
        model.image_bounds = True
        assert all(output.keys() == {"instances"} for output in model(images))


def test_image_bounds_need_the_ground_truth():
    cfg = quick_cfg()
    cfg.TEST.IMAGE_BOUNDS, cfg.TEST.BETA_IMG = True, False
    with pytest.raises(ValueError, match="expected TEST.BETA_IMG True, got False"):
        build_model(cfg)


def test_a_training_step_with_each_coefficient_changes_the_weights():
    for coefficient in ("pearson", "spearman", "concordance"):
        cfg = quick_cfg(COUPLINGS=("correlation",))
        cfg.MODEL.CRITERION.CORRELATION.COEFFICIENT = coefficient
        model = build_model(cfg)
        before = model.head.cls_score.weight.clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        matched = match(model, batch()).matched
        with EventStorage():
            losses = model(batch())
        assert losses["loss_correlation"].item() > 0
        torch.testing.assert_close(
            correlation_loss(matched.scores, matched.ious, coefficient) * 0.1,
            losses["loss_correlation"].detach(),
        )
        losses["loss_correlation"].backward()
        # From the correlation alone nothing reaches the box branch.
        assert all(p.grad is None for p in model.head.bbox_pred.parameters())
        optimizer.step()
        assert not torch.equal(model.head.cls_score.weight, before)


@pytest.mark.parametrize(
    "theirs, value, ours, default",
    [
        ("FOCAL_LOSS_ALPHA", 0.5, "SIGMOID_FOCAL.ALPHA", "0.25"),
        ("FOCAL_LOSS_GAMMA", 1.0, "SIGMOID_FOCAL.GAMMA", "2.0"),
        ("SMOOTH_L1_LOSS_BETA", 0.5, "SMOOTH_L1.BETA", "0.0"),
        ("BBOX_REG_LOSS_TYPE", "giou", "LOCALIZATION", "'smooth_l1'"),
    ],
)
def test_detectron2s_loss_keys_are_refused_where_they_would_do_nothing(
    theirs, value, ours, default
):
    cfg = quick_cfg()
    cfg.MODEL.RETINANET[theirs] = value
    with pytest.raises(ValueError, match=f"set MODEL.CRITERION.{ours}, which is {default}"):
        build_model(cfg)
    cfg.merge_from_list([f"MODEL.CRITERION.{ours}", value])
    build_model(cfg)


def test_autocast_step_is_finite():
    model = build_model(quick_cfg(COUPLINGS=("correlation",)))
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch())
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_detectron2s_default_of_beta_is_refused_as_ours_differs():
    cfg = quick_cfg()
    cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA = 0.1
    with pytest.raises(
        ValueError, match="SMOOTH_L1_LOSS_BETA is 0.1.*SMOOTH_L1.BETA, which is 0.0"
    ):
        build_model(cfg)
    for beta in (0.1, 0.2):  # whoever sets ours knows what it is
        cfg.MODEL.CRITERION.SMOOTH_L1.BETA = beta
        build_model(cfg)
    cfg.MODEL.CRITERION.SMOOTH_L1.BETA = 0.0
    cfg.MODEL.CRITERION.LOCALIZATION = "giou"  # which has no beta
    build_model(cfg)
    cfg.MODEL.CRITERION.LOCALIZATION = "smooth_l1"
    cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA = 0.0
    build_model(cfg)


class TestNormalizer:
    def test_is_a_running_mean(self):
        normalizer = RunningPositives()
        means = [normalizer(count, torch.device("cpu")) for count in (7, 0)]
        assert means == [
            100 * 0.9 + 7 * (1 - 0.9),
            (100 * 0.9 + 7 * (1 - 0.9)) * 0.9 + 1 * (1 - 0.9),
        ]

    def test_is_in_the_state_dict_to_the_last_bit(self):
        model, other = build_model(quick_cfg()), build_model(quick_cfg())
        assert "normalizer.mean" not in model.state_dict()
        model.normalizer.mean = 0.1 + 0.2
        weights = model.state_dict()
        assert weights["normalizer.mean"].dtype == torch.float64
        other.load_state_dict(weights, strict=True)
        assert other.normalizer.mean == 0.1 + 0.2
        # Of published weights, which do not have it.
        del weights["normalizer.mean"]
        other.load_state_dict(weights, strict=True)
        assert other.normalizer.mean is None

    def test_state_of_old_checkpoints(self):
        cfg = quick_cfg(CLASSIFICATION="ghm_c")
        model = build_model(cfg)
        counts = torch.arange(30.0)
        load_old_state(
            model, {"loss_normalizer": 12.5, "criteria": {"": {"ghm_c": {"counts": counts}}}}
        )
        assert model.normalizer.mean == 12.5
        assert model.state_dict()["criterion.state.ghm_c.counts[30]"].equal(counts)
        # Of today's, and of detectors without a running mean.
        load_old_state(model, {})
        load_old_state(build_dense("atss_baseline"), {"loss_normalizer": None, "criteria": {}})
        assert model.normalizer.mean == 12.5
