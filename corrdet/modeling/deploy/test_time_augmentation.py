"""Multi-scale testing with flip, for dense detectors."""

import torch
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import nn

from ..dense.inference import Candidates


class DenseDetectorWithTTA(nn.Module):
    """A dense detector that looks at several views of an image: sizes, each also flipped.

    The candidates of all views, as they are before NMS, are mapped to the original image and go
    through the detector's own NMS together, and with PAA through its score voting. Detectron2's
    ``GeneralizedRCNNWithTTA``, for R-CNN, merges what NMS has left of each view.

    Views are taken from the image that the detector is given, by the keys TEST.AUG.MIN_SIZES,
    MAX_SIZE and FLIP. Outputs have no ``positives``: each view has its own.
    """

    def __init__(self, cfg, model: nn.Module, tta_mapper=None):
        """
        Args:
            cfg: for the views, see above.
            model: the detector, or a DistributedDataParallel of it.
            tta_mapper: from the dict of an image to those of its views, with their ``transforms``;
                by default Detectron2's DatasetMapperTTA.

        Raises:
            TypeError: a model that is no dense detector of corrdet.
        """
        super().__init__()
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        if isinstance(model, GeneralizedRCNN) or not getattr(
            model, "supports_test_time_augmentation", False
        ):
            raise TypeError(
                f"expected a dense detector of corrdet, without masks, got {type(model).__name__}"
            )
        self.model = model
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """As the detector in evaluation: ``image``, ``height`` and ``width`` to ``instances``."""
        return [{"instances": self.detect(image)} for image in batched_inputs]

    def detect(self, image: dict) -> Instances:
        """The detections of one image, in its original size."""
        size, seen = (image["height"], image["width"]), []
        for view in self.tta_mapper({name: image[name] for name in ("image", "height", "width")}):
            # One at a time: padded to the size of another, a view would look different.
            _, features, predictions = self.model.predict([view])
            anchors = self.model.anchor_generator(features)
            (candidates,) = self.model.candidates(anchors, predictions)
            boxes = candidates.boxes.cpu().numpy()
            original = view["transforms"].inverse().apply_box(boxes)
            original = torch.from_numpy(original).to(candidates.boxes)
            seen.append(candidates._replace(boxes=original))
        candidates = Candidates(*(torch.cat(values) for values in zip(*seen, strict=True)))
        kept = self.model.inference.select(candidates)
        return detector_postprocess(kept.as_instances(size), *size)


def build_test_time_augmentation(cfg, model: nn.Module) -> nn.Module:
    """The model for the views of ``TEST.AUG``: R-CNN's is Detectron2's.

    Raises:
        TypeError: as :class:`DenseDetectorWithTTA`.
    """
    is_rcnn = isinstance(model, GeneralizedRCNN)
    return GeneralizedRCNNWithTTA(cfg, model) if is_rcnn else DenseDetectorWithTTA(cfg, model)
