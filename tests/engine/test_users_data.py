"""What users bring as test sets, from the file to AP."""

import json
import logging
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode

from corrdet.analysis.__main__ import main as analysis
from corrdet.coco import AnnotationError, CocoFileError, read_ground_truth
from corrdet.data.dataset import load_dataset, training_dicts
from corrdet.data.register import register_from_config
from corrdet.engine import CorrdetTrainer
from corrdet.engine.evaluator import CorrelationEvaluator
from corrdet.engine.test_sets import load_test_set, results_folder
from corrdet.errors import CorrdetError
from tests.helpers.users_data import SIDE, for_each, perfect_outputs, rectangles, write


@pytest.fixture
def register():
    """Function of name and paths: registered for the time of a test."""
    names = []

    def register(name: str, paths: str) -> str:
        names.extend(register_from_config([f"{name}={paths}"]))
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.MODEL.RETINANET.NUM_CLASSES = 2
    tiny_cfg.DATASETS.REGISTER = ()
    return tiny_cfg


def evaluate(evaluator: CorrelationEvaluator, dicts: list[dict]) -> dict:
    evaluator.reset()
    evaluator.process(dicts, perfect_outputs(dicts))
    return evaluator.evaluate()


def renamed(*names: str):
    """A change of the categories; objects keep their ids."""

    def change(content: dict) -> None:
        content["categories"] = [
            {"id": number, "name": name} for number, name in enumerate(names, 1)
        ]

    return change


def swapped(content: dict) -> None:
    """Another order, and the objects' ids with it."""
    content["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    for_each("annotations", category_id=lambda number: 3 - number)(content)


def floating_ids(content: dict) -> None:
    for_each("images", id=float)(content)
    for_each("annotations", id=float, image_id=float, category_id=float)(content)
    for_each("categories", id=float)(content)


def half_without(content: dict) -> None:
    for row in content["annotations"][::2]:
        del row["area"], row["iscrowd"]


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        (for_each("annotations", iscrowd=...), "utf-8"),
        (for_each("annotations", iscrowd=None), "utf-8"),
        (for_each("annotations", area=...), "utf-8"),
        (for_each("annotations", area=None), "utf-8"),
        (for_each("annotations", area=None, iscrowd=None, segmentation=...), "utf-8"),
        (half_without, "utf-8"),
        (floating_ids, "utf-8"),
        (lambda content: None, "utf-8-sig"),
        (half_without, "utf-8-sig"),
    ],
)
def test_what_a_file_may_leave_out_is_the_same_everywhere(
    change, encoding, tmp_path, register, cfg
):
    """Training, evaluator and analysis; as the complete file."""
    content = rectangles(tmp_path)
    whole = register("whole_val", write(tmp_path, content, "whole"))
    expected_dicts = load_dataset(cfg, whole)
    expected = evaluate(CorrelationEvaluator(whole, str(tmp_path / "whole")), expected_dicts)
    change(content)
    name = register("changed_val", write(tmp_path, content, "val", encoding))
    dicts = load_dataset(cfg, name)
    # A crowd is no object to train on; Detectron2 takes all but 0 for one.
    assert [[a.get("iscrowd", 0) for a in d["annotations"]] for d in dicts] == [[0, 0]] * 4
    assert [d["image_id"] for d in dicts] == [d["image_id"] for d in expected_dicts]
    output = tmp_path / "output"
    results = evaluate(CorrelationEvaluator(name, str(output)), dicts)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["bbox"] == pytest.approx(expected["bbox"], nan_ok=True)
    found = output / "coco_instances_results.json"
    arguments = ["--ground-truth", str(tmp_path / "val.json"), "--detections", str(found)]
    analysis([*arguments, "--output", str(tmp_path / "analysis")])
    measures = json.loads((tmp_path / "analysis" / "metrics.json").read_text())
    assert measures["AP"] == measures["APs"] == pytest.approx(100)
    assert measures["APm"] is None and measures["ground_truths"] == 8


