"""What --resume goes on with and what it refuses, and a folder that is used again."""

import json
import os
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from corrdet.engine import CheckpointError, CorrdetTrainer
from tests.helpers.training import train

pytestmark = pytest.mark.slow


def resume(cfg):
    trainer = CorrdetTrainer(cfg)
    trainer.resume_or_load(resume=True)
    return trainer


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.DATASETS.TEST = ()
    tiny_cfg.SOLVER.MAX_ITER = 2
    return tiny_cfg


@pytest.fixture
def any_classes(monkeypatch):
    """Data of another number of classes are refused before."""
    monkeypatch.setattr("corrdet.data.dataset.check_num_classes", lambda *_: None)


class TestAnotherTraining:
    @pytest.mark.parametrize(
        "overrides, message",
        [
            (
                ["MODEL.RETINANET.NUM_CLASSES", 12],
                r"cls_score.weight has the shape \(\d+, 32, 3, 3\) there, .* here "
                r"\(MODEL.RETINANET.NUM_CLASSES was 10, is 12\)",
            ),
            (["SOLVER.OPTIMIZER", "ADAMW"], r"another optimizer \(SOLVER.OPTIMIZER was 'SGD', is"),
            (
                ["MODEL.META_ARCHITECTURE", "CorrdetATSS"],
                r"its model has no .* \(.*MODEL.META_ARCHITECTURE was 'CorrdetRetinaNet', is 'Co",
            ),
            (
                ["SOLVER.AMP.ENABLED", True],
                r"without mixed precision, .* one with \(SOLVER.AMP.ENABLED was False, is True\)",
            ),
        ],
        ids=["classes", "optimizer", "detector", "precision"],
    )
    def test_it_is_refused_with_what_differs_and_what_to_do(
        self, cfg, overrides, message, any_classes
    ):
        cfg.SOLVER.OPTIMIZER = "SGD"
        train(CorrdetTrainer(cfg))
        cfg.merge_from_list(overrides)
        with pytest.raises(CheckpointError, match=rf"--resume .*model_final.pth: .*{message}") as e:
            resume(cfg)
        assert "without --resume, with MODEL.WEIGHTS" in str(e.value) and "\n" not in str(e.value)

    def test_parameters_that_are_frozen_now(self, cfg):
        class Frozen(CorrdetTrainer):
            @classmethod
            def build_model(cls, cfg):
                model = super().build_model(cfg)
                model.backbone.requires_grad_(False)
                return model

        train(CorrdetTrainer(cfg))
        with pytest.raises(CheckpointError, match=r"other groups of parameters: \d+ with \d+"):
            Frozen(cfg).resume_or_load(resume=True)

    def test_mixed_precision_is_not_given_up_silently(self, cfg):
        train(CorrdetTrainer(cfg))
        path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
        content = torch.load(path, weights_only=True)
        content["trainer"]["_trainer"]["grad_scaler"] = {}
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="with mixed precision, .* one without"):
            resume(cfg)

    def test_of_plain_detectron2(self, cfg):
        trainer = CorrdetTrainer(cfg)

        class OfDetectron2:
            def state_dict(self):
                return {"iteration": 3, "hooks": {}}

        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        DetectionCheckpointer(trainer.model, cfg.OUTPUT_DIR, trainer=OfDetectron2()).save("model")
        with pytest.raises(CheckpointError, match="not been saved by corrdet's trainer"):
            resume(cfg)

    def test_a_checkpoint_without_a_config_is_looked_at_as_well(self, cfg, any_classes):
        train(CorrdetTrainer(cfg))
        path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
        content = torch.load(path, weights_only=True)
        del content["trainer"]["config"]
        torch.save(content, path)
        assert resume(cfg).start_iter == 2
        cfg.MODEL.RETINANET.NUM_CLASSES = 12
        with pytest.raises(CheckpointError, match=r"there, \S+ \S+ \S+ \S+ here\. Set the config"):
            resume(cfg)


