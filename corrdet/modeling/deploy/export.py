"""Dense detectors as programs that do without the Python code of corrdet and Detectron2."""

import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from ..dense.detector import DenseDetector


def check_exportable(model: nn.Module) -> None:
    """
    Raises:
        TypeError: a model that is no dense detector of corrdet, or one with masks.
    """
    if not getattr(model, "exportable", False):
        raise TypeError(
            f"expected a dense detector of corrdet, without masks, got {type(model).__name__}"
        )


class ExportableDetector(nn.Module):
    """A dense detector as a function of one image, made of PyTorch's and torchvision's operators.

    What is detected is what the detector itself detects, in the size of the image that it is given.
    No step depends on how many candidates an image has, nor on its size, so that the function can
    be exported and traced.
    """

    def __init__(self, model: DenseDetector):
        """
        Args:
            model: the detector; it is copied, in evaluation mode and without gradients.

        Raises:
            TypeError: as :func:`check_exportable`.
        """
        super().__init__()
        check_exportable(model)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            image: (channels, H, W) float32 in 0..255, channels in the order of INPUT.FORMAT.

        Returns:
            of the D detections, from the highest score to the lowest: boxes (D, 4) XYXY in pixels,
            float32; scores (D,), float32; classes (D,), int64.
        """
        model = self.model
        height, width = image.shape[-2:]
        batch = self._normalize(image)[None]
        features = model.backbone(batch)
        features = [features[name] for name in model.head_in_features]
        predictions = model.head(features)
        (candidates,) = model.candidates(model.anchor_generator(features), predictions)
        # NMS within each class as Detectron2's, but with one path for any number of candidates.
        inference = dataclasses.replace(model.inference, nms=_nms)
        boxes, scores, classes, _ = inference.select(candidates)

        left, top, right, bottom = boxes.unbind(1)
        left, right = left.clamp(0, width), right.clamp(0, width)
        top, bottom = top.clamp(0, height), bottom.clamp(0, height)
        boxes = torch.stack([left, top, right, bottom], dim=1)
        has_area = torch.nonzero((right > left) & (bottom > top))[:, 0]
        return boxes[has_area], scores[has_area], classes[has_area]

    def _normalize(self, image: Tensor) -> Tensor:
        """As the detector's ``preprocess_image``, with padding on the right and at the bottom."""
        model = self.model
        divisor = max(model.backbone.size_divisibility, 1)
        height, width = image.shape[-2:]
        bottom = (height + divisor - 1) // divisor * divisor - height
        right = (width + divisor - 1) // divisor * divisor - width
        return F.pad((image - model.pixel_mean) / model.pixel_std, [0, right, 0, bottom])


def _nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """NMS within each class: the boxes of others are moved away.

    In double precision that costs them nothing of their overlaps.
    """
    spread = torch.cat([boxes.abs().flatten(), boxes.new_ones(1)]).max().double()
    apart = boxes.double() + (classes * 2 * spread)[:, None]
    return nms(apart, scores.double(), threshold)


@torch.no_grad()
def export_detector(
    model: DenseDetector, image_size: tuple[int, int] | None = None
) -> torch.export.ExportedProgram:
    """A detector as a program of torch.export; see :class:`ExportableDetector` for its arguments.

    Args:
        model: a dense detector.
        image_size: (height, width) of all images. None: of any size whose sides, in multiples of
            the backbone's divisor, are larger than the largest stride, 128 for P7. The program
            refuses others.

    Raises:
        TypeError: as :class:`ExportableDetector`.
        ValueError: no image size, and a detector whose levels are cut to fit each other.
    """
    detector, shapes = ExportableDetector(model), None
    if image_size is None and not model.any_image_size:
        raise ValueError(
            f"{type(model).__name__} can be exported for one size of images only: expected an "
            "image size, got none"
        )
    if image_size is None:
        # Different numbers of cells, of which none is 1: export would take that as a constant.
        stride = max(detector.model.anchor_generator.strides)
        image_size = 3 * stride, 4 * stride
        shapes = {"image": {1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}}
    image = _example(detector, image_size)
    return torch.export.export(detector, (image,), dynamic_shapes=shapes, strict=False)


@torch.no_grad()
def trace_detector(
    model: DenseDetector, image_size: tuple[int, int] = (800, 1088)
) -> torch.jit.ScriptModule:
    """A detector in TorchScript, for images of any size; arguments as of :func:`export_detector`.

    Args:
        model: a dense detector.
        image_size: (height, width) to trace with.

    Raises:
        TypeError: as :class:`ExportableDetector`.
    """
    detector = ExportableDetector(model)
    return torch.jit.trace(detector, (_example(detector, image_size),), check_trace=False)


def _example(detector: ExportableDetector, image_size: tuple[int, int]) -> Tensor:
    return torch.zeros(len(detector.model.pixel_mean), *image_size, device=detector.model.device)
