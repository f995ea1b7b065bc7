import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from corrdet.data import AnnotationError, ImageReadError
from corrdet.engine import ConfigError, CorrdetTrainer
from corrdet.engine.resuming import truncate_metrics
from tests.helpers.training import ROOT, lines_in, train

pytestmark = pytest.mark.slow


def curve(output) -> dict:
    """Iteration -> everything that was written but times."""
    lines = lines_in(output)
    assert len({line["iteration"] for line in lines}) == len(lines)
    return {
        line["iteration"]: {
            key: value for key, value in line.items() if "time" not in key and key != "eta_seconds"
        }
        for line in lines
    }


def final_weights(output) -> dict:
    return torch.load(Path(output) / "model_final.pth", weights_only=True)["model"]


def assert_same_run(output, reference):
    assert curve(output) == curve(reference)
    weights, expected = final_weights(output), final_weights(reference)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def as_of_version_0_1(checkpoint: dict) -> dict:
    """The checkpoint of a RetinaNet as it was then: with the states in the trainer's."""
    model, trainer = checkpoint["model"], checkpoint["trainer"]
    trainer["loss_normalizer"] = model.pop("normalizer.mean").item()
    losses = {}
    for name in [name for name in model if name.startswith("criterion.state.")]:
        entry, _, _ = name.removeprefix("criterion.state.").partition("[")
        loss, key, *index = entry.split(".")
        state = losses.setdefault(loss, {})
        if index:
            state.setdefault(key, []).append(model.pop(name))
        else:
            state[key] = model.pop(name)
    assert {"ghm_c", "correlation"} == losses.keys()
    trainer["criteria"] = {"": losses}
    return checkpoint