@pytest.mark.parametrize("flag", ["0", 2, [1]])
def test_iscrowd_that_is_neither_is_refused_in_training(flag, tmp_path, register, cfg):
    content = rectangles(tmp_path)
    content["annotations"][2]["iscrowd"] = flag
    name = register("crowd_train", write(tmp_path, content))
    with pytest.raises(ValueError, match="annotation id 3: expected iscrowd to be 0 or 1, got"):
        load_dataset(cfg, name)


class TestClassesOfTwoFiles:
    @pytest.fixture
    def files(self, tmp_path, register, cfg):
        """Function of a change: training set, and the test set with it."""

        def files(change, register=register):
            content = rectangles(tmp_path)
            train = register("classes_train", write(tmp_path, content))
            change(content)
            val = register("classes_val", write(tmp_path, content, "val"))
            cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), (val,)
            return train, val

        return files

    @pytest.mark.parametrize("by_detectron2", [False, True])
    @pytest.mark.parametrize("is_trained", [False, True])
    def test_a_permutation_is_mapped_and_said(
        self, files, cfg, tmp_path, by_detectron2, is_trained, caplog, register
    ):
        def register_theirs(name, paths):
            json_file, images = paths.split(".json:")
            register_coco_instances(name, {}, f"{json_file}.json", images)
            return name

        train, val = files(swapped, register_theirs if by_detectron2 else register)
        try:
            if is_trained:
                expected = training_dicts(cfg)
            logging.getLogger("corrdet").propagate = True
            dicts = load_test_set(cfg, val)
            assert "its classes are in another order (dog, cat) than those of" in caplog.text
            if not is_trained:  # --eval-only
                expected = training_dicts(cfg)
            labels = [[a["category_id"] for a in d["annotations"]] for d in dicts]
            assert labels == [[a["category_id"] for a in d["annotations"]] for d in expected]
            assert MetadataCatalog.get(val).thing_classes == ["cat", "dog"]
            # Whoever loads it, and again.
            for again in (
                load_test_set(cfg, val),
                DatasetCatalog.get(val),
                load_test_set(cfg, val),
            ):
                assert [[a["category_id"] for a in d["annotations"]] for d in again] == labels
            evaluators = CorrelationEvaluator, COCOEvaluator
            for evaluator in evaluators:
                results = evaluate(evaluator(val, output_dir=str(tmp_path / "out")), expected)
                assert results["bbox"]["AP"] == pytest.approx(100)
        finally:
            if by_detectron2:
                for name in (train, val):
                    DatasetCatalog.remove(name)
                    MetadataCatalog.remove(name)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (renamed("cat", "cow"), "missing: dog, unknown: cow"),
            (renamed("Cat", "dog"), "missing: cat, unknown: Cat"),
            (renamed("dog", "dog"), "missing: cat, unknown: none"),
        ],
    )
    def test_others_are_refused_before_training(self, files, cfg, change, words):
        train, val = files(change)
        with pytest.raises(AnnotationError) as caught:
            CorrdetTrainer(cfg)
        assert words in str(caught.value) and "'classes_train'" in str(caught.value)
        # So are those of a second training set.
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train, val), ()
        with pytest.raises(AnnotationError, match="data set 'classes_val': expected the 2 classes"):
            training_dicts(cfg)

    def test_training_sets_in_two_orders(self, files, cfg):
        cfg.DATASETS.TRAIN = files(swapped)
        labels = [[a["category_id"] for a in d["annotations"]] for d in training_dicts(cfg)]
        assert labels[:4] == labels[4:] and len(labels) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][2].update(id=1), r"images\[2\]: expected an id of its own, got 1"),
        (lambda c: c["images"][2].update(id=1.0), r"images\[2\]: expected an id of its own, got 1"),
        (
            lambda c: c["images"][2].update(id=2.5),
            r"images\[2\]: expected a whole number or a text",
        ),
        (lambda c: c["images"][2].update(id=True), r"images\[2\]: expected a whole number or a t"),
        (lambda c: c["categories"][1].update(id=1), r"categories\[1\]: expected an id of its own"),
    ],
)
def test_ids_are_asked_for_the_same_in_training(change, message, tmp_path, register, cfg):
    content = rectangles(tmp_path)
    change(content)
    cfg.DATASETS.TRAIN = (register("ids_train", write(tmp_path, content)),)
    with pytest.raises(CocoFileError, match=message):
        training_dicts(cfg)
    with pytest.raises(CocoFileError, match=message):
        read_ground_truth(tmp_path / "train.json")


