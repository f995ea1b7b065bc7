"""A batch to try losses on."""

import torch

from .matched_predictions import MatchedPredictions


def example_predictions(
    num_samples: int = 100,
    num_classes: int = 3,
    num_positives: int = 8,
    activation: str = "sigmoid",
    seed: int = 0,
) -> MatchedPredictions:
    """A random batch of two images that any loss can be tried on.

    Its logits, boxes and deltas are leaves with gradient; IoUs are about 0.6. It has priors, and
    levels of a pyramid, each a half of an image.

    Args:
        num_samples: S, even.
        num_classes: C.
        num_positives: P, at most S; of all images, spread evenly.
        activation: "sigmoid" or "softmax".
        seed: of the numbers.

    Raises:
        ValueError: more positives than samples, or samples that cannot be of two images.
    """
    if num_samples % 2 or not 0 <= num_positives <= num_samples:
        raise ValueError(
            "expected an even number of samples and at most as many positives, got "
            f"{num_samples} and {num_positives}"
        )
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    positives = torch.arange(num_positives) * num_samples // max(num_positives, 1)
    labels = torch.full((num_samples,), num_classes)
    labels[positives] = (random(num_positives) * num_classes).long()
    logits = torch.randn(num_samples, num_classes + (activation == "softmax"), generator=generator)
    gt_boxes = random(num_positives, 4) * 20 + torch.tensor([0.0, 0.0, 40.0, 40.0])
    priors = gt_boxes + random(num_positives, 4) * 16 - 8
    boxes = gt_boxes + random(num_positives, 4) * 16 - 8
    places = positives % (num_samples // 2)
    return MatchedPredictions(
        logits=logits.requires_grad_(),
        labels=labels,
        positives=positives,
        boxes=boxes.requires_grad_(),
        gt_boxes=gt_boxes,
        image_ids=positives // (num_samples // 2),
        deltas=((boxes.detach() - priors) / 40).requires_grad_(),
        gt_deltas=(gt_boxes - priors) / 40,
        activation=activation,
        priors=priors,
        levels=(places >= num_samples // 4).long(),
        num_images=2,
        num_levels=2,
    )
