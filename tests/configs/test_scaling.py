"""A config for several GPUs on another number of them: configs/README.md."""

import logging

import pytest

from corrdet.engine import CorrdetTrainer
from corrdet.engine.optimizer import scale_to_processes


@pytest.mark.slow
def test_reference_world_size_scales_batch_rate_and_schedule(tiny_cfg):
    tiny_cfg.merge_from_list([
        "SOLVER.REFERENCE_WORLD_SIZE", 2,
        "SOLVER.IMS_PER_BATCH", 4,
        "SOLVER.BASE_LR", 0.002,
        "SOLVER.MAX_ITER", 2,
        "SOLVER.STEPS", (1,),
        "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR",
        "DATASETS.TEST", (),
    ])  # fmt: skip
    trainer = CorrdetTrainer(tiny_cfg)
    assert trainer.max_iter == trainer.cfg.SOLVER.MAX_ITER == 4
    assert trainer.cfg.SOLVER.STEPS == (2,) and trainer.cfg.SOLVER.IMS_PER_BATCH == 2
    rates, images = [], []
    run_step = trainer.run_step

    def step():
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        run_step()
        images.append(len(trainer._loader.last_batch))

    trainer.run_step = step
    trainer.train()
    assert rates == pytest.approx([0.001, 0.001, 0.0001, 0.0001])
    assert images == [2, 2, 2, 2]


def test_the_rate_of_another_optimizer_is_scaled_and_said(tiny_cfg, caplog):
    tiny_cfg.merge_from_list([
        "SOLVER.REFERENCE_WORLD_SIZE", 4,
        "SOLVER.IMS_PER_BATCH", 8,
        "SOLVER.BASE_LR", 0.002,
        "SOLVER.OPTIMIZER", "SGD",
    ])  # fmt: skip
    with caplog.at_level(logging.WARNING, "corrdet"):
        assert scale_to_processes(tiny_cfg).SOLVER.BASE_LR == pytest.approx(0.0005)
        assert not caplog.text
        tiny_cfg.SOLVER.OPTIMIZER = "AdamW"
        assert scale_to_processes(tiny_cfg).SOLVER.BASE_LR == pytest.approx(0.0005)
    assert "with AdamW, by the square root it would be 0.001" in caplog.text
    tiny_cfg.SOLVER.REFERENCE_WORLD_SIZE = 1
    caplog.clear()
    assert scale_to_processes(tiny_cfg) is tiny_cfg and not caplog.text
