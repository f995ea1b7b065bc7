"""Overrides of Detectron2's trainer, as its docs and popular projects write them."""

import copy
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import HookBase
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.utils import comm
from PIL import Image

from corrdet.data import ResumableLoader
from corrdet.data import build_train_loader as build_resumable_loader
from corrdet.data.image_checks import ImageSizeError
from corrdet.data.register import register_from_config
from corrdet.engine import CorrdetTrainer, DivergedError
from tests.helpers.training import train, written
from tests.helpers.users_data import SIDE, rectangles, write

pytestmark = pytest.mark.slow


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.DATASETS.TEST = ()
    tiny_cfg.SOLVER.CHECKPOINT_PERIOD = 2
    return tiny_cfg


def minimal_mapper(dataset_dict):
    """That of Detectron2's tutorial on data loading."""
    dataset_dict = copy.deepcopy(dataset_dict)
    image = utils.read_image(dataset_dict["file_name"], format="BGR")
    auginput = T.AugInput(image)
    transform = T.Resize((96, 96))(auginput)
    image = torch.from_numpy(np.ascontiguousarray(auginput.image.transpose(2, 0, 1)))
    for annotation in dataset_dict["annotations"]:
        del annotation["segmentation"]
    annos = [
        utils.transform_instance_annotations(annotation, [transform], image.shape[1:])
        for annotation in dataset_dict.pop("annotations")
    ]
    return {
        **dataset_dict,
        "image": image,
        "instances": utils.annotations_to_instances(annos, image.shape[1:]),
    }


class MapperTrainer(CorrdetTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=minimal_mapper)


class SamplerTrainer(CorrdetTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        sampler = TrainingSampler(24, shuffle=False)
        mapper = DatasetMapper(cfg, is_train=True, augmentations=[T.Resize((96, 96))])
        return build_detection_train_loader(cfg, mapper=mapper, sampler=sampler)


class TestTrainLoader:
    @pytest.mark.parametrize("kind", [MapperTrainer, SamplerTrainer])
    def test_detectron2s_trains_saves_and_resumes(self, cfg, kind, caplog):
        with caplog.at_level(logging.WARNING, "corrdet"):
            trainer = kind(cfg)
        (said,) = [r.getMessage() for r in caplog.records if "build_train_loader" in r.msg]
        assert kind.__name__ in said and "other images" in said
        train(trainer)
        assert (Path(cfg.OUTPUT_DIR) / "model_0000001.pth").exists()
        cfg.SOLVER.MAX_ITER = 6
        resumed = train(kind(cfg), resume=True)
        assert resumed.start_iter == 4 and resumed.iter == 6

    @pytest.mark.parametrize("kind", ["train", "test", "ours"])
    def test_what_detectron2s_mapper_reads_wrongly_is_said_before(
        self, cfg, kind, tmp_path, caplog
    ):
        content = rectangles(tmp_path)
        pixels = np.full((SIDE, SIDE), 30000, np.uint16)
        Image.fromarray(pixels).save(tmp_path / "images" / "0002.png")
        (name,) = register_from_config([f"deep={write(tmp_path, content)}"])
        cfg.MODEL.RETINANET.NUM_CLASSES = 2
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,) if kind == "test" else ()

        class Trainer(CorrdetTrainer):
            if kind == "train":

                @classmethod
                def build_train_loader(cls, cfg):
                    return build_detection_train_loader(cfg, mapper=DatasetMapper(cfg))

            if kind == "test":

                @classmethod
                def build_test_loader(cls, cfg, dataset_name):
                    return build_detection_test_loader(cfg, dataset_name)

        try:
            Trainer(cfg)
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        said = [r.getMessage() for r in caplog.records if "reads them wrongly" in r.getMessage()]
        if kind == "ours":
            assert not said and "16 or 32 bits a channel, which are scaled" in caplog.text
            return
        assert len(said) == 1 and said[0].startswith(f"Trainer.build_{kind}_loader gives a loader")
        assert "1 image(s) have 16 or 32 bits" in said[0] and "0002.png" in said[0]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_image_of_another_size_than_stated_is_named(self, cfg, workers):
        class Trainer(CorrdetTrainer):
            @classmethod
            def build_train_loader(cls, cfg):
                records = [dict(record) for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])]
                for record in records:
                    record["height"] += 1
                return build_detection_train_loader(
                    records, mapper=DatasetMapper(cfg), total_batch_size=2, num_workers=workers
                )

        with pytest.raises(ImageSizeError, match="^Mismatched image shape.*CorrdetDatasetMapper"):
            train(Trainer(cfg))

    @pytest.mark.parametrize("kind", [MapperTrainer, SamplerTrainer])
    def test_a_loss_that_is_not_finite_is_reported_with_the_images(self, cfg, kind):
        cfg.SOLVER.BASE_LR = 1e30
        with pytest.raises(DivergedError, match="stopped at iteration 1: loss_cls is") as raised:
            train(kind(cfg))
        assert str(raised.value).count(".jpg") == cfg.SOLVER.IMS_PER_BATCH

    def test_what_is_not_finite_in_batches_of_another_format(self, cfg):
        class Trainer(CorrdetTrainer):
            @classmethod
            def build_train_loader(cls, cfg):
                loader = build_detection_train_loader(cfg, mapper=minimal_mapper)
                return ((batch, "something of one's own") for batch in loader)

            @classmethod
            def build_model(cls, cfg):
                model = super().build_model(cfg)
                model.register_forward_pre_hook(lambda _, args: (args[0][0],))
                return model

        cfg.SOLVER.BASE_LR = 1e30
        with pytest.raises(DivergedError, match="images of that batch: not known"):
            train(Trainer(cfg))

    def test_corrdets_without_a_seed_in_the_signature_resumes_exactly(self, cfg, caplog):
        class Trainer(CorrdetTrainer):
            @classmethod
            def build_train_loader(cls, cfg):
                return build_resumable_loader(cfg, mapper=DatasetMapper(cfg, is_train=True))

        cfg.SEED = -1
        seen = train(Trainer(cfg))._loader
        reference = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)
        (Path(cfg.OUTPUT_DIR) / "last_checkpoint").write_text("model_0000001.pth")
        resumed = train(Trainer(cfg), resume=True)
        assert resumed.start_iter == 2 and resumed._loader.seed == seen.seed
        again = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)
        assert all(torch.equal(again["model"][k], v) for k, v in reference["model"].items())
        assert "other images" not in caplog.text

    def test_a_run_that_goes_on_with_the_other_kind_of_loader_is_told(self, cfg, caplog):
        train(MapperTrainer(cfg))
        cfg.SOLVER.MAX_ITER = 6
        trainer = train(CorrdetTrainer(cfg), resume=True)
        assert isinstance(trainer._loader, ResumableLoader) and trainer.iter == 6
        assert "by another loader: this one goes on with others" in caplog.text
        cfg.SOLVER.MAX_ITER = 8
        assert train(MapperTrainer(cfg), resume=True).iter == 8


