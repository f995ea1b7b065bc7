"""Images as users bring them: sizes, EXIF, depths; found before training, and read rightly."""

import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, detection_utils
from PIL import Image

from corrdet.coco import AnnotationError, CocoFileError
from corrdet.data import (
    CorrdetDatasetMapper,
    ImageReadError,
    ImageSizeError,
    build_train_loader,
)
from corrdet.data.dataset import load_dataset
from corrdet.data.images import read_image, to_eight_bits
from corrdet.data.register import register_from_config
from corrdet.errors import CorrdetError
from corrdet.names import config_value
from tests.helpers.data import loader_config
from tests.helpers.users_data import SIDE, for_each, rectangles, write


@pytest.fixture
def load(tmp_path):
    """Function of a content and config keys: the data set, loaded as for training."""
    names = []

    def load(content: dict, is_train: bool = True, **options):
        name = f"images_{len(names)}"
        names.extend(register_from_config([f"{name}={write(tmp_path, content, name)}"]))
        cfg = loader_config(MODEL__ROI_HEADS__NUM_CLASSES=2)
        cfg.DATASETS.SKIP_UNREADABLE = options.pop("skip", False)
        cfg.DATASETS.CHECK_IMAGES = options.pop("check", "header")
        for key, value in options.items():
            section, _, own = key.rpartition("__")
            config_value(cfg, (section or "INPUT").replace("__", "."))[own] = value
        return load_dataset(cfg, name, is_train=is_train)

    yield load
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def save(tmp_path, content: dict, pixels, name: str = "own.jpg", orientation=None) -> dict:
    """One more image, of the size of its pixels; returns its row."""
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(tmp_path / "images" / name, exif=exif.tobytes())
    row = {"id": 99, "file_name": name, "width": image.width, "height": image.height}
    content["images"].append(row)
    return row


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(
    ("row", "stated"), [(1, (97, 96)), (0, (48, 48)), (3, (96, 960))]
)  # fmt: skip
def test_other_sizes_than_stated(tmp_path, load, row, stated, is_train, caplog):
    content = rectangles(tmp_path)
    width, height = stated
    content["images"][row].update(width=width, height=height)
    with pytest.raises(ImageSizeError) as caught:
        load(content, is_train)
    name = content["images"][row]["file_name"]
    assert isinstance(caught.value, CorrdetError)
    words = f"{name}: the data set says {width} x {height}, the file has 96 x 96 (w x h)"
    assert words in str(caught.value) and "1 of 4 images" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        kept = load(content, is_train, skip=True)
    assert len(kept) == 3 and words in caplog.text


ARROW = np.zeros((80, 128, 3), np.uint8)
ARROW[:40, :64] = 255  # upper left


class TestExif:
    def mapped(self, record) -> np.ndarray:
        mapper = CorrdetDatasetMapper(False, augmentations=[], image_format="BGR")
        return mapper(record)["image"].permute(1, 2, 0).numpy()

    @pytest.mark.parametrize("orientation", [5, 6, 7, 8])
    @pytest.mark.parametrize("name", ["own.jpg", "own.png"])
    def test_the_stated_size_decides(self, tmp_path, load, orientation, name, caplog):
        content = rectangles(tmp_path)
        row = save(tmp_path, content, ARROW, name, orientation)
        path = str(tmp_path / "images" / name)
        as_stored = np.asarray(Image.open(path).convert("RGB"))
        with caplog.at_level(logging.WARNING):
            record = load(content)[-1]
        assert "1 image(s) are not turned by EXIF" in caplog.text and path in caplog.text
        assert np.array_equal(self.mapped(record), as_stored[:, :, ::-1])
        row.update(width=80, height=128)
        caplog.clear()
        record = load(content)[-1]
        assert caplog.text == ""
        assert np.array_equal(self.mapped(record), detection_utils.read_image(path, "BGR"))
        row.update(width=80, height=100)
        with pytest.raises(ImageSizeError, match="has 128 x 80, turned by EXIF 80 x 128 "):
            load(content)

    @pytest.mark.parametrize(("pixels", "orientation"), [(ARROW, 3), (ARROW[:, :80], 6)])
    def test_where_sizes_cannot_tell_it_is_said(self, tmp_path, load, pixels, orientation, caplog):
        content = rectangles(tmp_path)
        save(tmp_path, content, pixels, "own.jpg", orientation)
        with caplog.at_level(logging.WARNING):
            record = load(content)[-1]
        assert "their sizes cannot tell" in caplog.text
        expected = detection_utils.read_image(record["file_name"], "BGR")
        assert np.array_equal(self.mapped(record), expected)

    def test_images_without_it_are_read_as_by_detectron2(self, tmp_path, load):
        for record in load(rectangles(tmp_path)):
            expected = detection_utils.read_image(record["file_name"], "BGR")
            assert np.array_equal(self.mapped(record), expected)


