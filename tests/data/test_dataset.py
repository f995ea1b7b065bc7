import json
import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from corrdet.data import AnnotationError, ImageReadError, build_train_loader
from corrdet.data.dataset import load_dataset, training_dicts
from corrdet.data.register import register_from_config
from corrdet.errors import CorrdetError
from tests.helpers.data import loader_config as config


def test_training_dicts(registered, digits_dicts):
    empty = [{**digits_dicts[0], "annotations": []}]
    names = (registered(digits_dicts), registered(empty))
    cfg = config()
    cfg.DATASETS.TRAIN = names
    filled = [record for record in digits_dicts if record["annotations"]]
    assert training_dicts(cfg) == filled
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert training_dicts(cfg) == digits_dicts + empty


def test_training_dicts_reports_bad_annotations(registered, digits_dicts):
    bad = [{**record, "annotations": list(record["annotations"])} for record in digits_dicts]
    annotation = bad[1]["annotations"][0]
    bad[1]["annotations"][0] = {**annotation, "bbox": [1, 1, 0, 1]}
    cfg = config()
    cfg.DATASETS.TRAIN = (registered(bad),)
    with pytest.raises(AnnotationError, match="annotation 0"):
        build_train_loader(cfg, seed=0)
    cfg.DATASETS.SKIP_BAD_ANNOTATIONS = True
    before, after = (sum(len(r["annotations"]) for r in d) for d in (bad, training_dicts(cfg)))
    assert after == before - 1


def test_masks_that_are_no_polygons_need_bitmask(registered, digits_dicts):
    first, *others = digits_dicts
    polygons = [{**a, "segmentation": [[40, 40, 80, 40, 80, 80]]} for a in first["annotations"]]
    crowd = {**first["annotations"][0], "iscrowd": 1}
    name = registered([{**first, "annotations": [*polygons, crowd]}])
    cfg = config()
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "polygon"
    load_dataset(cfg, name)
    name = registered([{**first, "annotations": polygons}, *others])
    cfg.DATASETS.SKIP_BAD_ANNOTATIONS = True  # they are not bad
    image = re.escape(others[0]["file_name"])
    with pytest.raises(AnnotationError, match=f"{image}: annotation 0.*set INPUT.MASK_FORMAT"):
        load_dataset(cfg, name)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    load_dataset(cfg, name)
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = False, "polygon"
    load_dataset(cfg, name)


def test_training_dicts_errors(registered):
    cfg = config()
    for names, kind, message in [
        ((), ValueError, "no data set"),
        ((registered([]),), ValueError, "no images"),
        ((registered(iter([])),), TypeError, "not a list"),
    ]:
        cfg.DATASETS.TRAIN = names
        with pytest.raises(kind, match=message) as raised:
            training_dicts(cfg)
        assert isinstance(raised.value, CorrdetError)


def test_more_classes_than_the_model_has_are_an_error(registered, digits_dicts):
    cfg = config()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.RETINANET.NUM_CLASSES = 9
    cfg.DATASETS.TRAIN = (registered(digits_dicts),)
    with pytest.raises(AnnotationError, match="10 classes .* but MODEL.RETINANET.NUM_CLASSES is 9"):
        training_dicts(cfg)


def test_missing_images_are_reported_before_the_first_is_read(registered, digits_dicts):
    cfg = config()
    gone = {**digits_dicts[0], "file_name": "gone.jpg"}
    cfg.DATASETS.TRAIN = (registered([*digits_dicts, gone]),)
    with pytest.raises(ImageReadError, match="1 of the 41 images.* are missing:\n  gone.jpg"):
        training_dicts(cfg)
    cfg.DATASETS.SKIP_UNREADABLE = True
    assert len(training_dicts(cfg)) == 40


def test_a_data_set_that_cannot_be_loaded_is_explained(digits_directory, tmp_path):
    path = tmp_path / "train.json"
    content = json.loads((digits_directory / "annotations" / "train.json").read_text())
    content["annotations"][0]["category_id"] = 11
    path.write_text(json.dumps(content))
    (name,) = register_from_config([f"test_bad_category={path}:{digits_directory}/train"])
    with pytest.raises(AnnotationError, match=r"annotation id 1: category_id 11 is not among"):
        load_dataset(config(), name)
    # A polygon without its list, of no concern to who trains boxes alone.
    content["annotations"][0].update(category_id=1, segmentation=[1, 1, 5, 1, 5, 5])
    path.write_text(json.dumps(content))
    assert load_dataset(config(), name)
    masks = config(MODEL__MASK_ON=True, INPUT__MASK_FORMAT="bitmask")
    with pytest.raises(AnnotationError, match="annotation id 1: its mask is neither polygons nor"):
        load_dataset(masks, name)
    # One that Detectron2 leaves out with its object.
    content["annotations"][0].update(segmentation=[[1, 1, 5, 5]])
    path.write_text(json.dumps(content))
    number = sum(len(record["annotations"]) for record in load_dataset(config(), name))
    assert number == len(content["annotations"])
    with pytest.raises(AnnotationError, match="annotation id 1: a polygon of its mask has 4 coo"):
        load_dataset(masks, name)
    masks.DATASETS.SKIP_BAD_ANNOTATIONS = True
    kept = sum(len(record["annotations"]) for record in load_dataset(masks, name))
    assert kept == len(content["annotations"]) - 1
    content["annotations"][0].pop("segmentation")
    # Boxes are left to the check that can skip them; it names the annotation, too.
    content["annotations"][0].pop("bbox")
    path.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="annotation 0, id 1, box None: .* not four numbers"):
        load_dataset(config(), name)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_errors_of_a_data_sets_own_code_are_not_hidden():
    def load():
        raise RuntimeError("no such server")

    DatasetCatalog.register("test_own_code", load)
    with pytest.raises(RuntimeError, match="no such server"):
        load_dataset(config(), "test_own_code")
    DatasetCatalog.remove("test_own_code")
