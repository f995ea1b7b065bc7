"""Box coding that Detectron2 does not have; its interface is that of Detectron2's transforms."""

import math

import torch
from torch import Tensor


class FoveaTransform:
    """Logarithms of the distances from a location to the four sides of a box (FoveaBox).

    Kong et al. 2020, Eq. 3; https://arxiv.org/abs/1904.03797. The distances are in units of z, the
    basic scale of the location's level, which is the side of its square prior: 16 * 2^i pixels for
    the levels i = 0, 1, ... in the authors' configs.
    """

    def __init__(self, scale_clamp: float = math.log(1000.0 / 16)):
        """
        Args:
            scale_clamp: largest value that is decoded; a box's sides are at most
                ``exp(scale_clamp)`` scales away. The default is that of Detectron2's transforms.
        """
        self.scale_clamp = scale_clamp

    def get_deltas(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """Encode boxes.

        Args:
            priors: (N, 4) squares, XYXY in pixels.
            boxes: (N, 4) XYXY in pixels; the centre of a prior lies inside its box.

        Returns:
            (N, 4) left, top, right, bottom. A side that the centre is not inside of by at least
            1/100 of the scale is encoded as if it were so far away, rather than as NaN.
        """
        centers = (priors[:, :2] + priors[:, 2:]) / 2
        distances = torch.cat([centers - boxes[:, :2], boxes[:, 2:] - centers], dim=1)
        return (distances / _scales(priors)).clamp(min=0.01).log()

    def apply_deltas(self, deltas: Tensor, priors: Tensor) -> Tensor:
        """Decode boxes, the inverse of :meth:`get_deltas`.

        Args:
            deltas: (N, k x 4) left, top, right, bottom, of k boxes for each prior.
            priors: (N, 4) squares, XYXY in pixels.

        Returns:
            (N, k x 4) boxes, XYXY in pixels, in the dtype of the deltas.
        """
        priors = priors.to(deltas.dtype)
        distances = deltas.clamp(max=self.scale_clamp).exp() * _scales(priors)
        distances = distances.unflatten(1, (-1, 4))
        centers = ((priors[:, :2] + priors[:, 2:]) / 2)[:, None]
        boxes = torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], dim=2)
        return boxes.flatten(1)


def _scales(priors: Tensor) -> Tensor:
    return priors[:, 2:3] - priors[:, :1]
