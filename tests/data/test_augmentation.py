"""SSD's augmentation, alone and on the way from a file to a batch."""

import colorsys
import copy
import itertools
from argparse import Namespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, BoxMode, Instances, polygons_to_bitmask
from PIL import Image
from pycocotools import mask as mask_util

from corrdet import add_corrdet_config
from corrdet.data.augmentation import (
    ColorTransform,
    Expand,
    MinIoUCrop,
    ObjectCropTransform,
    PhotometricDistortion,
)
from corrdet.data.loader import build_train_loader
from corrdet.data.mapper import CorrdetDatasetMapper
from corrdet.engine import ConfigError, load_config
from tests.helpers.data import same, take


def config(*options):
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.INPUT.SSD_AUGMENTATION = True
    cfg.INPUT.FIXED_SIZE = (96, 128)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list(list(options))
    return cfg


def plain_iou(box, other):
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    overlap = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return overlap / (sum(areas) - overlap)


def plain_colors(pixel, brightness, contrast, saturation, hue, contrast_first):
    """The same for one pixel, (R, G, B) in [0, 255], through HSV."""

    def scale(pixel):
        return [min(max(value * contrast, 0), 255) for value in pixel]

    pixel = [min(max(value + brightness, 0), 255) for value in pixel]
    if contrast_first:
        pixel = scale(pixel)
    h, s, v = colorsys.rgb_to_hsv(*(value / 255 for value in pixel))
    h, s = (h + hue / 360) % 1, min(s * saturation, 1)
    pixel = [value * 255 for value in colorsys.hsv_to_rgb(h, s, v)]
    return pixel if contrast_first else scale(pixel)


class TestColors:
    @pytest.mark.parametrize("image_format", ["RGB", "BGR"])
    @pytest.mark.parametrize("contrast_first", [True, False])
    def test_is_that_of_a_plain_loop(self, image_format, contrast_first):
        image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        image[0] = [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0]] + [[1, 2, 3]] * 3
        values = {"brightness": 20, "contrast": 1.4, "saturation": 1.5, "hue": -17}
        values["contrast_first"] = contrast_first
        before = image.copy()
        out = ColorTransform(**values, image_format=image_format).apply_image(image)
        assert out.dtype == np.uint8 and (image == before).all()
        order = [0, 1, 2] if image_format == "RGB" else [2, 1, 0]
        for row, column in np.ndindex(9, 7):
            expected = plain_colors(image[row, column, order].tolist(), **values)
            assert np.abs(out[row, column, order] - np.array(expected)).max() < 0.51

    def test_ranges_and_probabilities(self):
        np.random.seed(0)
        image = np.zeros((2, 2, 3), np.uint8)
        drawn = [PhotometricDistortion().get_transform(image) for _ in range(2000)]
        ranges = {"brightness": (-32, 32, 0), "contrast": (0.5, 1.5, 1)}
        ranges |= {"saturation": (0.5, 1.5, 1), "hue": (-18, 18, 0)}
        for name, (low, high, without) in ranges.items():
            values = np.array([getattr(transform, name) for transform in drawn])
            changed = values[values != without]
            assert 900 < len(changed) < 1100
            assert low <= changed.min() < low + 0.05 * (high - low)
            assert high - 0.05 * (high - low) < changed.max() <= high
        assert 900 < sum(transform.contrast_first for transform in drawn) < 1100

    def test_nothing_moves(self):
        transform = ColorTransform(brightness=30, contrast=0.5)
        mask = np.eye(3, dtype=np.uint8)
        assert (transform.apply_segmentation(mask) == mask).all()
        assert transform.apply_box(np.array([[1.0, 2, 3, 4]])).tolist() == [[1, 2, 3, 4]]


