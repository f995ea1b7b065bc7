"""Losses on the test set, the best checkpoint and early stopping."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from corrdet.data import load_dataset
from corrdet.engine import ConfigError, CorrdetTrainer
from corrdet.engine.metric_names import evaluation_names
from corrdet.engine.random_state import get_random_states
from corrdet.engine.validation import build_loss_loader, check_metrics, mean_losses
from tests.helpers.training import ROOT, train, written

pytestmark = pytest.mark.slow


def weights(cfg, name="model_final") -> dict:
    path = Path(cfg.OUTPUT_DIR) / f"{name}.pth"
    return torch.load(path, weights_only=True)["model"]


def with_states(cfg):
    """RetinaNet with batch norms, counts and a memory."""
    cfg.MODEL.CRITERION.CLASSIFICATION = "ghm_c"
    cfg.MODEL.CRITERION.CORRELATION.MEMORY = 3
    cfg.MODEL.RESNETS.NORM = "BN"


def rcnn(cfg):
    """Detectron2's R-CNN, which samples boxes at random."""
    output, test = cfg.OUTPUT_DIR, cfg.DATASETS.TEST
    cfg.merge_from_file(str(ROOT / "configs/quick/faster_rcnn_baseline.yaml"), False)
    cfg.merge_from_list(
        [
            "DATASETS.TRAIN", ("tiny_train",),
            "DATASETS.TEST", test,
            "OUTPUT_DIR", output,
            "INPUT.MIN_SIZE_TEST", 96,
            "SOLVER.IMS_PER_BATCH", 2,
            "SOLVER.MAX_ITER", 4,
            "DATALOADER.NUM_WORKERS", 0,
        ]
    )  # fmt: skip


class TestEvalLoss:
    @pytest.mark.parametrize("change", [with_states, rcnn])
    def test_losses_are_written_and_the_training_is_the_same(self, tiny_cfg, change):
        change(tiny_cfg)
        tiny_cfg.SOLVER.MAX_ITER, tiny_cfg.TEST.EVAL_PERIOD = 6, 2
        output = tiny_cfg.OUTPUT_DIR
        torch.manual_seed(0)
        train(CorrdetTrainer(tiny_cfg))
        torch.manual_seed(0)
        tiny_cfg.TEST.EVAL_LOSS, tiny_cfg.OUTPUT_DIR = True, f"{output}_with"
        trainer = train(CorrdetTrainer(tiny_cfg))
        lines = written(tiny_cfg)
        for iteration in (1, 3, 6):
            line = lines[iteration]
            losses = {k: v for k, v in line.items() if k.startswith("val_loss_")}
            assert {"val_loss_cls", "val_loss_box_reg"} <= losses.keys()
            assert line["val_total_loss"] == pytest.approx(math.fsum(losses.values()))
            assert "bbox/AP" in line
        now, tiny_cfg.OUTPUT_DIR = weights(tiny_cfg), output
        before = weights(tiny_cfg)
        assert now.keys() == before.keys()
        assert all(torch.equal(now[name], before[name]) for name in before)
        assert trainer.model.training

    @pytest.mark.parametrize("change", [with_states, rcnn])
    def test_it_is_the_mean_of_images_and_nothing_changes(self, tiny_cfg, change):
        change(tiny_cfg)
        model = train(CorrdetTrainer(tiny_cfg)).model
        dicts = load_dataset(tiny_cfg, "tiny_val")[:3]
        tiny_cfg.SOLVER.IMS_PER_BATCH = 1
        loader = build_loss_loader(tiny_cfg, dicts)
        backbone = model.backbone.bottom_up
        backbone.eval()  # as a user's that stays frozen
        flags = [module.training for module in model.modules()]
        state = {k: v.clone() for k, v in model.state_dict().items()}
        random_state = get_random_states()["torch"]
        with EventStorage(19) as storage:
            losses = mean_losses(model, loader, 19)
            assert not storage.histories()
        assert losses == mean_losses(model, loader, 19)
        assert torch.equal(get_random_states()["torch"], random_state)
        assert [module.training for module in model.modules()] == flags
        after = model.state_dict()
        assert after.keys() == state.keys()
        assert all(torch.equal(after[name], state[name]) for name in state)
        if change is with_states:
            singly = [mean_losses(model, [batch], 19)["loss_cls"] for batch in loader]
            assert losses["loss_cls"] == pytest.approx(sum(singly) / 3, rel=1e-6)

    def test_numbers_that_modules_count_in_are_put_back(self):
        class Counting(torch.nn.Module):
            count = 0

            def __init__(self):
                super().__init__()
                self.count = 5

            def forward(self, batch):
                self.count += 1
                return {"loss": torch.tensor(float(self.count))}

        model = Counting()
        assert mean_losses(model, [[{}], [{}]], 0) == {"loss": 6.0, "total_loss": 6.0}
        assert model.count == 5

    def test_dropout_and_norms_are_as_in_testing(self):
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout())

            def forward(self, batch):
                assert self.training
                return {"loss": self.layers(torch.full((4, 2), 3.0)).mean()}

        model = Model().eval()
        assert mean_losses(model, [[{}]], 0)["loss"] == pytest.approx(3, rel=1e-4)
        assert not any(module.training for module in model.modules())

    def test_each_of_several_test_sets(self, tiny_cfg):
        tiny_cfg.DATASETS.TEST = ("tiny_val", "tiny_train")
        tiny_cfg.TEST.EVAL_LOSS = True
        tiny_cfg.SOLVER.MAX_ITER = 1
        train(CorrdetTrainer(tiny_cfg))
        line = written(tiny_cfg)[1]
        assert line["tiny_val/val_loss_cls"] != line["tiny_train/val_loss_cls"]

    def test_processes_get_the_same_number_of_batches(self, tiny_cfg, monkeypatch):
        dicts = load_dataset(tiny_cfg, "tiny_val")[:5]
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        seen = []
        for rank in range(2):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            seen.append([[d["image_id"] for d in b] for b in build_loss_loader(tiny_cfg, dicts)])
        ids = [record["image_id"] for record in dicts]
        assert seen == [[[ids[0]], [ids[2]], [ids[4]]], [[ids[1]], [ids[3]], [ids[0]]]]

    def test_without_ground_truth_it_is_refused(self, tiny_cfg):
        dicts = [dict(record) for record in load_dataset(tiny_cfg, "tiny_val")]
        del dicts[3]["annotations"]
        with pytest.raises(ConfigError, match="TEST.EVAL_LOSS needs test sets with ground truth"):
            build_loss_loader(tiny_cfg, dicts)