POLYGONS = [
    lambda box: [[1, 1, 5, 5]],
    lambda box: [1, 1, 5, 5, 1, 5],
    lambda box: {"size": [3, 3]},
    lambda box: [[], [1.0, 2.0, "x"]],
    lambda box: "none",
]


@pytest.mark.parametrize("segmentation", POLYGONS)
def test_masks_are_no_concern_of_boxes(segmentation, tmp_path, register, cfg):
    content = rectangles(tmp_path)
    for row in content["annotations"][:3]:
        row["segmentation"] = segmentation(row["bbox"])
    name = register("boxes_train", write(tmp_path, content))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    trainer = CorrdetTrainer(cfg)  # the loader, and the checks of the test set
    assert sum(len(record["annotations"]) for record in load_test_set(cfg, name)) == 8
    trainer._loader.close()
    dicts = load_test_set(cfg, name)
    results = evaluate(trainer.build_evaluator(cfg, name, str(tmp_path / "out")), dicts)
    assert results["bbox"]["AP"] == pytest.approx(100)
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    with pytest.raises(AnnotationError, match="annotation id 1"):
        load_dataset(cfg, name)


class TestLeftOut:
    """Of a test set, and of AP."""

    def damage_file(folder, content):
        (folder / "images/0002.png").write_bytes(b"")

    def misstate_size(folder, content):
        content["images"][1]["width"] = 50

    def take_file(folder, content):
        (folder / "images/0002.png").unlink()

    def flatten(folder, content):
        content["annotations"][2]["bbox"][2] = 0

    def take_box(folder, content):
        content["annotations"][3]["bbox"] = None

    def move_out(folder, content):
        content["annotations"][0]["bbox"][0] = 400

    @pytest.mark.parametrize(
        ("change", "key", "words"),
        [
            (damage_file, "SKIP_UNREADABLE", "1 of the 4 images and 2 of the 8 annotations"),
            (misstate_size, "SKIP_UNREADABLE", "1 of the 4 images and 2 of the 8 annotations"),
            (take_file, "SKIP_UNREADABLE", "1 of the 4 images and 2 of the 8 annotations"),
            (flatten, "SKIP_BAD_ANNOTATIONS", "without 1 of the 8 annotations"),
            (take_box, "SKIP_BAD_ANNOTATIONS", "without 1 of the 8 annotations"),
            (move_out, "SKIP_BAD_ANNOTATIONS", "without 1 of the 8 annotations"),
        ],
    )
    def test_what_is_left_out_counts_as_not_there(
        self, change, key, words, tmp_path, register, cfg, caplog
    ):
        content = rectangles(tmp_path)
        change(tmp_path, content)
        name = register("parts_val", write(tmp_path, content, "val"))
        cfg.DATASETS.TRAIN = (name,)
        with pytest.raises(CorrdetError):
            load_test_set(cfg, name)
        cfg.DATASETS[key] = True
        dicts = load_test_set(cfg, name)
        logging.getLogger("corrdet").propagate = True
        evaluator = CorrdetTrainer.build_evaluator(cfg, name, str(tmp_path / "out"))
        assert words in caplog.text
        results = evaluate(evaluator, dicts)["bbox"]
        assert results["AP"] == results["AR100"] == pytest.approx(100)
        number = sum(len(record["annotations"]) for record in dicts)
        assert len(evaluator._coco_api.anns) == number
        assert evaluator.measured["bbox"].matches.num_gt[0].sum() == number

    def test_without_the_keys_the_file_counts(self, tmp_path, register, cfg):
        content = rectangles(tmp_path)
        name = register("parts_val", write(tmp_path, content, "val"))
        cfg.DATASETS.TRAIN = (name,)
        evaluator = CorrdetTrainer.build_evaluator(cfg, name, str(tmp_path / "out"))
        dicts = load_test_set(cfg, name)
        dicts[0]["annotations"] = []
        assert evaluate(evaluator, dicts)["bbox"]["AR100"] < 90