def test_a_mapper_that_reads_them_otherwise_is_refused_or_said(tmp_path, load, caplog):
    cfg = loader_config(INPUT__MIN_SIZE_TRAIN=(96,))
    content = rectangles(tmp_path)

    class Own(DatasetMapper):
        def __call__(self, dataset_dict):
            raise NotImplementedError

    kinds = DatasetMapper, Own, CorrdetDatasetMapper
    plain, own, ours = (kind(cfg, is_train=True) for kind in kinds)
    for mapper in (plain, own, ours):
        build_train_loader(cfg, mapper, seed=0, dataset=load(content)).close()
    assert "A mapper of one's own reads them by" not in caplog.text
    save(tmp_path, content, ARROW, "own.jpg", 6)
    dicts = load(content)
    with pytest.raises(ImageReadError, match="^1 image.* Detectron2's DatasetMapper reads them wr"):
        build_train_loader(cfg, plain, seed=0, dataset=dicts)
    build_train_loader(cfg, ours, seed=0, dataset=dicts).close()
    assert "A mapper of one's own reads them by" not in caplog.text
    build_train_loader(cfg, own, seed=0, dataset=dicts).close()
    assert "A mapper of one's own reads them by" in caplog.text


RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        ((RAMP * 65535).astype(np.uint16), "own.png", RAMP * 255),
        ((RAMP * 4095).astype(np.uint16), "own.tif", RAMP * 4095 / 257),
        ((RAMP * 65535).astype(np.int32), "own.tif", RAMP * 255),
        ((RAMP * 2**30).astype(np.int32), "own.tif", RAMP * 255),
        ((RAMP * 255).astype(np.int32), "own.tif", RAMP * 255),
        (RAMP.astype(np.float32), "own.tif", RAMP * 255),
        ((RAMP * 255).astype(np.float32), "own.tif", RAMP * 255),
        ((RAMP * 10 - 5).astype(np.float32) * 100, "own.tif", RAMP * 255),
    ],
)
def test_deep_images_are_scaled_and_it_is_said(tmp_path, load, values, name, expected, caplog):
    content = rectangles(tmp_path)
    save(tmp_path, content, values, name)
    with caplog.at_level(logging.WARNING):
        record = load(content)[-1]
        load(content)
    assert "1 image(s) are of 16 or 32 bits a channel, which are scaled" in caplog.text
    pixels = CorrdetDatasetMapper(False, augmentations=[], image_format="BGR")(record)["image"]
    assert np.abs(pixels.numpy() - expected).max() <= 1
    # Without 8 bits asked for, as it is.
    assert np.array_equal(read_image(record["file_name"]), values)


def test_deep_images_of_one_value():
    assert to_eight_bits(np.full((2, 2), 70_000), "I").tolist() == [[0, 0]] * 2
    assert to_eight_bits(np.full((2, 2), np.nan), "F").tolist() == [[0, 0]] * 2


@pytest.mark.parametrize("value", ["96", 96.5, None, -1, True, 0, float("inf")])
@pytest.mark.parametrize("key", ["width", "height"])
def test_sizes_that_are_no_numbers_of_pixels_are_named(tmp_path, load, key, value, registered):
    content = rectangles(tmp_path)
    content["images"][1][key] = value
    words = f"expected a whole number of pixels as {key}, at most 1000000, got"
    with pytest.raises(CocoFileError, match=rf"image id 2 \(0002.png\): {words}"):
        load(content)
    # Of a function of one's own.
    record = {"file_name": str(tmp_path / "images/0001.png"), "width": SIDE, "height": SIDE}
    name = registered([{**record, key: value, "annotations": []}])
    with pytest.raises(AnnotationError, match=rf"0001.png: {words}"):
        load_dataset(loader_config(), name)


def test_sizes_that_are_not_stated_are_the_files(tmp_path, registered):
    rectangles(tmp_path)
    name = registered([{"file_name": str(tmp_path / "images/0001.png")}])
    (record,) = load_dataset(loader_config(), name)
    assert (record["width"], record["height"]) == (SIDE, SIDE)


def test_sizes_may_be_whole_floating_point_numbers(tmp_path, load):
    content = rectangles(tmp_path)
    for_each("images", width=96.0, height=96.0)(content)
    record = load(content)[0]
    assert json.dumps([record["width"], record["height"]]) == "[96, 96]"


@pytest.mark.parametrize(
    ("shape", "fits"), [((1, 4000), False), ((4000, 1), False), ((1, 400), True)]
)
def test_images_of_which_nothing_would_be_left(tmp_path, load, shape, fits, caplog):
    content = rectangles(tmp_path)
    save(tmp_path, content, np.zeros((*shape, 3), np.uint8))
    if fits:
        assert len(load(content)) == 5
        return
    with pytest.raises(ImageSizeError, match="resized to at most 1333 pixels, has a side of no"):
        load(content)
    assert len(load(content, skip=True)) == 4
    assert len(load(content, MAX_SIZE_TRAIN=4000)) == 5
    with pytest.raises(ImageSizeError):
        load(content, is_train=False, MAX_SIZE_TRAIN=4000)
    assert len(load(content, is_train=False, MIN_SIZE_TEST=0)) == 5


