import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.structures import Boxes

from corrdet.matching import atss_matching, fcos_matching
from corrdet.modeling import DenseHead, FoveaTransform, centerness, square_priors

STRIDES = (8, 16, 32)
SHAPES = [ShapeSpec(channels=32, stride=stride) for stride in STRIDES]


def random_features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 32, 64 // s, 96 // s, generator=generator) for s in STRIDES]


def make_head(**options):
    torch.manual_seed(0)
    return DenseHead(input_shape=SHAPES, num_classes=5, conv_dims=[32, 32], **options)


class TestHead:
    @pytest.mark.parametrize("has_quality", [False, True])
    @pytest.mark.parametrize("has_scales", [False, True])
    def test_shapes_and_gradients_reach_everything(self, has_quality, has_scales):
        head = make_head(has_quality=has_quality, has_scales=has_scales)
        outputs = [levels for levels in head(random_features()) if levels is not None]
        channels = [5, 4, 1] if has_quality else [5, 4]
        assert len(outputs) == len(channels)
        for levels, count in zip(outputs, channels, strict=True):
            shapes = [(2, count, 64 // stride, 96 // stride) for stride in STRIDES]
            assert [tuple(level.shape) for level in levels] == shapes
        sum(level.square().sum() for levels in outputs for level in levels).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
        norms = [m for m in head.modules() if isinstance(m, torch.nn.GroupNorm)]
        assert [norm.num_groups for norm in norms] == [32] * 4

    @pytest.mark.parametrize("norm", ["", "BN", "GN"])
    def test_norms(self, norm):
        head = DenseHead(input_shape=SHAPES, num_classes=5, conv_dims=[48], norm=norm)
        assert head(random_features())[0][0].shape == (2, 5, 8, 12)

    def test_gives_what_detectron2s_gives(self):
        theirs = FCOSHead(
            input_shape=SHAPES,
            num_classes=5,
            conv_dims=[32, 32],
            norm=lambda channels: torch.nn.GroupNorm(min(32, channels), channels),
            prior_prob=0.01,
        )
        ours = make_head(has_quality=True)
        weights = {key.replace("ctrness", "quality"): v for key, v in theirs.state_dict().items()}
        ours.load_state_dict(weights, strict=True)
        features = random_features()
        for mine, other in zip(ours(features), theirs(features), strict=True):
            for level, expected in zip(mine, other, strict=True):
                assert torch.equal(level, expected)

    def test_scales_multiply_the_deltas_of_their_level(self):
        plain, scaled = make_head(), make_head(has_scales=True)
        features = random_features()
        logits, deltas, _ = plain(features)
        same_deltas = scaled(features).deltas
        for level in range(3):
            assert torch.equal(deltas[level], same_deltas[level])  # they are 1 at first
        with torch.no_grad():
            scaled.scales.copy_(torch.tensor([2.0, 3.0, 0.5]))
        same_logits, other_deltas, _ = scaled(features)
        for level, factor in enumerate((2.0, 3.0, 0.5)):
            torch.testing.assert_close(other_deltas[level], deltas[level] * factor)
            assert torch.equal(logits[level], same_logits[level])

    def test_scores_before_training_are_the_prior(self):
        logits, _, _ = make_head(prior_prob=0.02)([0 * feature for feature in random_features()])
        torch.testing.assert_close(logits[0].sigmoid(), torch.full_like(logits[0], 0.02))


class TestPriors:
    def test_positions_and_sides(self):
        priors = square_priors(STRIDES, [8, 64, 100])(random_features())
        first = [level.tensor[0].tolist() for level in priors]
        assert first == [[0, 0, 8, 8], [-24, -24, 40, 40], [-34, -34, 66, 66]]
        assert [len(level) for level in priors] == [8 * 12, 4 * 6, 2 * 3]
        assert priors[0].tensor[1].tolist() == [8, 0, 16, 8]  # row by row
        corner = square_priors(STRIDES, STRIDES, offset=0.0)(random_features())
        assert corner[0].tensor[0].tolist() == [-4, -4, 4, 4]
        with pytest.raises(ValueError, match="a side for each of 3 strides, got 2"):
            square_priors(STRIDES, [8, 16])

    def test_fit_the_matching(self):
        features = random_features()
        gt_boxes, classes = torch.tensor([[10.0, 5, 50, 60]]), torch.tensor([3])
        for sides, match, ranges in (
            (STRIDES, fcos_matching, ([(0, 1e5)] * 3,)),
            ([8 * stride for stride in STRIDES], atss_matching, ()),
        ):
            priors = square_priors(STRIDES, sides)(features)
            counts = [len(level) for level in priors]
            labels, _ = match(Boxes.cat(priors).tensor, gt_boxes, classes, counts, *ranges, 5)
            assert (labels == 3).any() and len(labels) == sum(counts)


def locations_in_boxes(count=200, seed=0):
    """Priors (N, 4) of several scales, with their centres inside boxes (N, 4)."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(count, 2, generator=generator) * 100
    half = 8.0 * 2 ** torch.randint(0, 4, (count, 1), generator=generator)
    distances = half * (torch.rand(count, 4, generator=generator) * 4 + 0.1)
    boxes = torch.cat([centers - distances[:, :2], centers + distances[:, 2:]], dim=1)
    return torch.cat([centers - half, centers + half], dim=1), boxes


class TestFoveaTransform:
    def test_value(self):
        priors, boxes = torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.0, 4, 24, 40]])
        deltas = FoveaTransform().get_deltas(priors, boxes)
        expected = [math.log(8 / 16), math.log(4 / 16), math.log(16 / 16), math.log(32 / 16)]
        torch.testing.assert_close(deltas, torch.tensor([expected]))

    def test_decodes_what_it_encodes(self):
        transform = FoveaTransform()
        priors, boxes = locations_in_boxes()
        deltas = transform.get_deltas(priors, boxes)
        torch.testing.assert_close(transform.apply_deltas(deltas, priors), boxes)
        twice = transform.apply_deltas(torch.cat([deltas, 0 * deltas], dim=1), priors)
        torch.testing.assert_close(twice[:, :4], boxes)
        centers, sides = (priors[:, :2] + priors[:, 2:]) / 2, priors[:, 2:] - priors[:, :2]
        torch.testing.assert_close(twice[:, 4:], torch.cat([centers - sides, centers + sides], 1))

    def test_is_always_finite(self):
        transform = FoveaTransform()
        priors = torch.tensor([[0.0, 0, 16, 16]])
        for box in ([8.0, 8, 9, 9], [20, 20, 30, 30], [-1e6, -1e6, 1e6, 1e6]):
            assert transform.get_deltas(priors, torch.tensor([box])).isfinite().all()
        deltas = torch.full((1, 4), 1e4, requires_grad=True)
        boxes = transform.apply_deltas(deltas, priors)
        boxes.sum().backward()
        assert boxes.isfinite().all() and deltas.grad.isfinite().all()
        assert boxes.detach()[0, 2] == pytest.approx(8 + 1000)  # 62.5 scales from the centre


class TestCenterness:
    def test_against_a_plain_loop(self):
        priors, boxes = locations_in_boxes()
        expected = []
        for prior, box in zip(priors.tolist(), boxes.tolist(), strict=True):
            x, y = (prior[0] + prior[2]) / 2, (prior[1] + prior[3]) / 2
            left, top, right, bottom = x - box[0], y - box[1], box[2] - x, box[3] - y
            horizontal = min(left, right) / max(left, right)
            expected.append(math.sqrt(horizontal * min(top, bottom) / max(top, bottom)))
        torch.testing.assert_close(
            centerness(priors, boxes), torch.tensor(expected), rtol=1e-4, atol=1e-5
        )

    def test_at_the_centre_at_a_side_and_outside(self):
        boxes = torch.tensor([[0.0, 0, 40, 20]]).repeat(4, 1)
        x, y = torch.tensor([20.0, 10, 0, 50]), torch.tensor([10.0, 10, 10, 10])
        priors = torch.stack([x - 4, y - 4, x + 4, y + 4], dim=1)
        expected = torch.tensor([1.0, math.sqrt(10 / 30), 0.0, 0.0])
        torch.testing.assert_close(centerness(priors, boxes), expected)
        without_area = torch.tensor([[20.0, 10, 20, 10]])
        assert centerness(priors[:1], without_area).tolist() == [0.0]