class Scripted(CorrdetTrainer):
    """Evaluations measure what was written down before."""

    values = (1.0, 3.0, 2.0, 2.5, 9.0, 9.5)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        class Evaluator(DatasetEvaluator):
            def evaluate(self):
                done = trainer.iter if trainer.iter == trainer.max_iter else trainer.iter + 1
                return {"bbox": {"AP": cls.values[done // 2 - 1]}}

        return Evaluator()

    def __init__(self, cfg):
        global trainer
        trainer = self
        super().__init__(cfg)


@pytest.fixture
def scripted_cfg(tiny_cfg):
    tiny_cfg.TEST.EVAL_PERIOD = tiny_cfg.SOLVER.CHECKPOINT_PERIOD = 2
    tiny_cfg.SOLVER.MAX_ITER = 12
    return tiny_cfg


class TestBestCheckpoint:
    def best(self, cfg) -> dict:
        return json.loads((Path(cfg.OUTPUT_DIR) / "model_best.json").read_text())

    def test_the_best_evaluations_checkpoint_is_kept(self, scripted_cfg):
        scripted_cfg.TEST.BEST_CHECKPOINT.METRIC = "bbox/AP"
        scripted_cfg.SOLVER.MAX_ITER = 8
        train(Scripted(scripted_cfg))
        assert self.best(scripted_cfg) == {"metric": "bbox/AP", "value": 3.0, "iteration": 3}
        best, same = weights(scripted_cfg, "model_best"), weights(scripted_cfg, "model_0000003")
        assert all(torch.equal(best[name], same[name]) for name in same)

    @pytest.mark.parametrize("mode, metric, best", [("min", "bbox/AP", 1), ("auto", "my_loss", 5)])
    def test_lower_is_better(self, scripted_cfg, mode, metric, best):
        class Hook(HookBase):
            def after_step(self):
                self.trainer.storage.put_scalar("my_loss", abs(self.trainer.iter - 5))

        node = scripted_cfg.TEST.BEST_CHECKPOINT
        node.METRIC, node.MODE = metric, mode
        scripted = Scripted(scripted_cfg)
        scripted.register_hooks([Hook()])
        train(scripted)
        assert self.best(scripted_cfg)["iteration"] == best

    def test_resumed_it_knows_what_to_beat(self, scripted_cfg):
        scripted_cfg.TEST.BEST_CHECKPOINT.METRIC = "bbox/AP"
        scripted_cfg.SOLVER.MAX_ITER = 4
        train(Scripted(scripted_cfg))
        scripted_cfg.SOLVER.MAX_ITER = 8
        train(Scripted(scripted_cfg), resume=True)
        assert self.best(scripted_cfg)["iteration"] == 3
        scripted_cfg.SOLVER.MAX_ITER = 12
        train(Scripted(scripted_cfg), resume=True)
        # The last evaluation is the one after the last step.
        assert self.best(scripted_cfg) == {"metric": "bbox/AP", "value": 9.5, "iteration": 11}
        # Not what a training is resumed from.
        last = (Path(scripted_cfg.OUTPUT_DIR) / "last_checkpoint").read_text()
        assert last == "model_final.pth"

    def test_what_is_not_measured_is_said_with_the_nearest(self, scripted_cfg, caplog):
        scripted_cfg.TEST.BEST_CHECKPOINT.METRIC = "bbox/ap"
        train(Scripted(scripted_cfg))
        assert "unknown metric 'bbox/ap'; did you mean 'bbox/AP'" in caplog.text
        assert not (Path(scripted_cfg.OUTPUT_DIR) / "model_best.pth").exists()

    def test_what_is_no_number_is_said_and_not_kept(self, scripted_cfg, caplog, monkeypatch):
        scripted_cfg.TEST.BEST_CHECKPOINT.METRIC = "bbox/AP"
        monkeypatch.setattr(Scripted, "values", (float("nan"), 1.0, float("nan")))
        scripted_cfg.SOLVER.MAX_ITER = 6
        train(Scripted(scripted_cfg))
        assert caplog.text.count("bbox/AP is nan, which is worse than any number") == 2
        assert self.best(scripted_cfg)["iteration"] == 3


class TestEarlyStopping:
    @pytest.fixture
    def cfg(self, scripted_cfg):
        scripted_cfg.SOLVER.EARLY_STOPPING.METRIC = "bbox/AP"
        scripted_cfg.SOLVER.EARLY_STOPPING.PATIENCE = 2
        return scripted_cfg

    def test_it_stops_after_evaluations_that_are_no_better(self, cfg):
        assert train(Scripted(cfg)).iter == 8
        final, same = weights(cfg), weights(cfg, "model_0000007")
        assert all(torch.equal(final[name], same[name]) for name in same)
        assert max(written(cfg)) == 7 and written(cfg)[7]["bbox/AP"] == 2.5

    def test_it_waits_for_the_first_number(self, cfg, monkeypatch):
        nan = float("nan")
        monkeypatch.setattr(Scripted, "values", (nan, nan, nan, 1.0, nan, nan))
        cfg.SOLVER.MAX_ITER = 14
        assert train(Scripted(cfg)).iter == 12

    def test_patience(self, cfg):
        cfg.SOLVER.EARLY_STOPPING.PATIENCE = 3
        assert train(Scripted(cfg)).iter == 12

    # Of iteration 6 after the second value that is no better, but before it in the checkpoint.
    @pytest.mark.parametrize("killed_after", [4, 6])
    def test_resumed_it_stops_at_the_same_iteration(self, cfg, killed_after):
        class Killed(Exception):
            pass

        first = Scripted(cfg)
        step = first.run_step

        def run_step():
            if first.iter == killed_after:
                raise Killed
            step()

        first.run_step = run_step
        with pytest.raises(Killed):
            train(first)
        resumed = train(Scripted(cfg), resume=True)
        assert resumed.start_iter == killed_after and resumed.iter == 8

    def test_a_stopped_training_stays_so_unless_it_is_asked(self, cfg, caplog):
        train(Scripted(cfg))
        before = weights(cfg)
        caplog.clear()
        assert train(Scripted(cfg), resume=True).iter == 8
        assert "nothing is left to train" in caplog.text
        assert all(torch.equal(weights(cfg)[name], before[name]) for name in before)
        cfg.SOLVER.EARLY_STOPPING.PATIENCE = 3
        assert train(Scripted(cfg), resume=True).iter == 12

    def test_it_ends_with_several_views_as_others_do(self, cfg):
        cfg.TEST.AUG.ENABLED = True
        cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = (96,), False
        train(Scripted(cfg))
        assert "bbox_TTA/AP" in written(cfg)[8]

    def test_by_a_loss(self, cfg):
        cfg.SOLVER.EARLY_STOPPING.METRIC = "val_total_loss"
        cfg.TEST.EVAL_LOSS = True
        cfg.SOLVER.BASE_LR = 0.0
        assert train(Scripted(cfg)).iter == 6


@pytest.mark.parametrize("metric, before", [
    ("bbox/APP", True), ("bbox/ap", True), ("segm/AP", True), ("tiny_val/bbox/AP", True),
    ("AP", False), ("val_loss_box", False),
])  # fmt: skip
def test_mistyped_metrics_are_known_early(tiny_cfg, metric, before):
    tiny_cfg.TEST.EVAL_PERIOD = 2
    tiny_cfg.TEST.BEST_CHECKPOINT.METRIC = metric
    os.makedirs(tiny_cfg.OUTPUT_DIR)
    with pytest.raises(ConfigError, match=f"METRIC: unknown metric '{metric}'"):
        trainer = CorrdetTrainer(tiny_cfg)
        assert not before
        trainer.resume_or_load(resume=False)
        trainer.train()
    assert before or trainer.iter == 0


@pytest.mark.parametrize("task, metric", [("bbox", "XX"), ("boxes", "AP"), ("segm", "AP")])
def test_expected_results_of_other_names_are_refused(tiny_cfg, task, metric):
    tiny_cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 0.0, 100.0], [task, metric, 0.0, 100.0]]
    with pytest.raises(ConfigError, match="^TEST.EXPECTED_RESULTS: unknown (task|metric) "):
        CorrdetTrainer(tiny_cfg)


def test_metrics_of_a_class_may_be_watched_before_classes_are_known(tiny_cfg):
    metadata = MetadataCatalog.get("tiny_val")
    classes = vars(metadata).pop("thing_classes", None)
    tiny_cfg.TEST.EVAL_PERIOD = 2
    tiny_cfg.TEST.BEST_CHECKPOINT.METRIC = "bbox/AP-zero"
    check_metrics(tiny_cfg, CorrdetTrainer)
    tiny_cfg.TEST.BEST_CHECKPOINT.METRIC = "bbox/APzero"
    with pytest.raises(ConfigError, match="unknown metric"):
        check_metrics(tiny_cfg, CorrdetTrainer)
    if classes is not None:
        metadata.thing_classes = classes


def test_all_that_an_evaluation_measures_is_known(tiny_cfg):
    tiny_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    tiny_cfg.TEST.IMAGE_BOUNDS = True
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 120
    model = CorrdetTrainer.build_model(tiny_cfg)
    results = CorrdetTrainer.test(tiny_cfg, model)["bbox"]
    assert {"AP-zero", "AIC", "AP_img_upper", "AP-maxDets120", "oLRP"} <= results.keys()
    assert {f"bbox/{name}" for name in results} <= evaluation_names(tiny_cfg)


@pytest.mark.parametrize("metric", ["val_loss_cls", "total_loss"])
def test_what_steps_and_test_sets_log_is_taken(tiny_cfg, metric):
    tiny_cfg.TEST.EVAL_PERIOD = 3
    tiny_cfg.TEST.EVAL_LOSS = True
    tiny_cfg.TEST.BEST_CHECKPOINT.METRIC = metric
    tiny_cfg.SOLVER.MAX_ITER = 1
    train(CorrdetTrainer(tiny_cfg))


@pytest.mark.parametrize("section", ["TEST.BEST_CHECKPOINT", "SOLVER.EARLY_STOPPING"])
@pytest.mark.parametrize(
    "metric, period, message",
    [
        ("bbox/AP", 0, "'bbox/AP', but TEST.EVAL_PERIOD is 0"),
        ("val_total_loss", 2, "needs TEST.EVAL_LOSS True"),
        ("tiny_val/val_loss_cls", 2, "needs TEST.EVAL_LOSS True"),
    ],
)
def test_metrics_that_no_evaluation_measures(tiny_cfg, section, metric, period, message):
    tiny_cfg.merge_from_list([f"{section}.METRIC", metric, "TEST.EVAL_PERIOD", period])
    with pytest.raises(ConfigError, match=rf"{section}.METRIC is .*{message}"):
        CorrdetTrainer(tiny_cfg)