class TestExpand:
    def test_the_image_is_on_a_canvas_of_the_mean(self):
        image = np.random.default_rng(0).integers(100, 256, (10, 20, 3), dtype=np.uint8)
        ratios, corners, kept = [], [], 0
        np.random.seed(1)
        for _ in range(400):
            transform = Expand((1.4, 2.6, 30))(given := T.AugInput(image))
            if given.image.shape == image.shape:
                kept += 1
                continue
            height, width = given.image.shape[:2]
            ratios.append(height / 10)
            assert abs(width / 20 - height / 10) <= 0.1
            x, y, x1, y1 = transform.apply_box(np.array([[0.0, 0, 20, 10]]))[0].astype(int)
            assert (given.image[y:y1, x:x1] == image).all()
            canvas = given.image.copy()
            canvas[y:y1, x:x1] = (1, 3, 30)
            assert (canvas == (1, 3, 30)).all()
            mask = transform.apply_segmentation(np.ones((10, 20), np.uint8))
            assert mask.shape == (height, width)
            assert mask.sum() == 200 == mask[y:y1, x:x1].sum()
            corners.append((x / max(width - 20, 1), y / max(height - 10, 1)))
        assert 160 < kept < 240
        assert min(ratios) < 1.3 and 3.7 < max(ratios) <= 4
        assert np.min(corners) == 0 and np.max(corners) == 1

    def test_without_probability_nothing_happens(self):
        image = np.zeros((4, 4, 3), np.uint8)
        for _ in range(20):
            given = T.AugInput(image)
            Expand((0, 0, 0), probability=0)(given)
            assert given.image is image


def corners(crop):
    return crop.x0, crop.y0, crop.x0 + crop.w, crop.y0 + crop.h


class TestMinIoUCrop:
    def test_patches_keep_what_was_asked_for(self):
        boxes = np.array([[10.0, 10, 60, 50], [30, 20, 80, 70], [70, 5, 90, 35]])
        image = np.zeros((80, 100, 3), np.uint8)
        np.random.seed(0)
        whole, least = 0, []
        for _ in range(600):
            transform = MinIoUCrop().get_transform(image, boxes)
            if not isinstance(transform, ObjectCropTransform):
                whole += 1
                continue
            assert type(transform.x0) is type(transform.w) is int
            x0, y0, x1, y1 = corners(transform)
            assert 0 <= x0 < x1 <= 100 and 0 <= y0 < y1 <= 80
            assert transform.w >= 29 and transform.h >= 23
            assert 0.5 <= transform.w / transform.h <= 2
            assert any(x0 < (b[0] + b[2]) / 2 < x1 and y0 < (b[1] + b[3]) / 2 < y1 for b in boxes)
            least.append(min(plain_iou((x0, y0, x1, y1), b) for b in boxes))
        # One of seven choices leaves the image whole, and so do those that cannot be met.
        assert 600 / 7 < whole < 400
        assert min(least) == 0 and max(least) > 0.1

    def test_every_least_iou_is_used(self):
        # One large object: every choice can be met.
        boxes, image = np.array([[5.0, 5, 95, 88]]), np.zeros((100, 100, 3), np.uint8)
        for min_iou in (0.3, 0.5, 0.9):
            np.random.seed(0)
            crop = MinIoUCrop(min_ious=(min_iou,) * 5000, trials=2000)
            transforms = [crop.get_transform(image, boxes) for _ in range(50)]
            ious = [plain_iou(corners(transform), boxes[0]) for transform in transforms]
            assert min_iou <= min(ious) < min_iou + 0.1

    def test_the_least_iou_is_that_of_all_objects(self):
        boxes, image = np.array([[0.0, 0, 50, 100], [50, 0, 100, 100]]), np.zeros((100, 100, 3))
        np.random.seed(0)
        crop = MinIoUCrop(min_ious=(0.4,) * 5000, trials=2000)
        for _ in range(20):
            patch = corners(crop.get_transform(image, boxes))
            assert min(plain_iou(patch, box) for box in boxes) >= 0.4

    def test_without_objects(self):
        np.random.seed(0)
        image, boxes = np.zeros((40, 60, 3), np.uint8), np.zeros((0, 4))
        crops = [MinIoUCrop().get_transform(image, boxes) for _ in range(50)]
        assert 30 < sum(isinstance(crop, ObjectCropTransform) for crop in crops) < 50

    @pytest.mark.filterwarnings("error")  # divisions by 0
    @pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3)])
    def test_tiny_images(self, shape):
        np.random.seed(0)
        image = np.zeros((*shape, 3), np.uint8)
        boxes = np.array([[0.0, 0, shape[1], shape[0]]])
        for _ in range(30):
            given = T.AugInput(image, boxes=boxes)
            MinIoUCrop()(given)
            assert given.image.size > 0

    def test_objects_with_their_centre_outside_lose_their_boxes(self):
        crop = ObjectCropTransform(10, 20, 30, 40)
        inside, on_edge, outside = [5.0, 25, 45, 35], [0.0, 20, 20, 60], [30, 30, 70, 50]
        boxes = crop.apply_box(np.array([inside, on_edge, outside]))
        assert boxes.tolist() == [[-5, 5, 35, 15], [0, 0, 0, 0], [0, 0, 0, 0]]

    def test_polygons_are_clipped(self):
        crop = ObjectCropTransform(10, 20, 30, 40)
        concave = np.array([[0.0, 10], [50, 15], [45, 70], [25, 30], [5, 65]])
        outside, across_a_corner = [[0.0, 0], [9, 0], [9, 19]], [[0.0, 0], [8, 30], [5, 70]]
        around = [[0.0, 0], [100, 0], [100, 100], [0, 100]]
        clipped = crop.apply_polygons([concave, *map(np.array, (outside, across_a_corner, around))])
        assert len(clipped) == 2
        expected = polygons_to_bitmask([concave.ravel()], 80, 80)[20:60, 10:40]
        mask = polygons_to_bitmask([clipped[0].ravel()], 40, 30)
        assert (mask != expected).sum() <= 4  # pixels that the edges go through
        assert sorted(clipped[1].tolist()) == [[0, 0], [0, 40], [30, 0], [30, 40]]
        assert clipped[0].min() >= 0 and (clipped[0].max(axis=0) <= (30, 40)).all()


