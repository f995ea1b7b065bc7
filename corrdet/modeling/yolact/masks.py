"""Instance masks as combinations of prototypes (YOLACT, Bolya et al. 2019, Sec. 3)."""

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, PolygonMasks
from torch import Tensor


def assemble_masks(prototypes: Tensor, coefficients: Tensor) -> Tensor:
    """Add up the prototypes of an image (Eq. 1), before the sigmoid.

    Args:
        prototypes: (K, H, W).
        coefficients: (D, K) of each object.

    Returns:
        (D, H, W) logits, float32 even under autocast.
    """
    with torch.autocast(prototypes.device.type, enabled=False):
        return torch.einsum("dk,khw->dhw", coefficients.float(), prototypes.float())


def pixels_near(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels of the prototypes the mask of each box may have: those up to one around it.

    As in the authors' code, a pixel counts by its index: from one before the first coordinate up
    to one behind the last.

    Args:
        boxes: (D, 4) XYXY in units of pixels of the prototypes.
        height, width: H and W.

    Returns:
        (D, H, W) bool.
    """
    x1, y1, x2, y2 = boxes[:, :, None].unbind(dim=1)
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    columns, rows = (x1 - 1 <= x) & (x < x2 + 1), (y1 - 1 <= y) & (y < y2 + 1)
    return rows[:, :, None] & columns[:, None]


def mask_ious(masks1: Tensor, masks2: Tensor) -> Tensor:
    """IoU of each pair of masks.

    Args:
        masks1, masks2: (D, H, W) bool.

    Returns:
        (D,) float32 in [0, 1]; 0 where both are empty.
    """
    intersection = (masks1 & masks2).flatten(1).sum(dim=1)
    union = (masks1 | masks2).flatten(1).sum(dim=1)
    return intersection / union.clamp(min=1)


def shrink_masks(
    masks: BitMasks | PolygonMasks,
    image_size: tuple[int, int],
    stride: int,
    height: int,
    width: int,
) -> Tensor:
    """Ground-truth masks in the resolution of prototypes.

    The authors' code decides on each of these pixels. Shares keep the outline of what is only a few
    of them wide: :func:`paste_masks` puts it back where it was.

    Args:
        masks: of the M objects of an image; what lies outside of the image is cut off.
        image_size: its height and width.
        stride: pixels of the image along each side of a pixel of the prototypes.
        height, width: H and W of the prototypes, of which those beyond the image are padding.

    Returns:
        (M, H, W) float32, on the device of the masks: the share of the pixel that is in the mask.
    """
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *image_size)
    beyond = (0, width * stride - image_size[1], 0, height * stride - image_size[0])
    return F.avg_pool2d(F.pad(masks.tensor.float(), beyond)[:, None], stride)[:, 0]


def paste_masks(
    probabilities: Tensor, boxes: Tensor, scale: tuple[float, float], height: int, width: int
) -> Tensor:
    """Cut masks at their boxes, enlarge them to the size of their image, and decide on each pixel.

    Args:
        probabilities: (D, H, W).
        boxes: (D, 4) XYXY in pixels of the image.
        scale: pixels of the image for each of the masks, along y and along x. It may have fewer
            pixels than the masks cover: the rest is padding.
        height, width: of the image.

    Returns:
        (D, height, width) bool.
    """
    pasted = torch.zeros((len(boxes), height, width), dtype=torch.bool, device=probabilities.device)
    sizes = boxes.new_tensor([scale[1], scale[0]] * 2)
    masks = probabilities * pixels_near(boxes / sizes, *probabilities.shape[1:])
    # Only around the box: images may be large. One by one: boxes differ in size. What is one pixel
    # of the masks outside is 0, and so what is two of them outside.
    first = (boxes[:, :2] - 2 * sizes[:2]).floor().clamp(min=0).int().tolist()
    last = (boxes[:, 2:] + 2 * sizes[2:]).ceil().int().tolist()
    for mask, (x1, y1), (x2, y2), result in zip(masks, first, last, pasted, strict=True):
        rows = torch.arange(height, device=masks.device)[y1:y2]
        columns = torch.arange(width, device=masks.device)[x1:x2]
        # -1 and 1 are the borders of the masks.
        y = (rows + 0.5) / (scale[0] * mask.shape[0]) * 2 - 1
        x = (columns + 0.5) / (scale[1] * mask.shape[1]) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        enlarged = F.grid_sample(
            mask[None, None], grid[None], padding_mode="border", align_corners=False
        )
        result[rows[:, None], columns] = enlarged[0, 0] > 0.5
    return pasted