@pytest.mark.parametrize(
    ("kind", "size", "reason"),
    [
        ("relative", (0.4, 0.001), "cropped by INPUT.CROP, has a side of no pixel"),
        ("relative", (0.001, 0.4), "cropped by INPUT.CROP, has a side of no pixel"),
        ("relative_range", (0.001, 0.4), "cropped by INPUT.CROP, has a side of no pixel"),
        # A strip of 1 x 96, which MAX_SIZE_TRAIN makes 20 pixels long.
        (
            "relative_range",
            (0.01, 0.4),
            r"(96 x 1|1 x 96), resized to at most 20 pixels, has a side",
        ),
        ("absolute_range", (1, 96), r"(96 x 1|1 x 96), resized to at most 20 pixels, has a side"),
        ("absolute", (96, 1), r"to 1 x 96, resized to at most 20 pixels, has a side of no pixel"),
        ("relative", (0.01, 0.01), None),
        ("absolute_range", (4, 90), None),
    ],
)
@pytest.mark.parametrize("is_train", [True, False])
def test_crops_of_which_nothing_would_be_left(tmp_path, load, kind, size, reason, is_train):
    options = dict(INPUT__CROP__ENABLED=True, INPUT__CROP__TYPE=kind, INPUT__CROP__SIZE=size)
    options |= dict(MAX_SIZE_TRAIN=20, is_train=is_train)
    content = rectangles(tmp_path)
    if reason is None or not is_train:
        assert len(load(content, **options)) == 4
        return
    with pytest.raises(ImageSizeError, match=r"4 of 4 images.*\n.*96 x 96 \(w x h\), .*" + reason):
        load(content, **options)


def test_crops_are_of_resized_images_where_the_config_says_so(tmp_path, load):
    options = dict(CROP__ENABLED=True, CROP__TYPE="relative", CROP__SIZE=(0.1, 0.1))
    options = {f"INPUT__{key}": value for key, value in options.items()}
    content = rectangles(tmp_path)
    assert len(load(content, **options, INPUT__CROP__MIN_SIZE_BEFORE=(5, 96))) == 4
    with pytest.raises(ImageSizeError, match="resized before INPUT.CROP to 4 x 4, cropped by INP"):
        load(content, **options, INPUT__CROP__MIN_SIZE_BEFORE=(96, 4))


@pytest.mark.parametrize(
    ("sizes", "longest", "flip", "reason"),
    [
        ((8, 1), 4000, True, "resized by TEST.AUG, is a single pixel, which Detectron2 cannot mir"),
        ((8, 1), 4000, False, None),
        ((8, 2), 4000, True, None),
        ((8, 2), 20, True, "resized by TEST.AUG, has a side of no pixel"),
    ],
)
def test_views_of_tests_of_which_nothing_would_be_left(
    tmp_path, load, sizes, longest, flip, reason
):
    options = dict(ENABLED=True, MIN_SIZES=sizes, MAX_SIZE=longest, FLIP=flip)
    options = {f"TEST__AUG__{key}": value for key, value in options.items()}
    content = rectangles(tmp_path)
    save(tmp_path, content, np.zeros((100, 10 if longest > 20 else 2, 3), np.uint8))
    assert len(load(content, **options)) == 5  # in training
    if reason is None:
        assert len(load(content, is_train=False, **options)) == 5
        return
    with pytest.raises(ImageSizeError, match=reason):
        load(content, is_train=False, **options)


@pytest.mark.parametrize("which", [slice(None), slice(4), slice(2, 7)])
def test_boxes_in_shares_of_the_image(tmp_path, load, which):
    content = rectangles(tmp_path)
    for row in content["annotations"][which]:
        row["bbox"] = [side / SIDE for side in row["bbox"]]
    number = len(content["annotations"][which])
    with pytest.raises(
        AnnotationError, match=rf"{number} bad annotation\(s\) \({number} in 0..1\)"
    ):
        load(content)


def test_damaged_images_are_found_by_choice(tmp_path, load):
    content = rectangles(tmp_path)
    path = tmp_path / "images" / "0002.png"
    path.write_bytes(path.read_bytes()[:-4000])
    assert len(load(content)) == 4
    with pytest.raises(ImageReadError, match=r"1 image\(s\) that cannot be read:\n.*0002.png"):
        load(content, check="whole")
    path.write_bytes(b"no image")
    with pytest.raises(ImageReadError, match=r"1 image\(s\) that cannot be read:\n.*0002.png"):
        load(content)
    assert len(load(content, check="none")) == 4
    assert len(load(content, skip=True)) == 3
