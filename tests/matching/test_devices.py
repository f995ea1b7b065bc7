"""Where matching runs: on the device alone, without waiting for it."""

import pytest
import torch

from corrdet import matching
from corrdet.matching.ssd import bipartite_matching
from corrdet.ops import pairwise_iou
from tests.helpers.matching import NUM_CLASSES, RANGES, SCALES, classes_of, pyramid, random_objects


def calls():
    """name -> function, arguments that are tensors, and the others."""
    priors, priors_per_level = pyramid()
    gt_boxes = random_objects(12)
    objects = priors, gt_boxes, classes_of(gt_boxes)
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(len(priors), generator=generator)
    matched = torch.randint(-1, 12, (len(priors),), generator=generator)
    levels = torch.repeat_interleave(torch.arange(5), torch.tensor(priors_per_level))
    labels = torch.randint(-1, NUM_CLASSES + 1, (2, len(priors)), generator=generator)
    losses = torch.rand(2, len(priors), generator=generator)
    return {
        "atss": (matching.atss_matching, objects, (priors_per_level, NUM_CLASSES)),
        "fcos": (matching.fcos_matching, objects, (priors_per_level, RANGES, NUM_CLASSES, 1.5)),
        "foveabox": (matching.foveabox_matching, objects, (priors_per_level, SCALES, NUM_CLASSES)),
        "ssd": (matching.ssd_matching, objects, (NUM_CLASSES,)),
        "refinedet": (
            matching.refinedet_matching,
            (priors, probability, *objects[1:]),
            (NUM_CLASSES,),
        ),
        "bipartite": (bipartite_matching, (pairwise_iou(gt_boxes, priors),), ()),
        "mining": (matching.hard_negative_mining, (losses, labels), (NUM_CLASSES,)),
        "candidates": (matching.paa_candidates, (priors, gt_boxes), ()),
        "star": (matching.paa_star_costs, (probability, probability.square(), matched), (12,)),
        "paa": (matching.paa_matching, (probability, matched, levels), (12, 5)),
    }


every_function = pytest.mark.parametrize("name", calls())


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@every_function
def test_no_value_is_read_on_the_way(name, monkeypatch):
    """Tensors without values do: so nothing waits for a GPU, and nothing loops over objects."""
    if name == "paa":  # whose mixtures ask, once a step, whether all have converged
        monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: True)
    function, tensors, others = calls()[name]
    expected = as_tuple(function(*tensors, *others))
    result = as_tuple(function(*(tensor.to("meta") for tensor in tensors), *others))
    for mine, theirs in zip(result, expected, strict=True):
        assert mine.is_meta
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype


@every_function
@pytest.mark.cuda
def test_the_gpu_gives_what_the_cpu_gives(name):
    function, tensors, others = calls()[name]
    expected = as_tuple(function(*tensors, *others))
    on_gpu = [tensor.cuda() for tensor in tensors]
    function(*on_gpu, *others)
    torch.cuda.set_sync_debug_mode("default" if name == "paa" else "error")
    try:
        result = as_tuple(function(*on_gpu, *others))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for mine, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs)


@every_function
def test_no_gradient_is_recorded(name):
    function, tensors, others = calls()[name]
    tensors = [value.requires_grad_() if value.is_floating_point() else value for value in tensors]
    assert not any(value.requires_grad for value in as_tuple(function(*tensors, *others)))
