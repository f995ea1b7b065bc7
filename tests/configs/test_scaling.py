"""A config for several GPUs on another number of them: configs/README.md."""

import pytest

from corrdet.engine import CorrdetTrainer


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
