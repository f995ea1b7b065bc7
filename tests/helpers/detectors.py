"""Detectors that tests build, batches for them, and what they detect in plain code."""

import itertools
from argparse import Namespace

import torch
from detectron2.config import get_cfg
from detectron2.layers import batched_nms
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from corrdet import add_corrdet_config
from corrdet.data import build_train_loader
from corrdet.engine import CorrdetTrainer, load_config
from tests.helpers.training import ROOT

# Quick configs of detectors with one prior for each location.
ONE_PRIOR = ("atss_baseline", "paa_baseline", "paa_star_ape", "fcos_baseline", "foveabox_baseline")


def batch(num_objects=(3, 1), seed=0, size=96):
    """Random images with boxes; the second image of a batch is not square.

    Args:
        num_objects: of each image.
        seed: of images and boxes.
        size: of the sides.
    """
    generator = torch.Generator().manual_seed(seed)
    images = []
    for index, count in enumerate(num_objects):
        height, width = (size, size) if index % 2 == 0 else (size - 20, size - 5)
        corners = torch.rand(count, 2, generator=generator) * 40
        sides = torch.rand(count, 2, generator=generator) * 40 + 8
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([corners, corners + sides], dim=1))
        instances.gt_classes = torch.randint(0, 10, (count,), generator=generator)
        image = torch.randint(0, 256, (3, height, width), generator=generator).float()
        images.append({"image": image, "instances": instances, "height": height, "width": width})
    return images


def batch_with_masks(num_objects=(3, 1), seed=0, size=96):
    """The same, with a mask that fills each box."""
    images = batch(num_objects, seed, size)
    for image in images:
        instances = image["instances"]
        height, width = instances.image_size
        masks = torch.zeros(len(instances), height, width, dtype=torch.bool)
        for mask, box in zip(masks, instances.gt_boxes.tensor.int(), strict=True):
            mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
        instances.gt_masks = BitMasks(masks)
    return images


def quick_cfg(**criterion):
    """The quick RetinaNet, with these keys of MODEL.CRITERION."""
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/quick/Base-digits.yaml"), False)
    for key, value in criterion.items():
        cfg.MODEL.CRITERION[key] = value
    return cfg


def dense_cfg(name, *overrides):
    """The quick config of that name, on a smaller model, with the overrides."""
    smaller = [
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
        "MODEL.FPN.OUT_CHANNELS", 32,
        "MODEL.DENSE.NUM_CONVS", 1,
        "MODEL.DENSE.NORM", "GN",
    ]  # fmt: skip
    path = str(ROOT / f"configs/quick/{name}.yaml")
    return load_config(Namespace(config_file=path, opts=[*smaller, *overrides]))


def build_dense(name, *overrides):
    torch.manual_seed(0)
    return build_model(dense_cfg(name, *overrides))


def ssd_cfg(name, *overrides):
    """The quick config of that name, on a smaller model, with the overrides."""
    smaller = [
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
        "MODEL.FPN.OUT_CHANNELS", 32,
        "MODEL.SSD.EXTRA_CHANNELS", 64,
        "MODEL.DSSD.DECONVOLUTION_CHANNELS", 32,
        "MODEL.DSSD.PREDICTION_CHANNELS", 128,
        "MODEL.REFINEDET.CONNECTION_CHANNELS", 32,
    ]  # fmt: skip
    path = str(ROOT / f"configs/quick/{name}.yaml")
    return load_config(Namespace(config_file=path, opts=[*smaller, *overrides]))


def build_ssd(name, *overrides):
    torch.manual_seed(0)
    return build_model(ssd_cfg(name, *overrides))


def tiny_cfg(name, *overrides):
    """The quick config of that name, as small as any detector can be, to be changed."""
    cfg = ssd_cfg(
        name,
        "MODEL.DENSE.NUM_CONVS", 1,
        "MODEL.DENSE.NORM", "GN",
        "MODEL.RETINANET.NUM_CONVS", 1,
        "MODEL.RETINANET.NORM", "",
        "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
        "MODEL.YOLACT.PROTONET_DIM", 16,
        "MODEL.YOLACT.NUM_PROTOTYPES", 8,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", 30,
        "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
        "MODEL.ROI_MASK_HEAD.CONV_DIM", 16,
        "MODEL.SPARSE_RCNN.HIDDEN_DIM", 32,
        "MODEL.SPARSE_RCNN.FEEDFORWARD_DIM", 32,
        "MODEL.SPARSE_RCNN.NUM_STAGES", 2,
        *overrides,
    ).clone()  # fmt: skip
    cfg.defrost()
    return cfg


def possible_quality(name):
    """The third branch that the detector is published with, or could have."""
    return "iou" if name.startswith("paa") else "centerness"


def step(model, images, logged=None):
    """The losses, after a backward pass.

    Args:
        model: is set to training.
        images: a batch.
        logged: is given the values that were written to the event storage, by name.
    """
    with EventStorage() as storage:
        losses = model.train()(images)
    if logged is not None:
        logged |= {name: value for name, (value, _) in storage.latest().items()}
    model.zero_grad()
    sum(losses.values()).backward()
    return losses


