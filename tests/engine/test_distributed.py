"""Two real processes over gloo."""

import json
import os
import traceback
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from detectron2.utils import comm

from corrdet.data.register import register_from_config
from corrdet.engine import CorrdetTrainer


def worker(rank, directory, function, *arguments):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2
    )
    # What detectron2.engine.launch sets up, which knows no gloo; its name in 0.6 is private.
    comm._LOCAL_PROCESS_GROUP = torch.distributed.new_group([0, 1])
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


def fail_on_the_other_rank(directory, cfg):
    register_from_config(cfg.DATASETS.REGISTER)
    trainer = CorrdetTrainer(cfg)
    if comm.get_rank() == 1:
        criterion = trainer._detector.criterion
        original = criterion.classification
        criterion.classification = lambda matched: original(matched) * torch.nan
    trainer.train()


def test_training_and_evaluation(tiny_cfg, tmp_path):
    directory = tmp_path / "two"
    tiny_cfg.OUTPUT_DIR = str(directory)
    tiny_cfg.SOLVER.MAX_ITER = 3
    tiny_cfg.MODEL.CRITERION.CORRELATION.GLOBAL_BATCH = True
    in_two_processes(directory, train_and_evaluate, tiny_cfg)
    first, second = (torch.load(directory / f"rank{rank}.pth") for rank in (0, 1))

    # Both processes end with the same parameters although they saw different images. Running
    # statistics of batch normalization are each process's own, as Detectron2 has it.
    assert set(first["seen"]).isdisjoint(second["seen"])
    for name, value in first["weights"].items():
        if "running" not in name:
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


def test_a_loss_that_fails_elsewhere_is_reported_with_its_images(tiny_cfg, tmp_path):
    directory = tmp_path / "two"
    tiny_cfg.OUTPUT_DIR = str(directory)
    with pytest.raises(torch.multiprocessing.ProcessExitedException):
        in_two_processes(directory, fail_on_the_other_rank, tiny_cfg)
    message = "".join(path.read_text() for path in directory.glob("error*"))
    assert "training stopped at iteration 0" in message