class LossEvalHook(HookBase):
    """The validation loss that projects copy from one another."""

    def __init__(self, eval_period, model, data_loader):
        self._model = model
        self._period = eval_period
        self._data_loader = data_loader

    def _do_loss_eval(self):
        losses = []
        for inputs in self._data_loader:
            metrics_dict = self._model(inputs)
            metrics_dict = {
                k: v.detach().cpu().item() if isinstance(v, torch.Tensor) else float(v)
                for k, v in metrics_dict.items()
            }
            losses.append(sum(metrics_dict.values()))
        self.trainer.storage.put_scalar("validation_loss", np.mean(losses))
        comm.synchronize()

    def after_step(self):
        next_iter = self.trainer.iter + 1
        is_final = next_iter == self.trainer.max_iter
        if is_final or (self._period > 0 and next_iter % self._period == 0):
            self._do_loss_eval()


def loss_hook(trainer) -> LossEvalHook:
    cfg = trainer.cfg
    loader = build_detection_test_loader(cfg, "tiny_val", DatasetMapper(cfg, True))
    return LossEvalHook(cfg.TEST.EVAL_PERIOD, trainer.model, loader)


class InsertingTrainer(CorrdetTrainer):
    def build_hooks(self):
        hooks = super().build_hooks()
        hooks.insert(-1, loss_hook(self))
        return hooks


def with_the_writer_swapped(cfg) -> CorrdetTrainer:
    trainer = CorrdetTrainer(cfg)
    trainer.register_hooks([loss_hook(trainer)])
    # Swaps PeriodicWriter and the hook, so that it is written.
    trainer._hooks = trainer._hooks[:-2] + trainer._hooks[-2:][::-1]
    return trainer


def with_the_hook_registered_behind(cfg) -> CorrdetTrainer:
    trainer = CorrdetTrainer(cfg)
    trainer.register_hooks([loss_hook(trainer)])
    return trainer


@pytest.mark.parametrize(
    "build", [InsertingTrainer, with_the_writer_swapped, with_the_hook_registered_behind]
)
@pytest.mark.parametrize("evaluated", [False, True])
def test_what_a_hook_logs_is_written(cfg, build, evaluated):
    cfg.TEST.EVAL_PERIOD = 3
    cfg.DATASETS.TEST = ("tiny_val",) if evaluated else ()
    train(build(cfg))
    lines = written(cfg)
    assert {i for i, line in lines.items() if "validation_loss" in line} == {2, 3}
    assert ("bbox/AP" in lines[2]) == evaluated