def test_several_test_sets_have_files_of_their_own(tmp_path, register, cfg):
    names = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        content = rectangles(folder, images=number + 1, seed=number)
        names.append(register(f"several_{number}", write(folder, content)))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = names[:1], names
    output = Path(cfg.OUTPUT_DIR)
    for kind in ("inference", "inference_TTA"):
        for number, name in enumerate(names):
            evaluator = CorrdetTrainer.build_evaluator(cfg, name, results_folder(cfg, kind, name))
            evaluate(evaluator, load_test_set(cfg, name))
            rows = json.loads((output / kind / name / "coco_instances_results.json").read_text())
            assert len(rows) == 2 * (number + 1)
    model = CorrdetTrainer.build_model(cfg)
    CorrdetTrainer.test(cfg, model)
    for name in names:
        assert (output / "inference" / name / "measures.json").is_file()
    # One has the folder to itself, as ever.
    cfg.DATASETS.TEST = names[1:]
    CorrdetTrainer.test(cfg, model)
    assert (output / "inference" / "coco_instances_results.json").is_file()


@pytest.mark.parametrize(("number", "expected"), [(100, None), (150, 75.0), (300, 100.0)])
def test_ap_of_more_than_a_hundred_detections(number, expected, tmp_path, register, cfg, caplog):
    """200 objects of a class in an image, all found: COCO counts the best hundred."""
    content = rectangles(tmp_path, images=1)
    content["annotations"] = [
        {"id": 1 + 20 * y + x, "image_id": 1, "category_id": 1, "bbox": [4 * x, 8 * y, 4, 8]}
        for x in range(20)
        for y in range(10)
    ]
    name = register(f"many_{number}", write(tmp_path, content, "val"))
    cfg.DATASETS.TRAIN, cfg.TEST.DETECTIONS_PER_IMAGE = (name,), number
    logging.getLogger("corrdet").propagate = True
    evaluator = CorrdetTrainer.build_evaluator(cfg, name, str(tmp_path / "out"))
    results = evaluate(evaluator, load_test_set(cfg, name))["bbox"]
    assert results["AP"] == pytest.approx(100 * 51 / 101)  # recalls 0 to 0.5, of 101
    key = f"AP-maxDets{number}"
    if expected is None:
        assert key not in results
    else:
        assert results[key] == pytest.approx(expected, abs=0.5)
        assert key in caplog.text


def test_a_converted_data_set_is_converted_again(tmp_path, cfg):
    content = rectangles(tmp_path)
    content["annotations"] = content["annotations"][:3]
    dicts = [
        {"file_name": str(tmp_path / "images" / i["file_name"]), "image_id": i["id"],
         "width": SIDE, "height": SIDE,
         "annotations": [
             {"bbox": a["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
             for a in content["annotations"] if a["image_id"] == i["id"]
         ]}
        for i in content["images"]
    ]  # fmt: skip
    DatasetCatalog.register("functions", lambda: dicts)
    MetadataCatalog.get("functions").set(thing_classes=["cat"])
    try:
        for folder in ("a", "a", "b"):
            evaluator = CorrelationEvaluator("functions", str(tmp_path / folder))
            assert len(evaluator._coco_api.anns) == sum(len(d["annotations"]) for d in dicts)
            assert evaluate(evaluator, dicts)["bbox"]["AP"] == pytest.approx(100)
            dicts[0]["annotations"] = dicts[0]["annotations"][1:]
        MetadataCatalog.pop("functions")  # another process
        MetadataCatalog.get("functions").set(thing_classes=["cat"])
        dicts[1]["annotations"] = dicts[1]["annotations"] * 2
        evaluator = CorrelationEvaluator("functions", str(tmp_path / "b"))
        assert len(evaluator._coco_api.anns) == 2
    finally:
        DatasetCatalog.remove("functions")
        MetadataCatalog.remove("functions")
