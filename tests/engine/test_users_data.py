"""What users bring as test sets, from the file to AP."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from corrdet.analysis.__main__ import main as analysis
from corrdet.data.dataset import load_dataset
from corrdet.data.register import register_from_config
from corrdet.engine.evaluator import CorrelationEvaluator
from tests.helpers.users_data import for_each, perfect_outputs, rectangles, write


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