class TestAnotherConfig:
    def rate(self, trainer) -> float:
        return trainer.optimizer.param_groups[0]["lr"]

    @pytest.mark.parametrize("taken", ["checkpoint", "config"])
    def test_the_learning_rate_is_ignored_or_taken(self, cfg, taken, caplog):
        cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
        cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER = 0.01, (1,), 2
        train(CorrdetTrainer(cfg))
        cfg.SOLVER.BASE_LR, cfg.SOLVER.RESUME_LR, cfg.SOLVER.MAX_ITER = 0.02, taken, 4
        caplog.clear()
        trainer = train(CorrdetTrainer(cfg), resume=True)
        base = 0.01 if taken == "checkpoint" else 0.02
        assert self.rate(trainer) == pytest.approx(base * cfg.SOLVER.GAMMA)
        change = "SOLVER.BASE_LR was 0.01, is 0.02"
        (line,) = [r.getMessage() for r in caplog.records if change in r.getMessage()]
        assert line.startswith("ignored" if taken == "checkpoint" else "the training goes on")
        assert ("RESUME_LR config takes" in line) == (taken == "checkpoint")

    def test_other_differences_are_listed(self, cfg, caplog):
        train(CorrdetTrainer(cfg))
        cfg.INPUT.RANDOM_FLIP, cfg.SOLVER.WEIGHT_DECAY = "vertical", 0.5
        cfg.TEST.EVAL_PERIOD = cfg.SOLVER.CHECKPOINT_PERIOD = 7
        cfg.DATALOADER.NUM_WORKERS = 1
        caplog.clear()
        resume(cfg)
        ignored, new = [r.getMessage() for r in caplog.records if " was " in r.getMessage()]
        assert "ignored" in ignored and "WEIGHT_DECAY was 0.05, is 0.5" in ignored
        assert "RESUME_LR" not in ignored
        assert new.endswith("is 'vertical'")

    def test_the_same_config_gives_no_word(self, cfg, caplog):
        train(CorrdetTrainer(cfg))
        caplog.clear()
        resume(cfg)
        assert not [r for r in caplog.records if r.name.startswith("corrdet")]


class TestAFolderThatIsUsedAgain:
    def iterations(self, path) -> list[int]:
        return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]

    def test_the_old_run_is_moved_aside(self, cfg, caplog):
        output = Path(cfg.OUTPUT_DIR)
        cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_ITER = 2, 4
        train(CorrdetTrainer(cfg))
        (output / "notes.txt").write_text("one's own")
        old = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
        cfg.SOLVER.MAX_ITER = 3
        train(CorrdetTrainer(cfg))
        assert "earlier training, which is not resumed: its files are in" in caplog.text
        previous = output / "previous_1"
        del old["notes.txt"]
        assert {path.name: path.read_bytes() for path in previous.iterdir()} == old
        assert self.iterations(output / "metrics.json") == [2]
        assert not (output / "model_0000003.pth").exists() and (output / "notes.txt").exists()
        assert len([*output.glob("events.out.tfevents*")]) == 1
        assert resume(cfg).start_iter == 3  # that of the second run
        train(CorrdetTrainer(cfg))
        assert (output / "previous_2" / "model_final.pth").exists()

    def test_weights_in_the_folder_are_loaded_first(self, cfg):
        train(CorrdetTrainer(cfg))
        cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
        old = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
        trainer = CorrdetTrainer(cfg)
        trainer.resume_or_load(resume=False)
        new = trainer.model.state_dict()
        assert all(
            torch.equal(new[name], old[name]) for name, _ in trainer.model.named_parameters()
        )

    def test_a_resumed_run_stays_where_it_is(self, cfg):
        train(CorrdetTrainer(cfg))
        cfg.SOLVER.MAX_ITER = 4
        train(CorrdetTrainer(cfg), resume=True)
        assert not (Path(cfg.OUTPUT_DIR) / "previous_1").exists()
        assert self.iterations(Path(cfg.OUTPUT_DIR) / "metrics.json") == [1, 3]