def assert_one_view_is_the_image_itself(output):
    detections, view_detections = (
        json.loads((output / folder / "coco_instances_results.json").read_text())
        for folder in ("inference", "inference_TTA")
    )
    assert len(view_detections) == len(detections) > 0
    for one, other in zip(detections, view_detections, strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["category_id"] == other["category_id"]
        assert other["score"] == pytest.approx(one["score"], abs=1e-5)
        assert other["bbox"] == pytest.approx(one["bbox"], abs=1e-3)


class TestResume:
    # Iterations 19, 39 and 59 are written, each the median of the 20 before it. A checkpoint every
    # 15 is never at a place where these medians start anew.
    SCHEDULE = ("SOLVER.MAX_ITER", 60, "SOLVER.CHECKPOINT_PERIOD", 15, "TEST.EVAL_PERIOD", 25)

    def test_a_killed_training_has_the_curve_of_one_that_was_not(self, tiny_command, tmp_path):
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        subprocess.run(tiny_command(whole, *self.SCHEDULE), check=True, capture_output=True)

        process = subprocess.Popen(
            tiny_command(killed, *self.SCHEDULE),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while not (killed / "model_0000029.pth").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.2)  # somewhere among the iterations that follow
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "model_final.pth").exists()

        resumed = tiny_command(killed, *self.SCHEDULE, flags=["--resume"])
        subprocess.run(resumed, check=True, capture_output=True)
        assert_same_run(killed, whole)

    def test_with_workers_flips_memory_and_no_seed(self, tiny_cfg, tmp_path):
        tiny_cfg.SEED = -1
        tiny_cfg.MODEL.CRITERION.CORRELATION.MEMORY = 3
        tiny_cfg.MODEL.CRITERION.CORRELATION.WARMUP_ITERS = 12
        tiny_cfg.INPUT.RANDOM_FLIP = "horizontal"
        tiny_cfg.DATALOADER.NUM_WORKERS = 1
        tiny_cfg.SOLVER.MAX_ITER = 20
        tiny_cfg.SOLVER.CHECKPOINT_PERIOD = 8
        tiny_cfg.DATASETS.TEST = ()
        train(CorrdetTrainer(tiny_cfg))
        reference = final_weights(tiny_cfg.OUTPUT_DIR)
        written = curve(tiny_cfg.OUTPUT_DIR)
        (Path(tiny_cfg.OUTPUT_DIR) / "last_checkpoint").write_text("model_0000007.pth")
        # A new process would draw another seed.
        trainer = train(CorrdetTrainer(tiny_cfg), resume=True)
        assert trainer.start_iter == 8
        weights = final_weights(tiny_cfg.OUTPUT_DIR)
        assert all(torch.equal(weights[name], reference[name]) for name in reference)
        assert curve(tiny_cfg.OUTPUT_DIR) == written

    @pytest.mark.parametrize("old", [False, True], ids=["this version", "version 0.1"])
    def test_what_losses_and_normalizer_keep(self, tiny_cfg, old):
        tiny_cfg.MODEL.CRITERION.CLASSIFICATION = "ghm_c"
        tiny_cfg.MODEL.CRITERION.CORRELATION.MEMORY = 3
        tiny_cfg.SOLVER.MAX_ITER = 12
        tiny_cfg.SOLVER.CHECKPOINT_PERIOD = 6
        tiny_cfg.DATASETS.TEST = ()
        train(CorrdetTrainer(tiny_cfg))
        output = Path(tiny_cfg.OUTPUT_DIR)
        reference = final_weights(output)
        (output / "last_checkpoint").write_text("model_0000005.pth")
        if old:
            path = output / "model_0000005.pth"
            torch.save(as_of_version_0_1(torch.load(path, weights_only=True)), path)
        assert train(CorrdetTrainer(tiny_cfg), resume=True).start_iter == 6
        weights = final_weights(output)
        assert weights.keys() == reference.keys()
        assert all(torch.equal(weights[name], reference[name]) for name in reference)

    def test_what_the_losses_of_every_part_keep_is_saved(self, tiny_cfg, tmp_path):
        tiny_cfg.merge_from_file(str(ROOT / "configs/quick/faster_rcnn_baseline.yaml"), False)
        tiny_cfg.merge_from_list(
            [
                "DATASETS.TRAIN", ("tiny_train",),
                "DATASETS.TEST", (),
                "OUTPUT_DIR", str(tmp_path / "rcnn"),
                "MODEL.PROPOSAL_GENERATOR.NAME", "CorrdetRPN",
                "MODEL.RPN_CRITERION.CLASSIFICATION", "ghm_c",
                "MODEL.CRITERION.COUPLINGS", ("correlation",),
                "MODEL.CRITERION.CORRELATION.MEMORY", 2,
                "SOLVER.IMS_PER_BATCH", 2,
                "SOLVER.MAX_ITER", 3,
            ]
        )  # fmt: skip
        trained = train(CorrdetTrainer(tiny_cfg))
        tiny_cfg.SOLVER.MAX_ITER = 4
        other = CorrdetTrainer(tiny_cfg)
        other.resume_or_load(resume=True)
        ours, theirs = (trainer._detector.state_dict() for trainer in (trained, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert ours["proposal_generator.criterion.state.ghm_c.counts[30]"].sum() > 0
        memory = [name for name in ours if "box_predictor.criterion.state.correlation.ious" in name]
        assert len(memory) == 2

    def test_without_a_checkpoint_starts_from_the_beginning(self, tiny_cfg):
        tiny_cfg.DATASETS.TEST = ()
        assert train(CorrdetTrainer(tiny_cfg), resume=True).start_iter == 0

    def test_metrics_are_cut_at_the_iteration_and_at_half_a_line(self, tmp_path):
        path = tmp_path / "metrics.json"
        truncate_metrics(str(path), 20)
        assert not path.exists()
        lines = [json.dumps({"iteration": i, "x": 1}) + "\n" for i in (19, 39, 59)]
        path.write_text("".join(lines))
        truncate_metrics(str(path), 60)
        assert path.read_text() == "".join(lines)
        truncate_metrics(str(path), 39)
        assert path.read_text() == lines[0]
        path.write_text(lines[0] + lines[1][:-4])
        truncate_metrics(str(path), 60)
        assert path.read_text() == lines[0]


class TestTraining:
    def test_losses_correlations_and_results_are_written(self, tiny_cfg):
        tiny_cfg.SOLVER.MAX_ITER = 20
        tiny_cfg.MODEL.CRITERION.COUPLINGS = ("correlation", "harmonic")
        trainer = train(CorrdetTrainer(tiny_cfg))
        written = curve(tiny_cfg.OUTPUT_DIR)
        for branch in ("classification", "localization"):
            factors = [
                written[19][f"positives/harmonic_{branch}-{of}"]
                for of in ("p10", "p50", "p90", "mean")
            ]
            assert 1 <= factors[0] <= factors[1] <= factors[2] <= 2 and 1 <= factors[3] <= 2
        losses = {"loss_cls", "loss_box_reg", "loss_correlation", "total_loss"}
        correlations = {f"correlation/{name}" for name in ("pearson", "spearman", "concordance")}
        assert losses | correlations | {"AIC/sum", "AIC/mean"} <= written[19].keys()
        assert all(-1 <= written[19][name] <= 1 for name in correlations)
        assert 0 < written[19]["AIC/mean"] < 1 <= written[19]["AIC/sum"]
        assert {"bbox/AP", "bbox/AP50", "bbox/beta_cls", "bbox/beta_img"} <= written[20].keys()
        events = EventAccumulator(tiny_cfg.OUTPUT_DIR).Reload()
        tags = set(events.Tags()["scalars"])
        assert losses | correlations | {"bbox/AP", "bbox/beta_img"} <= tags
        assert trainer._loader.batches_done == 20

    def test_the_checkpoint_is_read_weights_only(self, tiny_cfg):
        tiny_cfg.DATASETS.TEST = ()
        train(CorrdetTrainer(tiny_cfg))
        checkpoint = torch.load(Path(tiny_cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)
        assert checkpoint["iteration"] == 3
        assert checkpoint["trainer"]["_trainer"]["optimizer"]["state"]

    @pytest.mark.parametrize("name, kind", [("SGD", torch.optim.SGD), ("ADAMW", torch.optim.AdamW)])
    def test_optimizers(self, tiny_cfg, name, kind):
        tiny_cfg.SOLVER.OPTIMIZER = name
        solver = tiny_cfg.SOLVER
        solver.BASE_LR, solver.BIAS_LR_FACTOR = 0.5, 2.0
        solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS = 0.3, 0.2, 0.1
        model = CorrdetTrainer.build_model(tiny_cfg)
        optimizer = CorrdetTrainer.build_optimizer(tiny_cfg, model)
        assert isinstance(optimizer, kind)
        options = {
            parameter: (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        assert options[model.head.cls_score.weight] == (0.5, 0.3)
        assert options[model.head.cls_score.bias] == (1.0, 0.1)
        assert options[model.backbone.bottom_up.stem.conv1.norm.weight] == (0.5, 0.2)
        solver.CLIP_GRADIENTS.ENABLED = True
        optimizer = CorrdetTrainer.build_optimizer(tiny_cfg, model)
        assert type(optimizer).__name__ == f"{kind.__name__}WithGradientClip"

    @pytest.mark.parametrize("name", ["SGD", "ADAMW"])
    def test_the_norm_of_all_gradients_can_be_clipped(self, tiny_cfg, name):
        tiny_cfg.SOLVER.OPTIMIZER = name
        clip = tiny_cfg.SOLVER.CLIP_GRADIENTS
        clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "full_model", 0.5
        model = CorrdetTrainer.build_model(tiny_cfg)
        optimizer = CorrdetTrainer.build_optimizer(tiny_cfg, model)
        for size, expected in ((3.0, 0.5), (1e-6, None)):
            gradients = [torch.full_like(p, size) for p in model.parameters()]
            norm = torch.cat([g.flatten() for g in gradients]).double().norm().item()
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            after = torch.cat([p.grad.flatten() for p in model.parameters()]).double().norm()
            assert after.item() == pytest.approx(expected or norm, rel=1e-3)

    def test_unknown_optimizer(self, tiny_cfg):
        tiny_cfg.SOLVER.OPTIMIZER = "ADAM"
        with pytest.raises(ConfigError, match="OPTIMIZER: unknown .*'ADAM'; did you mean 'ADAMW'"):
            CorrdetTrainer(tiny_cfg)

    def test_an_evaluation_is_on_disk_before_the_next_step(self, tiny_cfg):
        tiny_cfg.TEST.EVAL_PERIOD = 2
        tiny_cfg.SOLVER.MAX_ITER = 3
        trainer = CorrdetTrainer(tiny_cfg)
        step, found = trainer.run_step, []

        def run_step():
            if trainer.iter == 2:
                found.append(curve(tiny_cfg.OUTPUT_DIR))
            step()

        trainer.run_step = run_step
        trainer.train()
        assert "bbox/AP" in found[0][1]

    def test_evaluation_does_not_disturb_the_random_numbers(self, tiny_cfg):
        trainer = CorrdetTrainer(tiny_cfg)
        torch.manual_seed(0)
        expected = torch.rand(3).tolist()
        torch.manual_seed(0)
        CorrdetTrainer.test(tiny_cfg, trainer.model.eval())
        assert torch.rand(3).tolist() == expected

    def test_training_ends_with_an_evaluation_of_several_views(self, tiny_cfg):
        tiny_cfg.TEST.AUG.ENABLED = True
        tiny_cfg.TEST.AUG.MIN_SIZES, tiny_cfg.TEST.AUG.FLIP = (96,), False
        tiny_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.005
        tiny_cfg.SOLVER.MAX_ITER = 2
        train(CorrdetTrainer(tiny_cfg))
        results = curve(tiny_cfg.OUTPUT_DIR)[2]
        assert {"bbox/beta_img", "bbox_TTA/AP", "bbox_TTA/beta_cls"} <= results.keys()
        assert "bbox_TTA/beta_img" not in results
        assert_one_view_is_the_image_itself(Path(tiny_cfg.OUTPUT_DIR))

    def test_views_of_rcnn_are_detectron2s(self, tiny_cfg):
        output = tiny_cfg.OUTPUT_DIR
        tiny_cfg.merge_from_file(str(ROOT / "configs/quick/faster_rcnn_baseline.yaml"), False)
        tiny_cfg.OUTPUT_DIR, tiny_cfg.DATASETS.TEST = output, ("tiny_val",)
        tiny_cfg.INPUT.MIN_SIZE_TEST = 96
        tiny_cfg.TEST.AUG.MIN_SIZES, tiny_cfg.TEST.AUG.FLIP = (96,), False
        model = CorrdetTrainer.build_model(tiny_cfg)
        CorrdetTrainer.test(tiny_cfg, model)
        assert CorrdetTrainer.test_with_TTA(tiny_cfg, model).keys() == {"bbox_TTA"}
        assert_one_view_is_the_image_itself(Path(output))

    def test_detectron2s_own_detectors_train_too(self, tiny_cfg):
        tiny_cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        tiny_cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        tiny_cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        tiny_cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        tiny_cfg.MODEL.RESNETS.DEPTH = 18
        tiny_cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        tiny_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
        tiny_cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        tiny_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 10
        tiny_cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
        tiny_cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
        tiny_cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
        tiny_cfg.SOLVER.MAX_ITER = 2
        train(CorrdetTrainer(tiny_cfg))
        results = curve(tiny_cfg.OUTPUT_DIR)[2]
        assert "bbox/AP" in results and "bbox/beta_img" not in results


class TestNotFinite:
    def test_stops_and_names_loss_iteration_and_images(self, tiny_cfg):
        tiny_cfg.SOLVER.OPTIMIZER = "SGD"
        tiny_cfg.SOLVER.BASE_LR = 1e30
        tiny_cfg.SOLVER.CHECKPOINT_PERIOD = 1
        with pytest.raises(FloatingPointError) as raised:
            train(CorrdetTrainer(tiny_cfg))
        message = str(raised.value)
        assert "training stopped at iteration 1: loss_cls is " in message
        assert message.count(".jpg") == tiny_cfg.SOLVER.IMS_PER_BATCH
        # What was trained before is still there, and whole.
        assert "model_0000000.pth" in os.listdir(tiny_cfg.OUTPUT_DIR)
        assert not os.path.exists(os.path.join(tiny_cfg.OUTPUT_DIR, "model_final.pth"))


def rewrite(tiny_cfg, tmp_path, change) -> None:
    """Train on a copy of the annotations that ``change(annotations)`` has altered."""
    metadata = MetadataCatalog.get("tiny_train")
    content = json.loads(Path(metadata.json_file).read_text())
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    name = f"changed_{tmp_path.parent.name}_{tmp_path.name}"
    from corrdet.data.register import register_from_config

    register_from_config([f"{name}={path}:{metadata.image_root}"])
    tiny_cfg.DATASETS.TRAIN = (name,)
    tiny_cfg.DATASETS.TEST = ()


class TestBadData:
    def test_an_unreadable_image_is_named(self, tiny_cfg, tmp_path):
        broken = tmp_path / "broken.jpg"
        broken.write_bytes(b"not an image")

        def change(content):
            for image in content["images"]:
                image["file_name"] = str(broken)

        rewrite(tiny_cfg, tmp_path, change)
        with pytest.raises(ImageReadError, match=r"(?s)broken.jpg.*DATASETS.SKIP_UNREADABLE"):
            train(CorrdetTrainer(tiny_cfg))

    def test_an_unreadable_image_is_skipped_when_asked(self, tiny_cfg, tmp_path, caplog):
        broken = tmp_path / "broken.jpg"
        broken.write_bytes(b"not an image")
        rewrite(
            tiny_cfg, tmp_path, lambda content: content["images"][5].update(file_name=str(broken))
        )
        tiny_cfg.DATASETS.SKIP_UNREADABLE = True
        train(CorrdetTrainer(tiny_cfg))
        assert "broken.jpg" in caplog.text

    def test_a_degenerate_box_is_named(self, tiny_cfg, tmp_path):
        def change(content):
            content["annotations"][3]["bbox"] = [5, 5, 0, 10]

        rewrite(tiny_cfg, tmp_path, change)
        with pytest.raises(
            AnnotationError, match=r"changed_.*1 bad annotation.*\n.*\(5, 5, 0, 10\)"
        ):
            train(CorrdetTrainer(tiny_cfg))
        tiny_cfg.DATASETS.SKIP_BAD_ANNOTATIONS = True
        train(CorrdetTrainer(tiny_cfg))

    def test_a_box_outside_of_its_image_is_named(self, tiny_cfg, tmp_path):
        def change(content):
            content["annotations"][3]["bbox"] = [500, 5, 10, 10]

        rewrite(tiny_cfg, tmp_path, change)
        with pytest.raises(AnnotationError, match=r"\(500, 5, 10, 10\)"):
            train(CorrdetTrainer(tiny_cfg))

    def test_batches_without_any_object_are_trained_on(self, tiny_cfg, tmp_path):
        rewrite(tiny_cfg, tmp_path, lambda content: content["annotations"].clear())
        tiny_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
        tiny_cfg.SOLVER.MAX_ITER = 20
        train(CorrdetTrainer(tiny_cfg))
        written = curve(tiny_cfg.OUTPUT_DIR)[19]
        assert written["loss_box_reg"] == written["loss_correlation"] == 0
        assert 0 < written["loss_cls"] < math.inf

    def test_no_object_at_all_is_an_error(self, tiny_cfg, tmp_path):
        rewrite(tiny_cfg, tmp_path, lambda content: content["annotations"].clear())
        with pytest.raises(ValueError, match="no image of changed_.* has an object"):
            train(CorrdetTrainer(tiny_cfg))

    def test_what_is_evaluated_on(self, tiny_cfg, tmp_path):
        broken = tmp_path / "broken.jpg"
        broken.write_bytes(b"not an image")

        def change(content):
            content["images"][5]["file_name"] = str(broken)
            empty = content["images"][0]["id"]
            kept = [a for a in content["annotations"] if a["image_id"] != empty]
            content["annotations"] = kept
            kept[-1]["bbox"] = [5, 5, 0, 10]

        rewrite(tiny_cfg, tmp_path, change)
        tiny_cfg.DATASETS.CHECK_IMAGES = "none"
        (name,) = tiny_cfg.DATASETS.TRAIN
        with pytest.raises(AnnotationError, match=r"\(5, 5, 0, 10\)"):
            CorrdetTrainer.build_test_loader(tiny_cfg, name)
        tiny_cfg.DATASETS.SKIP_BAD_ANNOTATIONS = True
        images = CorrdetTrainer.build_test_loader(tiny_cfg, name).dataset
        assert len(images) == 24 and "instances" in images[0]
        tiny_cfg.DATASETS.SKIP_UNREADABLE = True
        tiny_cfg.TEST.BETA_IMG = False
        images = CorrdetTrainer.build_test_loader(tiny_cfg, name).dataset
        assert len(images) == 23 and "instances" not in images[0]


@pytest.mark.parametrize(
    ("change", "with_masks", "is_bad"),
    [
        ({"bbox": [5, 5, -1, 10]}, False, True),
        ({"segmentation": {"size": [160, 160], "counts": "0"}}, True, True),
        ({"segmentation": {"size": [9, 9], "counts": "0"}}, True, True),
        ({"segmentation": []}, True, True),
        ({"segmentation": []}, False, False),
        ({"bbox": [5, 5, 0, 10]}, True, True),
        ("all masks", True, True),
        (None, True, False),  # COCO's test sets have no annotations
    ],
)
def test_what_ap_cannot_be_measured_against(tiny_cfg, tmp_path, change, with_masks, is_bad):
    """It is refused before training, and before images are evaluated, or left out when asked."""

    def damage(content):
        if change is None:
            del content["annotations"]
        elif change == "all masks":
            for annotation in content["annotations"]:
                annotation["segmentation"] = []
        else:
            content["annotations"][0].update(change)

    rewrite(tiny_cfg, tmp_path, damage)
    tiny_cfg.DATASETS.TRAIN, tiny_cfg.DATASETS.TEST = ("tiny_train",), tiny_cfg.DATASETS.TRAIN
    tiny_cfg.MODEL.MASK_ON = with_masks
    (name,) = tiny_cfg.DATASETS.TEST
    if is_bad:
        with pytest.raises(AnnotationError):
            CorrdetTrainer.build_test_loader(tiny_cfg, name)
        with pytest.raises(AnnotationError):
            CorrdetTrainer(tiny_cfg)
    tiny_cfg.DATASETS.SKIP_BAD_ANNOTATIONS = True
    CorrdetTrainer.build_test_loader(tiny_cfg, name)


def test_the_test_data_is_checked_before_training(tiny_cfg, tmp_path):
    rewrite(tiny_cfg, tmp_path, lambda content: content["annotations"][0].update(category_id=99))
    tiny_cfg.DATASETS.TEST = tiny_cfg.DATASETS.TRAIN
    tiny_cfg.DATASETS.TRAIN = ("tiny_train",)
    with pytest.raises(AnnotationError, match="category_id 99 is not among the categories"):
        CorrdetTrainer(tiny_cfg)
