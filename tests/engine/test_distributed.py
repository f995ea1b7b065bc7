"""Two real processes over gloo."""

import json
import os
import traceback
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from corrdet.data.register import register_from_config
from corrdet.engine import CorrdetTrainer
from corrdet.engine.evaluator import CorrelationEvaluator
from tests.helpers.two_processes import start_group

pytestmark = pytest.mark.slow


def worker(rank, directory, function, *arguments):
    start_group(rank, directory)
    try:
        function(Path(directory), *arguments)
    except Exception:
        (Path(directory) / f"error{rank}").write_text(traceback.format_exc())
        # The other process may wait for this one forever.
        os._exit(1)
    comm.synchronize()
    torch.distributed.destroy_process_group()


def in_two_processes(directory, function, *arguments):
    directory.mkdir(exist_ok=True)
    torch.multiprocessing.spawn(worker, (str(directory), function, *arguments), nprocs=2)


def train_and_evaluate(directory, cfg):
    register_from_config(cfg.DATASETS.REGISTER)
    trainer = CorrdetTrainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    weights = trainer.model.module.state_dict()
    results = CorrdetTrainer.test(cfg, trainer.model.module.eval())
    seen = [image["file_name"] for image in trainer._loader.last_batch]
    torch.save(
        {"weights": weights, "results": dict(results.get("bbox", {})), "seen": seen},
        directory / f"rank{comm.get_rank()}.pth",
    )


def random_outputs():
    """Images of tiny_val, and outputs as of a model that also gives positives and bounds."""
    generator = torch.Generator().manual_seed(0)
    images = DatasetCatalog.get("tiny_val")
    outputs = []
    for image in images:
        output = {
            "positives": dict(
                zip(("scores", "ious"), torch.rand(2, 5, generator=generator), strict=True)
            )
        }
        for name in ("instances", "instances_upper", "instances_lower"):
            corners = torch.tensor([a["bbox"] for a in image["annotations"]]).reshape(-1, 4)
            corners[:, 2:] *= 0.6 + 0.4 * torch.rand(len(corners), 2, generator=generator)
            corners[:, 2:] += corners[:, :2]
            instances = Instances((image["height"], image["width"]))
            instances.pred_boxes = Boxes(corners)
            instances.scores = torch.rand(len(corners), generator=generator)
            instances.pred_classes = torch.tensor(
                [a["category_id"] for a in image["annotations"]], dtype=torch.int64
            )
            output[name] = instances
        outputs.append(output)
    return images, outputs


def evaluate_every_second_image(directory, entries):
    register_from_config(entries)
    images, outputs = random_outputs()
    part = slice(comm.get_rank(), None, comm.get_world_size())
    evaluator = CorrelationEvaluator("tiny_val", output_dir=str(directory))
    evaluator.reset()
    evaluator.process(images[part], outputs[part])
    torch.save(dict(evaluator.evaluate()), directory / f"rank{comm.get_rank()}.pth")


def fail_on_the_other_rank(directory, cfg):
    register_from_config(cfg.DATASETS.REGISTER)
    trainer = CorrdetTrainer(cfg)
    if comm.get_rank() == 1:
        trainer._detector.criterion.classification_weight = torch.nan
    trainer.train()


def test_training_and_evaluation(tiny_cfg, tmp_path):
    directory = tmp_path / "two"
    tiny_cfg.OUTPUT_DIR = str(directory)
    tiny_cfg.SOLVER.MAX_ITER = 3
    tiny_cfg.MODEL.CRITERION.CORRELATION.GLOBAL_BATCH = True
    in_two_processes(directory, train_and_evaluate, tiny_cfg)
    first, second = (torch.load(directory / f"rank{rank}.pth") for rank in (0, 1))

    # Both processes end with the same parameters although they saw different images. Running
    # statistics of batch normalization and the running mean of positives are each process's own, as
    # Detectron2 has it.
    assert set(first["seen"]).isdisjoint(second["seen"])
    for name, value in first["weights"].items():
        if "running" not in name and name != "normalizer.mean":
            assert torch.equal(value, second["weights"][name]), name

    # What two processes measure together is what one measures alone.
    cfg = tiny_cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "one")
    model = CorrdetTrainer.build_model(cfg)
    model.load_state_dict(first["weights"])
    alone = CorrdetTrainer.test(cfg, model.eval())["bbox"]
    assert not second["results"]
    assert first["results"].keys() == alone.keys()
    assert {"beta_img", "beta_img-images", "beta_cls"} <= alone.keys()
    assert alone["beta_img-images"] > 4
    for name in ("AP", "AP50", "beta_img-images"):
        assert first["results"][name] == pytest.approx(alone[name], nan_ok=True)
    # The second half of the images went through the other process's running statistics.
    assert first["results"]["beta_img"] == pytest.approx(alone["beta_img"], abs=15)
    assert (directory / "metrics.json").exists()
    assert json.loads((directory / "metrics.json").read_text().splitlines()[-1])


def test_measures_are_those_of_all_images(tiny_digits, tmp_path):
    together, alone = tmp_path / "two", tmp_path / "one"
    in_two_processes(together, evaluate_every_second_image, tuple(tiny_digits.values()))
    alone.mkdir()
    evaluate_every_second_image(alone, ())
    first, second, expected = (
        torch.load(path, weights_only=False)
        for path in (together / "rank0.pth", together / "rank1.pth", alone / "rank0.pth")
    )
    assert not second
    names = {"oLRP", "AIC", "AIC-mean", "beta_img", "AP_img_upper", "AP75_img_lower", "AP_upper"}
    assert names <= expected["bbox"].keys() == first["bbox"].keys()
    assert expected["bbox"]["AP_img_upper"] != expected["bbox"]["AP"]
    for name, value in expected["bbox"].items():
        assert first["bbox"][name] == pytest.approx(value, nan_ok=True), name
    written = [(folder / "measures.json").read_text() for folder in (together, alone)]
    assert written[0] == written[1]


def test_a_loss_that_fails_elsewhere_is_reported_with_its_images(tiny_cfg, tmp_path):
    directory = tmp_path / "two"
    tiny_cfg.OUTPUT_DIR = str(directory)
    with pytest.raises(torch.multiprocessing.ProcessExitedException):
        in_two_processes(directory, fail_on_the_other_rank, tiny_cfg)
    message = "".join(path.read_text() for path in directory.glob("error*"))
    assert "training stopped at iteration 0" in message
