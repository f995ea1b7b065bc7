"""Default boxes, and the blocks of which the heads of SSD, DSSD and RefineDet consist."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from corrdet.modeling import default_boxes
from corrdet.modeling.ssd.heads import (
    DeconvolutionModule,
    DSSDHead,
    PredictionModule,
    RefineDetHead,
    SSDHead,
    TopDownPath,
    TransferConnectionBlock,
)

SSD300_RATIOS = [[2.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [2.0], [2.0]]
# Odd sizes halve to more than half.
SIZES = [(9, 14), (5, 7), (3, 4), (2, 2)]


def features_of(channels, num_images=2):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(num_images, num_channels, *size, generator=generator)
        for num_channels, size in zip(channels, SIZES, strict=True)
    ]


class TestDefaultBoxes:
    def test_are_those_of_the_paper(self):
        """SSD300: Eq. 4 and the shapes of Sec. 2.2, around the middle of each cell."""
        strides = [8, 16, 32, 64, 128, 256]
        generator = default_boxes(strides, 300, 0.1, 0.2, 0.9, SSD300_RATIOS)
        assert generator.num_anchors == [4, 6, 6, 6, 4, 4]
        sizes = [(3, 2)] * 6
        features = [torch.zeros(1, 1, *size) for size in sizes]
        scales = [0.1] + [0.2 + (0.9 - 0.2) / (5 - 1) * (k - 1) for k in range(1, 7)]
        for level, boxes in enumerate(generator(features)):
            scale, following = scales[level], scales[level + 1]
            expected = []
            for row in range(3):
                for column in range(2):
                    y, x = (row + 0.5) * strides[level], (column + 0.5) * strides[level]
                    shapes = [(scale, scale)] + [(math.sqrt(scale * following),) * 2]
                    for ratio in SSD300_RATIOS[level]:
                        for aspect_ratio in (ratio, 1 / ratio):
                            shapes.append(
                                (scale * math.sqrt(aspect_ratio), scale / math.sqrt(aspect_ratio))
                            )
                    for w, h in shapes:
                        w, h = 300 * w, 300 * h
                        expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            torch.testing.assert_close(boxes.tensor, torch.tensor(expected))

    def test_one_list_of_aspect_ratios_is_for_all_levels(self):
        generator = default_boxes([8, 16, 32], 160, 0.1, 0.2, 0.4, [[1.6, 2.0, 3.0]])
        assert generator.num_anchors == [8, 8, 8]

    def test_what_does_not_fit_together(self):
        with pytest.raises(ValueError, match=r"three levels or more, got strides \[8, 16\]"):
            default_boxes([8, 16], 300, 0.1, 0.2, 0.9, [[2.0]])
        with pytest.raises(ValueError, match="each of 3 levels or for all of them, got 2 lists"):
            default_boxes([8, 16, 32], 300, 0.1, 0.2, 0.9, [[2.0], [2.0]])


def test_ssd_head_has_its_own_convolutions_on_each_level():
    head = SSDHead(channels=[8, 4, 4, 6], num_priors=[4, 6, 6, 4], num_logits=3, prior_prob=0.1)
    features = features_of([8, 4, 4, 6])
    logits, deltas, _ = head(features)
    for level, (feature, count) in enumerate(zip(features, [4, 6, 6, 4], strict=True)):
        assert logits[level].shape == (2, count * 3, *SIZES[level])
        conv = head.bbox_pred[level]
        expected = F.conv2d(feature, conv.weight, conv.bias, padding=1)
        torch.testing.assert_close(deltas[level], expected)
        assert deltas[level].shape[1] == count * 4
        torch.testing.assert_close(
            head.cls_score[level].bias.sigmoid(), torch.full((count * 3,), 0.1)
        )
    without = SSDHead(channels=[8], num_priors=[4], num_logits=3)
    assert not without.cls_score[0].bias.any()


class TestTopDownPath:
    @pytest.mark.parametrize("block", [DeconvolutionModule, TransferConnectionBlock])
    def test_each_level_knows_of_all_deeper_ones_and_of_no_other(self, block):
        channels = [8, 4, 4, 6]
        path = TopDownPath(block, channels, 32, "GN")
        features = [feature.requires_grad_() for feature in features_of(channels)]
        outputs = path(features)
        for level, output in enumerate(outputs):
            assert output.shape == (2, 32, *SIZES[level])
            gradients = torch.autograd.grad(
                output.square().sum(), features, retain_graph=True, allow_unused=True
            )
            reached = [gradient is not None and gradient.abs().sum() > 0 for gradient in gradients]
            assert reached == [other >= level for other in range(4)]

    def test_deconvolution_multiplies(self):
        """Conv, norm, ReLU, conv, norm; times deconvolution, conv, norm (DSSD, Fig. 3)."""
        torch.manual_seed(0)
        block = DeconvolutionModule(4, 32, "GN", has_deeper=True)
        feature, deeper = torch.randn(2, 4, 5, 7), torch.randn(2, 32, 3, 4)

        def conv(layer, x):
            x = F.conv2d(x, layer.weight, padding=1)
            return F.group_norm(x, 32, layer.norm.weight, layer.norm.bias)

        first, _, second = block.lateral
        upsample, third = block.deeper
        lateral = conv(second, conv(first, feature).relu())
        upsampled = F.conv_transpose2d(deeper, upsample.weight, upsample.bias, stride=2)
        upsampled = conv(third, upsampled)
        assert upsampled.shape[-2:] == (6, 8)
        expected = (lateral * upsampled[..., :5, :7]).relu()
        torch.testing.assert_close(block(feature, deeper), expected)
        assert expected.sum() > 0

    def test_transfer_connection_adds(self):
        """Conv, ReLU, conv; plus deconvolution; ReLU, conv, ReLU (RefineDet, Fig. 2)."""
        torch.manual_seed(0)
        block = TransferConnectionBlock(4, 6, "", has_deeper=True)
        feature, deeper = torch.randn(2, 4, 5, 7), torch.randn(2, 6, 3, 4)

        def conv(layer, x):
            return F.conv2d(x, layer.weight, layer.bias, padding=1)

        lateral = conv(block.lateral[2], conv(block.lateral[0], feature).relu())
        weight, bias = block.deeper.weight, block.deeper.bias
        upsampled = F.conv_transpose2d(deeper, weight, bias, stride=2, padding=1)
        expected = conv(block.output[1], (lateral + upsampled[..., :5, :7]).relu()).relu()
        torch.testing.assert_close(block(feature, deeper), expected)
        assert expected.sum() > 0


def test_prediction_module_is_a_residual_block():
    torch.manual_seed(0)
    block = PredictionModule(4, 8, "")
    feature = torch.randn(2, 4, 3, 3)

    def conv(layer, x):
        return F.conv2d(x, layer.weight, layer.bias)

    first, second, third = block.residual[0], block.residual[2], block.residual[4]
    residual = conv(third, conv(second, conv(first, feature).relu()).relu())
    assert residual.shape[1] == 8 and second.weight.shape[:2] == (2, 2)
    torch.testing.assert_close(block(feature), (residual + conv(block.shortcut, feature)).relu())


INPUT_SHAPE = [
    ShapeSpec(channels=channels, stride=stride)
    for channels, stride in zip([8, 4, 4, 6], [8, 16, 32, 64], strict=True)
]
PREDICTORS = {"num_priors": [2, 3, 3, 2], "num_logits": 5, "prior_prob": None}


def test_dssd_head():
    head = DSSDHead(
        input_shape=INPUT_SHAPE,
        deconvolution_channels=6,
        prediction_channels=8,
        norm="",
        **PREDICTORS,
    )
    features = features_of([8, 4, 4, 6])
    logits, deltas, _ = head(features)
    path = head.top_down(features)
    modules = [
        module(feature) for module, feature in zip(head.prediction_modules, path, strict=True)
    ]
    expected = head.predictors(modules)
    for level, size in enumerate(SIZES):
        count = PREDICTORS["num_priors"][level]
        assert logits[level].shape == (2, count * 5, *size)
        assert torch.equal(logits[level], expected[0][level])
        assert torch.equal(deltas[level], expected[1][level])


def test_refinedet_head():
    head = RefineDetHead(input_shape=INPUT_SHAPE, connection_channels=6, norm="", **PREDICTORS)
    features = features_of([8, 4, 4, 6])
    predictions = head(features)
    # The first step is on the backbone's features, the second behind the connections.
    first, second = head.anchor_refinement(features), head.object_detection(head.top_down(features))
    for output, expected in zip(predictions, (*second[:2], *first[:2]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))
    for level, size in enumerate(SIZES):
        count = PREDICTORS["num_priors"][level]
        shapes = [tuple(levels[level].shape) for levels in predictions]
        channels = (count * 5, count * 4, count, count * 4)
        assert shapes == [(2, count, *size) for count in channels]