# ---- Through the mapper and the loader.


def write_image(folder, height=90, width=130):
    """Gray, with a bright rectangle at each of two objects."""
    boxes = [[20, 15, 60, 45], [80, 50, 125, 85]]
    pixels = np.full((height, width, 3), 40, np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        pixels[y0:y1, x0:x1] = 200 + 50 * number
    Image.fromarray(pixels).save(folder / "image.png")
    return {
        "file_name": str(folder / "image.png"),
        "height": height,
        "width": width,
        "image_id": 1,
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": number, "iscrowd": 0}
            for number, box in enumerate(boxes)
        ],
    }


def add_masks(record, kind):
    for annotation in record["annotations"]:
        x0, y0, x1, y1 = annotation["bbox"]
        if kind == "polygon":
            annotation["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        else:
            mask = np.zeros((record["height"], record["width"]), np.uint8, order="F")
            mask[y0:y1, x0:x1] = 1
            annotation["segmentation"] = mask_util.encode(mask)


@pytest.mark.parametrize("kind", ["polygon", "rle"])
def test_boxes_and_masks_move_with_the_image(tmp_path, kind):
    record = write_image(tmp_path)
    add_masks(record, kind)
    mask_format = "polygon" if kind == "polygon" else "bitmask"
    cfg = config("MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", mask_format)
    mapper = CorrdetDatasetMapper(cfg, is_train=True)
    mapper.augmentations.augs[:1] = []  # colors as they are: the rectangles are found by them
    lengths = set()
    for seed in range(60):
        np.random.seed(seed)
        sample = mapper(record)
        instances, image = sample["instances"], sample["image"].float().mean(0)
        assert image.shape == (96, 128) == instances.image_size
        lengths.add(len(instances))
        masks = instances.gt_masks
        for number, box in enumerate(instances.gt_boxes.tensor):
            if kind == "polygon":
                mask = torch.from_numpy(polygons_to_bitmask(masks.polygons[number], 96, 128))
            else:
                mask = masks.tensor[number]
            x0, y0, x1, y1 = box.tolist()
            bounds = torch.zeros(96, 128, dtype=torch.bool)
            bounds[round(y0) : round(y1), round(x0) : round(x1)] = True
            value = 200 + 50 * int(instances.gt_classes[number])
            seen = (image - value).abs() < 24
            # Where the picture, its box and its mask differ is at their edges.
            edge = 3 * (2 + (x1 - x0) + (y1 - y0))
            assert (bounds ^ mask.bool()).sum() <= edge
            assert (bounds & ~seen).sum() <= edge
    assert lengths == {1, 2}


def test_augmentations_are_told_of_the_boxes(tmp_path):
    class Spy(T.Augmentation):
        def get_transform(self, image, boxes):
            seen.append(boxes)
            return T.NoOpTransform()

    record, seen = write_image(tmp_path), []
    kind = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record["annotations"] = [
        {**kind, "bbox": [20, 15, 40, 30], "iscrowd": 0},
        {**kind, "bbox": [0, 0, 130, 90], "iscrowd": 1},
        {**kind, "bbox": [80, 50, 45, 35]},
    ]
    arguments = {"augmentations": [Spy(), T.HFlipTransform(130), Spy()], "image_format": "BGR"}
    for is_train in (True, False):
        CorrdetDatasetMapper(is_train, **arguments)(record)
    del record["annotations"]
    CorrdetDatasetMapper(False, **arguments)(record)
    boxes = [[20, 15, 60, 45], [80, 50, 125, 85]]
    flipped = [[70, 15, 110, 45], [5, 50, 50, 85]]
    assert [found.tolist() for found in seen] == [boxes, flipped] * 2 + [[], []]


def test_objects_outside_of_the_crop_vanish(tmp_path):
    record = write_image(tmp_path)
    add_masks(record, "rle")
    cfg = config("MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask")
    mapper = CorrdetDatasetMapper(cfg, is_train=True)
    # All of the first object, and of the second less than the half with its centre.
    mapper.augmentations = T.AugmentationList([ObjectCropTransform(0, 0, 95, 90)])
    instances = mapper(record)["instances"]
    assert instances.gt_classes.tolist() == [0]
    assert instances.gt_boxes.tensor.tolist() == [[20, 15, 60, 45]]
    assert instances.gt_masks.tensor.shape == (1, 90, 95)


@pytest.mark.slow
def test_real_images_through_the_loader(digits_dicts):
    cfg = config("MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask")

    def batches(workers=0, done=0):
        cfg.DATALOADER.NUM_WORKERS = workers
        loader = build_train_loader(cfg, seed=3, dataset=digits_dicts)
        loader.seek(done)
        return take(loader, 12 - done)

    whole = batches()
    # The position in the stream says how a sample is augmented: not the workers, nor a restart.
    assert same(whole, batches(workers=2)) and same(whole[7:], batches(done=7))
    by_id = {record["image_id"]: record for record in digits_dicts}
    fewer = 0
    for sample in itertools.chain(*whole):
        instances = sample["instances"]
        assert sample["image"].shape == (3, 96, 128) and sample["image"].dtype == torch.uint8
        assert sample["image"].float().std() > 0
        assert instances.gt_boxes.nonempty().all() and instances.gt_masks.nonempty().all()
        assert (instances.gt_boxes.tensor >= 0).all()
        assert (instances.gt_boxes.tensor <= torch.tensor([128, 96, 128, 96])).all()
        objects = by_id[sample["image_id"]]["annotations"]
        assert 0 < len(instances) <= len(objects)
        fewer += len(instances) < len(objects)
    assert fewer > 0


def test_the_same_position_is_augmented_differently_in_each_epoch(digits_dicts):
    loader = build_train_loader(config("SOLVER.IMS_PER_BATCH", 1), seed=0, dataset=digits_dicts[:1])
    assert len({batch[0]["image"].numpy().tobytes() for batch in take(loader, 8)}) == 8


CORNER = [[0, 0, 12, 9], [118, 81, 130, 90], [0, 81, 12, 90], [118, 0, 130, 9]]
HOSTILE = {
    "none": [],
    "crowd": [{"bbox": [0, 0, 130, 90], "iscrowd": 1}],
    "object and crowd": [{"bbox": [5, 5, 20, 20]}, {"bbox": [0, 0, 130, 90], "iscrowd": 1}],
    "corners": [{"bbox": box} for box in CORNER],
    "pixels": [{"bbox": [x, y, x + 1, y + 1]} for x, y in ((0, 0), (129, 89), (64, 40))],
    "whole": [{"bbox": [0, 0, 130, 90]}],
    "less than a pixel": [{"bbox": [50.2, 50.4, 50.5, 50.5]}],
}


@pytest.mark.parametrize("objects", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("masks", [False, True])
def test_hostile_images(tmp_path, objects, masks):
    record = write_image(tmp_path)
    basis = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    record["annotations"] = [{**basis, **item} for item in objects]
    if masks:
        add_masks(record, "polygon")
    mapper = CorrdetDatasetMapper(config("MODEL.MASK_ON", masks), is_train=True)
    before = copy.deepcopy(record)
    kept = sum(not item.get("iscrowd", 0) for item in objects)
    for seed in range(40):
        np.random.seed(seed)
        sample = mapper(record)
        instances = sample["instances"]
        assert sample["image"].shape == (3, 96, 128) and len(instances) <= kept
        assert (len(instances) > 0) == (kept > 0)
        x0, y0, x1, y1 = instances.gt_boxes.tensor.unbind(1)
        assert (x0 < x1).all() and (y0 < y1).all() and (x1 <= 128).all() and (y1 <= 96).all()
        assert instances.has("gt_masks") == masks
    assert record == before


class TestFixedSize:
    def test_detections_are_scaled_back(self, tmp_path):
        record = write_image(tmp_path)
        cfg = config()
        sample = CorrdetDatasetMapper(cfg, is_train=False, keep_instances=True)(record)
        assert sample["image"].shape == (3, 96, 128)
        # At test there is neither a crop nor a flip.
        truth = sample["instances"]
        expected = torch.tensor([[20, 15, 60, 45], [80, 50, 125, 85]]).float()
        scale = torch.tensor([128 / 130, 96 / 90]).repeat(2)
        torch.testing.assert_close(truth.gt_boxes.tensor, expected * scale)
        detections = Instances((96, 128))
        detections.pred_boxes = Boxes(truth.gt_boxes.tensor.clone())
        results = detector_postprocess(detections, sample["height"], sample["width"])
        torch.testing.assert_close(results.pred_boxes.tensor, expected)
        assert results.image_size == (90, 130)

    def test_alone(self, tmp_path):
        cfg = config("INPUT.SSD_AUGMENTATION", False, "INPUT.RANDOM_FLIP", "none")
        instances = CorrdetDatasetMapper(cfg, is_train=True)(write_image(tmp_path))["instances"]
        assert instances.image_size == (96, 128) and len(instances) == 2

    def test_in_training_alone(self, tmp_path):
        cfg = config("INPUT.FIXED_SIZE_AT_TEST", False, "INPUT.MIN_SIZE_TEST", 45)
        image = write_image(tmp_path)
        assert CorrdetDatasetMapper(cfg, is_train=True)(image)["image"].shape == (3, 96, 128)
        assert CorrdetDatasetMapper(cfg, is_train=False)(image)["image"].shape == (3, 45, 65)

    def test_not_by_default(self, tmp_path):
        cfg = config("INPUT.FIXED_SIZE", (), "INPUT.SSD_AUGMENTATION", False)
        cfg.INPUT.MIN_SIZE_TRAIN = (180,)
        sample = CorrdetDatasetMapper(cfg, is_train=True)(write_image(tmp_path))
        assert sample["image"].shape == (3, 180, 260)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["INPUT.FIXED_SIZE", (300,)], r"must be \(height, width\).*got \(300,\)"),
        (["INPUT.FIXED_SIZE", (300, 0)], r"got \(300, 0\)"),
        (["INPUT.FIXED_SIZE", (300, -5)], r"got \(300, -5\)"),
        (["INPUT.FIXED_SIZE", (300, 300.5)], r"got \(300, 300.5\)"),
        (["INPUT.FIXED_SIZE", (300, 300, 3)], "FIXED_SIZE"),
        (["INPUT.CROP.ENABLED", True], "INPUT.CROP.ENABLED"),
        (["INPUT.FORMAT", "L"], "'BGR' or 'RGB', got 'L'"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CorrdetDatasetMapper(config(*options), is_train=True)
    opts = ["INPUT.SSD_AUGMENTATION", "True", *map(str, options)]
    with pytest.raises(ConfigError, match=message):
        load_config(Namespace(config_file="configs/quick/retinanet_baseline.yaml", opts=opts))