class TestEvaluation:
    def test_evaluators_and_loader_of_ones_own(self, cfg):
        class Trainer(CorrdetTrainer):
            @classmethod
            def build_evaluator(cls, cfg, dataset_name):
                folder = os.path.join(cfg.OUTPUT_DIR, "own")
                return DatasetEvaluators([COCOEvaluator(dataset_name, ("bbox",), False, folder)])

            @classmethod
            def build_test_loader(cls, cfg, dataset_name):
                mapper = DatasetMapper(cfg, is_train=False)
                return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

        cfg.DATASETS.TEST = ("tiny_val",)
        cfg.TEST.AUG.ENABLED = True
        cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = (96,), False
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.005
        train(Trainer(cfg))
        assert {"bbox/AP", "bbox_TTA/AP"} <= written(cfg)[4].keys()
        output = Path(cfg.OUTPUT_DIR)
        for folder in (output, output / "inference_TTA"):
            assert (folder / "own" / "coco_instances_results.json").exists()

    def test_images_that_only_ones_own_loader_understands(self, cfg):
        from detectron2.data import DatasetCatalog, MetadataCatalog

        class Trainer(CorrdetTrainer):
            @classmethod
            def build_test_loader(cls, cfg, dataset_name):
                return build_detection_test_loader(
                    DatasetCatalog.get(dataset_name),
                    mapper=lambda d: {"image": torch.zeros(3, 96, 96), "image_id": d["id"]},
                )

            @classmethod
            def build_evaluator(cls, cfg, dataset_name):
                return []

        DatasetCatalog.register("points_dataset", lambda: [{"id": 1, "points": [(3, 4)]}])
        try:
            cfg.DATASETS.TEST = ("points_dataset",)
            train(Trainer(cfg))
        finally:
            DatasetCatalog.remove("points_dataset")
            MetadataCatalog.remove("points_dataset")


class TestOptimizer:
    def test_model_and_optimizer_of_ones_own(self, cfg):
        class Trainer(CorrdetTrainer):
            @classmethod
            def build_model(cls, cfg):
                model = build_model(cfg)
                for parameter in model.backbone.parameters():
                    parameter.requires_grad = False
                return model

            @classmethod
            def build_optimizer(cls, cfg, model):
                trained = [p for p in model.parameters() if p.requires_grad]
                return torch.optim.Adam(trained, lr=cfg.SOLVER.BASE_LR)

        trainer = train(Trainer(cfg))
        assert type(trainer.optimizer) is torch.optim.Adam
        cfg.SOLVER.MAX_ITER = 6
        assert train(Trainer(cfg), resume=True).start_iter == 4

    def test_an_optimizer_that_changes_the_default_one_is_built_once(self, cfg):
        built = []

        class Trainer(CorrdetTrainer):
            @classmethod
            def build_optimizer(cls, cfg, model):
                built.append(super().build_optimizer(cfg, model))
                return built[-1]

        clip = cfg.SOLVER.CLIP_GRADIENTS
        clip.ENABLED, clip.CLIP_TYPE = True, "full_model"
        Trainer(cfg)
        assert len(built) == 1

    @pytest.mark.parametrize(
        "build",
        [
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3], gamma=0.5),
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: 1 / (1 + i)),
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.01, total_steps=10),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=9),
            lambda o: torch.optim.lr_scheduler.SequentialLR(
                o,
                [
                    torch.optim.lr_scheduler.LinearLR(o, total_iters=2),
                    torch.optim.lr_scheduler.StepLR(o, 2),
                ],
                [3],
            ),
        ],
        ids=["multi step", "lambda", "one cycle", "cosine", "sequential"],
    )
    def test_a_scheduler_of_pytorch_goes_on_where_it_was(self, cfg, build):
        class Trainer(CorrdetTrainer):
            @classmethod
            def build_lr_scheduler(cls, cfg, optimizer):
                return build(optimizer)

        def rate(trainer):
            return trainer.optimizer.param_groups[0]["lr"]

        cfg.SOLVER.MAX_ITER = 6
        whole = train(Trainer(cfg))
        (Path(cfg.OUTPUT_DIR) / "last_checkpoint").write_text("model_0000003.pth")
        resumed = train(Trainer(cfg), resume=True)
        assert resumed.start_iter == 4
        assert resumed.scheduler.last_epoch == whole.scheduler.last_epoch
        assert rate(resumed) == rate(whole)
