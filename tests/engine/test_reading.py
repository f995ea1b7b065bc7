"""An annotation file is parsed once for each purpose."""

import gc
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import COCOEvaluator

from corrdet.coco import CocoFile
from corrdet.data import load_dataset
from corrdet.engine import CorrdetTrainer, test_sets
from corrdet.engine.evaluator import CorrelationEvaluator
from tests.helpers.opens import count_opens

pytestmark = pytest.mark.slow


def path_of(name: str) -> str:
    return MetadataCatalog.get(name).json_file


def living_files() -> int:
    gc.collect()
    return sum(isinstance(thing, CocoFile) for thing in gc.get_objects())


@pytest.fixture(params=["ours", "detectron2's"])
def cfg(request, tiny_cfg):
    """As registered by DATASETS.REGISTER, and by Detectron2's function."""
    if request.param == "ours":
        yield tiny_cfg
        return
    names = {split: f"theirs_{split}" for split in ("train", "val")}
    for split, name in names.items():
        metadata = MetadataCatalog.get(f"tiny_{split}")
        register_coco_instances(name, {}, metadata.json_file, metadata.image_root)
    tiny_cfg.DATASETS.TRAIN, tiny_cfg.DATASETS.TEST = (names["train"],), (names["val"],)
    yield tiny_cfg
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_training_and_its_evaluation(cfg):
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    (train,), (val,) = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    train, val = path_of(train), path_of(val)
    before = living_files()
    with count_opens(train, val) as opens:
        trainer = CorrdetTrainer(cfg)
        assert opens == {train: 1, val: 1}
        assert living_files() == before  # for hours of training
        trainer.test(cfg, trainer.model)
        assert opens == {train: 1, val: 2}
        # One parse for the loader and the evaluator that is handed in.
        evaluator = trainer.build_evaluator(cfg, *cfg.DATASETS.TEST)
        assert opens[val] == 3
        trainer.test(cfg, trainer.model, [evaluator])
        assert opens[val] == 4
    del evaluator
    assert living_files() == before


def test_an_evaluation_alone_with_classes_of_an_unread_training_set(cfg):
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    (train,), (val,) = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    for name in (train, val):  # as in a process that has loaded nothing
        for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
            vars(MetadataCatalog.get(name)).pop(key, None)
    train, val = path_of(train), path_of(val)
    model = CorrdetTrainer.build_model(cfg)
    with count_opens(train, val) as opens:
        CorrdetTrainer.test(cfg, model)
    assert opens == {train: 1, val: 1}


@pytest.mark.parametrize("skips", [False, True])
def test_a_test_set_is_loaded_once_for_each_evaluation(tiny_cfg, monkeypatch, skips):
    loaded = []

    def counting(cfg, name, **options):
        loaded.append(name)
        return load_dataset(cfg, name, **options)

    monkeypatch.setattr(test_sets, "load_dataset", counting)
    tiny_cfg.DATASETS.SKIP_BAD_ANNOTATIONS = skips
    os.makedirs(tiny_cfg.OUTPUT_DIR, exist_ok=True)
    model = CorrdetTrainer.build_model(tiny_cfg)
    for _ in range(2):
        loaded.clear()
        CorrdetTrainer.test(tiny_cfg, model)
        assert loaded == ["tiny_val"]


@pytest.mark.parametrize("sets", [("tiny_val",), ("tiny_val", "tiny_train")])
def test_losses_on_the_test_sets_need_no_other_parse(tiny_cfg, sets):
    tiny_cfg.TEST.EVAL_LOSS, tiny_cfg.DATASETS.TEST = True, sets
    os.makedirs(tiny_cfg.OUTPUT_DIR, exist_ok=True)
    train, val = path_of("tiny_train"), path_of("tiny_val")
    with count_opens(train, val) as opens:
        trainer = CorrdetTrainer(tiny_cfg)
        # For training and as a test set: two purposes, of which nothing is kept.
        assert opens == {train: len(sets), val: 1}
        opens.clear()
        trainer.iter = trainer.start_iter = 0
        (evaluation,) = (hook for hook in trainer._hooks if isinstance(hook, EvalHook))
        results = evaluation._func()
    assert opens == {path_of(name): 1 for name in sets}
    prefix = "" if len(sets) == 1 else "tiny_train/"
    assert {f"{prefix}val_total_loss", f"{prefix}val_loss_cls"} <= results.keys()
    assert "bbox" in (results if len(sets) == 1 else results["tiny_train"])


def test_several_test_sets(tiny_cfg):
    tiny_cfg.DATASETS.TEST = ("tiny_val", "tiny_train")
    os.makedirs(tiny_cfg.OUTPUT_DIR, exist_ok=True)
    train, val = path_of("tiny_train"), path_of("tiny_val")
    model = CorrdetTrainer.build_model(tiny_cfg)
    with count_opens(train, val) as opens:
        CorrdetTrainer.test(tiny_cfg, model)
    assert opens == {train: 1, val: 1}


def test_the_evaluator_has_what_detectron2s_has(tiny_digits, tmp_path):
    """Its constructor is not called; a new version may put more there."""
    theirs = COCOEvaluator("tiny_val", output_dir=str(tmp_path), use_fast_impl=False)
    ours = CorrelationEvaluator("tiny_val", output_dir=str(tmp_path))
    for name, value in vars(theirs).items():
        if name == "_coco_api":
            assert ours._coco_api.dataset == value.dataset
        else:
            assert getattr(ours, name) == value, name


def test_a_data_set_in_another_format_is_converted(tmp_path, tiny_digits):
    dicts = DatasetCatalog.get("tiny_val")
    DatasetCatalog.register("converted_val", lambda: dicts)
    MetadataCatalog.get("converted_val").set(
        thing_classes=MetadataCatalog.get("tiny_val").thing_classes
    )
    try:
        with pytest.raises(ValueError, match="expected an output_dir to convert it to"):
            CorrelationEvaluator("converted_val")
        evaluator = CorrelationEvaluator("converted_val", output_dir=str(tmp_path))
        assert len(evaluator._coco_api.anns) == sum(len(d["annotations"]) for d in dicts)
        assert (tmp_path / "converted_val_coco_format.json").is_file()
    finally:
        DatasetCatalog.remove("converted_val")
        MetadataCatalog.remove("converted_val")