def is_sound(model, losses):
    """Whether all losses and gradients are finite."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    values = [*losses.values(), *gradients]
    return all(value.isfinite().all() for value in values)


def match(model, images):
    """What the detector matches of a batch, in the mode that it is in."""
    with torch.no_grad():
        _, features, predictions = model.predict(images)
        instances = [image["instances"] for image in images]
        return model.match(model.anchor_generator(features), predictions, instances)


def losses_in_training(tiny_digits, make_cfg, steps):
    """The losses of each step, by name, of a training on three batches of real data, in turns.

    ``make_cfg``: from overrides to the config.
    """
    cfg = make_cfg(
        "DATASETS.REGISTER", tuple(tiny_digits.values()),
        "DATASETS.TRAIN", ("tiny_train",),
        "INPUT.MIN_SIZE_TRAIN", (96,),
        "SOLVER.IMS_PER_BATCH", 2,
        "DATALOADER.NUM_WORKERS", 0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = CorrdetTrainer.build_optimizer(cfg, model)
    loader = build_train_loader(cfg, seed=0)
    batches = list(itertools.islice(loader, 3))
    loader.close()
    history = []
    for index in range(steps):
        losses = step(model, batches[index % 3])
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    return history


def hostile_batches():
    """name -> images with objects that are hard to match."""

    def images_of(*boxes, size=(96, 96)):
        return [
            image_with(torch.tensor(boxes).view(-1, 4).clamp(max=max(size)), size),
            image_with(torch.tensor([[2.0, 2.0, 14.0, 12.0]]), (20, 17)),
        ]

    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(1000, 2, generator=generator) * 80
    crowd = torch.cat([corners, corners + torch.rand(1000, 2, generator=generator) * 40 + 1], dim=1)
    empty = [image_with(torch.zeros(0, 4), (96, 96)) for _ in range(2)]
    return {
        "no objects": empty,
        "one image without objects": [empty[0], *images_of([10.0, 10, 60, 50])],
        "smaller than any prior": images_of([33.0, 33, 39, 39], [50, 50, 57, 55]),
        "one pixel": images_of([36.0, 36, 37, 37], [20, 20, 21, 21], [12, 12, 13, 13]),
        "1000 objects": [image_with(crowd.clamp(max=96), (96, 96)), empty[0]],
        "all in one place": images_of(*[[20.0, 20, 60, 60]] * 5),
        "smaller than the largest stride": [
            image_with(torch.tensor([[1.0, 1.0, 25.0, 20.0]]), size) for size in ((22, 30), (9, 9))
        ],
    }


def image_with(boxes, size):
    """A random image with these boxes."""
    generator = torch.Generator().manual_seed(len(boxes))
    instances = Instances(size)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(0, 10, (len(boxes),), generator=generator)
    return {
        "image": torch.randint(0, 256, (3, *size), generator=generator).float(),
        "instances": instances,
    }


def plain_predictions(model, images):
    """Of a detector with one prior for each location, without the detector's own code.

    Returns:
        priors (R, 4) and their levels; logits (N, R, C), boxes (N, R, 4), quality logits (N, R).
    """
    with torch.no_grad():
        _, features, predictions = model.predict(images)
        flat = [
            torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
            for levels in predictions
            if levels is not None
        ]
    priors = [boxes.tensor for boxes in model.anchor_generator(features)]
    levels = torch.cat([torch.full((len(p),), i) for i, p in enumerate(priors)])
    priors = torch.cat(priors)
    boxes = torch.stack([model.box2box_transform.apply_deltas(d, priors) for d in flat[1]])
    return priors, levels, flat[0], boxes, flat[2][..., 0] if len(flat) > 2 else None


def plain_detections(scores, boxes, levels, threshold, topk, nms, limit, image):
    """Boxes, scores and classes after NMS, clipped; then boxes, scores and classes before it."""
    chosen = []
    for level in range(int(levels.max()) + 1):
        level_candidates = []
        for prior in torch.nonzero(levels == level)[:, 0].tolist():
            for label, score in enumerate(scores[prior].tolist()):
                if score > threshold:
                    level_candidates.append((score, prior, label))
        chosen += sorted(level_candidates, reverse=True)[:topk]
    values = torch.tensor([score for score, _, _ in chosen])
    candidates = boxes[[prior for _, prior, _ in chosen]]
    classes = torch.tensor([label for _, _, label in chosen])
    keep = batched_nms(candidates, values, classes, nms)[:limit]
    return candidates[keep], values[keep], classes[keep], candidates, values, classes


def check_detections(detections, boxes, scores, classes):
    """Compare detections with those of :func:`plain_detections`, clipped."""
    boxes = Boxes(boxes.clone())
    boxes.clip(detections.image_size)
    kept = boxes.nonempty()
    assert len(detections) == kept.sum() > 3
    torch.testing.assert_close(detections.scores, scores[kept])
    torch.testing.assert_close(detections.pred_classes, classes[kept])
    torch.testing.assert_close(detections.pred_boxes.tensor, boxes.tensor[kept])
