import copy
import re

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from fvcore.transforms.transform import CropTransform

from corrdet import add_corrdet_config
from corrdet.data.image_checks import ImageReadError
from corrdet.data.mapper import CorrdetDatasetMapper


def config(**options):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (200,)
    cfg.INPUT.MIN_SIZE_TEST = 240
    for key, value in options.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.fixture
def example(digits_dicts) -> dict:
    return copy.deepcopy(next(record for record in digits_dicts if len(record["annotations"]) > 2))


def test_training_sample_is_detectron2s(example):
    cfg = config(MODEL__MASK_ON=True, INPUT__MASK_FORMAT="bitmask")
    before = copy.deepcopy(example)
    samples = []
    for mapper in (CorrdetDatasetMapper(cfg, is_train=True), DatasetMapper(cfg, is_train=True)):
        np.random.seed(3)
        samples.append(mapper(example))
    ours, theirs = samples
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"])
    assert ours["image"].shape == (3, 200, 200) and ours["image"].dtype == torch.uint8
    assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)
    assert torch.equal(ours["instances"].gt_masks.tensor, theirs["instances"].gt_masks.tensor)
    assert torch.equal(ours["instances"].gt_classes, theirs["instances"].gt_classes)
    assert example == before


def test_crops_of_some_images_made_smaller_before(example):
    cfg = config(INPUT__CROP__ENABLED=True, INPUT__RANDOM_FLIP="none")
    add_corrdet_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (320,)
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute_range", [60, 80]
    cfg.INPUT.CROP.PROBABILITY, cfg.INPUT.CROP.MIN_SIZE_BEFORE = 0.5, (80, 100)
    mapper = CorrdetDatasetMapper(cfg, is_train=True)
    cropped = 0
    for seed in range(40):
        np.random.seed(seed)
        _, transforms = T.apply_augmentations(
            mapper.augmentations.augs, np.zeros((160, 160, 3), np.uint8)
        )
        crop = next((t for t in transforms.transforms if isinstance(t, CropTransform)), None)
        if crop is not None:
            cropped += 1
            assert 60 <= crop.h <= 80 and 60 <= crop.w <= 80
            before = transforms.transforms[0]
            assert (before.h, before.new_h) in ((160, 80), (160, 100))
        assert min(transforms.transforms[-1].new_h, transforms.transforms[-1].new_w) == 320
    assert 10 < cropped < 30
    np.random.seed(1)
    boxes = mapper(example)["instances"].gt_boxes.tensor
    assert (boxes >= 0).all()


def test_masks_only_when_the_model_has_them(example):
    assert not CorrdetDatasetMapper(config(), is_train=True)(example)["instances"].has("gt_masks")


def test_rle_masks_need_bitmask(example):
    mapper = CorrdetDatasetMapper(config(MODEL__MASK_ON=True), is_train=True)
    polygons = {**example["annotations"][0], "segmentation": [[40, 40, 80, 40, 80, 80]]}
    run_lengths = example["annotations"][0]
    crowd = {**run_lengths, "iscrowd": 1}
    assert mapper({**example, "annotations": [polygons, crowd]})["instances"].has("gt_masks")
    reason = r": annotation 2, .*: expected a mask of polygons, .* INPUT.MASK_FORMAT \"bitmask\""
    with pytest.raises(ValueError, match=re.escape(example["file_name"]) + reason):
        mapper({**example, "annotations": [polygons, crowd, run_lengths]})


def test_instances_at_test_time(example):
    cfg = config()
    assert "instances" not in CorrdetDatasetMapper(cfg, is_train=False)(example)
    sample = CorrdetDatasetMapper(cfg, is_train=False, keep_instances=True)(example)
    # In the coordinates of the resized image, by the resizing of the test and without a flip.
    assert sample["image"].shape == (3, 240, 240)
    boxes = [
        BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        for a in example["annotations"]
    ]
    expected = torch.tensor(boxes, dtype=torch.float32) * 1.5
    assert torch.allclose(sample["instances"].gt_boxes.tensor, expected)
    assert sample["instances"].image_size == (240, 240)
    assert (sample["height"], sample["width"]) == (160, 160)


def test_integer_annotations_are_resized_exactly(example):
    # Detectron2's mapper makes 49 of 33 * 1.5.
    cfg = config(MODEL__MASK_ON=True)
    example["annotations"] = [
        {
            "bbox": [33, 41, 20, 30],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "segmentation": [[33, 41, 53, 41, 53, 71]],
        }
    ]
    sample = CorrdetDatasetMapper(cfg, is_train=False, keep_instances=True)(example)
    instances = sample["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[49.5, 61.5, 79.5, 106.5]]
    assert instances.gt_masks.polygons[0][0].tolist() == [49.5, 61.5, 79.5, 61.5, 79.5, 106.5]
    assert isinstance(example["annotations"][0]["bbox"][0], int)


def test_plain_arguments_instead_of_a_config(example):
    mapper = CorrdetDatasetMapper(False, keep_instances=True, augmentations=[], image_format="RGB")
    sample = mapper(example)
    assert sample["image"].shape == (3, 160, 160)
    assert len(sample["instances"]) == len(example["annotations"])


@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("mask_format", [None, "bitmask", "polygon"])
def test_empty_images(example, mask_format, crop, crowd):
    cfg = config(MODEL__MASK_ON=mask_format is not None, INPUT__CROP__ENABLED=crop)
    cfg.INPUT.MASK_FORMAT = mask_format or "polygon"
    example["annotations"] = [{**example["annotations"][0], "iscrowd": 1}] if crowd else []
    sample = CorrdetDatasetMapper(cfg, is_train=True)(example)
    instances = sample["instances"]
    assert len(instances) == 0
    assert instances.image_size == tuple(sample["image"].shape[1:])
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert instances.gt_classes.shape == (0,) and instances.gt_classes.dtype == torch.int64
    if mask_format is None:
        assert not instances.has("gt_masks")
    else:
        kind = {"bitmask": BitMasks, "polygon": PolygonMasks}[mask_format]
        assert isinstance(instances.gt_masks, kind) and len(instances.gt_masks) == 0


def test_unreadable_image(example, tmp_path):
    path = tmp_path / "torn.jpg"
    with open(example["file_name"], "rb") as file:
        path.write_bytes(file.read()[:2000])
    example["file_name"] = str(path)
    with pytest.raises(ImageReadError) as caught:
        CorrdetDatasetMapper(config(), is_train=True)(example)
    assert isinstance(caught.value, OSError)
    for words in (str(path), "truncated", "DATASETS.SKIP_UNREADABLE"):
        assert words in str(caught.value)


def test_missing_image(example):
    example["file_name"] = "/nowhere/absent.jpg"
    with pytest.raises(ImageReadError, match="/nowhere/absent.jpg"):
        CorrdetDatasetMapper(config(), is_train=False)(example)


def test_other_errors_stay_what_they_are(example):
    example["width"] = 161
    with pytest.raises(SizeMismatchError):
        CorrdetDatasetMapper(config(), is_train=True)(example)


def test_yuv_is_single_precision(example):
    cfg = config(INPUT__FORMAT="YUV-BT.601")
    mapped = CorrdetDatasetMapper(cfg, is_train=True)(example)
    assert mapped["image"].dtype == torch.float32
