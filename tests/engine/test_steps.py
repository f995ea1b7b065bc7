"""Gradients that are not finite, accumulation, mixed precision: in one process."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from corrdet.engine import ConfigError, CorrdetTrainer, DivergedError
from corrdet.engine.steps import (
    NotFiniteError,
    TrainingStep,
    broken_gradients,
    check_norms,
    largest_gradient,
)
from corrdet.losses import COUPLINGS

pytestmark = pytest.mark.slow


class Losses(nn.Module):
    """Loss of one weight w and a batch of numbers: the mean of w x number."""

    def __init__(self, power=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.unused = nn.Parameter(torch.ones(3))
        self.power = power

    def forward(self, batch):
        product = self.weight * torch.tensor(batch).mean()
        # With power 1/2 the loss of 0 is 0, and its gradient infinite.
        return {"loss": product**self.power}


@pytest.fixture(autouse=True)
def nothing_logged(monkeypatch):
    monkeypatch.setattr(TrainingStep, "_write_metrics", lambda *args: None)


def one_step(model, batch, **options):
    step = TrainingStep(model, [batch], torch.optim.SGD(model.parameters(), lr=0.5), **options)
    step.run_step()
    return model.weight.item()


def test_parts_are_one_batch():
    batch = [1.0, 2.0, 3.0, 6.0]
    assert one_step(Losses(), batch) == one_step(Losses(), batch, parts=2) == 1 - 0.5 * 3
    # What a part's loss is not linear in, it sees for itself.
    assert one_step(Losses(2.0), batch, parts=2) == pytest.approx(1 - 0.5 * (1.5**2 + 4.5**2))
    with pytest.raises(ConfigError, match="ACCUMULATE is 3, .* gives a list of 4"):
        one_step(Losses(), batch, parts=3)


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = Losses(0.5)
    with pytest.raises(NotFiniteError, match="gradient of 1 of 1 parameters is not: weight$"):
        one_step(model, [0.0])
    assert model.weight.item() == 1
    with pytest.raises(NotFiniteError, match="^loss is inf$") as raised:
        one_step(model, [float("inf")])
    assert not raised.value.gradient_is_finite


def test_the_largest_gradient():
    model = Losses()
    assert largest_gradient(model) is None and broken_gradients(model) == ""
    model.weight.grad, model.unused.grad = torch.tensor(-3.0), torch.tensor([1e30, 0, 0])
    assert largest_gradient(model) == torch.tensor(1e30)  # its square is infinite
    model.unused.grad[1] = torch.nan
    assert largest_gradient(model).isnan()


def test_gradients_of_other_types():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64))
    model[0].weight.grad = torch.full((2, 2), 2.0)
    model[1].weight.grad = torch.full((2, 2), 1e300, dtype=torch.float64)
    assert largest_gradient(model) == 1e300  # and not infinite
    table = nn.EmbeddingBag(5, 3, sparse=True)
    table(torch.tensor([[1, 2]])).sum().backward()
    assert largest_gradient(table) == 0.5 and broken_gradients(table) == ""
    table.weight.grad._values()[0] = torch.nan
    assert largest_gradient(table).isnan()
    assert "the gradient of 1 of 1 parameters is not: weight" in broken_gradients(table)


def test_steps_that_mixed_precision_skips_are_no_failure(caplog):
    model = Losses(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    step = TrainingStep(model, [[0.0]] * 20, optimizer, mixed_precision_on="cpu")
    with caplog.at_level(logging.INFO, "corrdet"):
        step.run_step()
    assert "iteration 0 changes no weights" in caplog.text and model.weight.item() == 1
    with pytest.raises(NotFiniteError, match="gradient of 1 of 1 parameters"):
        for _ in range(19):  # until it is not scaled any more
            step.run_step()
    assert step.grad_scaler.get_scale() < 1
    assert "grad_scaler" in step.state_dict()
    # The scale goes on.
    again = TrainingStep(model, [[4.0]], optimizer, mixed_precision_on="cpu")
    again.load_state_dict(step.state_dict())
    again.run_step()
    assert model.weight.item() == pytest.approx(0.5, abs=0.01)


def test_norms_that_need_gpus(monkeypatch):
    model = nn.Sequential(nn.SyncBatchNorm(3))
    check_norms(model, "cpu")
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    check_norms(model, "cuda")
    with pytest.raises(ConfigError, match="SyncBN needs GPUs: expected naiveSyncBN"):
        check_norms(model, "cpu")


class TestTraining:
    @pytest.fixture(autouse=True)
    def a_coupling_with_a_gradient_that_is_nan(self):
        @COUPLINGS.register("nan_gradient")
        def nan_gradient(matched):
            return (matched.scores - matched.scores.detach()).sum().abs().sqrt()

    def test_is_stopped_with_names_and_the_checkpoint_stays(self, tiny_cfg):
        tiny_cfg.SOLVER.CHECKPOINT_PERIOD, tiny_cfg.SOLVER.MAX_ITER = 2, 3
        tiny_cfg.SOLVER.ACCUMULATE = 2
        output = Path(tiny_cfg.OUTPUT_DIR)
        output.mkdir()
        CorrdetTrainer(tiny_cfg).train()
        tiny_cfg.MODEL.CRITERION.COUPLINGS = ("nan_gradient",)
        tiny_cfg.SOLVER.MAX_ITER = 8
        resumed = CorrdetTrainer(tiny_cfg)
        resumed.resume_or_load(resume=True)
        before = {name: value.clone() for name, value in resumed.model.state_dict().items()}
        message = r"stopped at iteration 3: the losses are finite, but the gradient of \d+ of \d+ "
        with pytest.raises(DivergedError, match=message) as raised:
            resumed.train()
        assert str(raised.value).count(".jpg") == tiny_cfg.SOLVER.IMS_PER_BATCH
        names = dict(resumed.model.named_parameters())
        assert all(names[name].equal(before[name]) for name in names)
        assert (output / "last_checkpoint").read_text() == "model_final.pth"
        assert not (output / "model_0000003.pth").exists()
        saved = torch.load(output / "model_final.pth", weights_only=True)["model"]
        assert all(value.isfinite().all() for value in saved.values())

    def test_a_batch_norm_of_one_value_is_one_line(self, tiny_cfg):
        tiny_cfg.SOLVER.IMS_PER_BATCH = tiny_cfg.SOLVER.ACCUMULATE = 2
        tiny_cfg.INPUT.MIN_SIZE_TRAIN, tiny_cfg.MODEL.RETINANET.NORM = (64,), "BN"
        Path(tiny_cfg.OUTPUT_DIR).mkdir()
        with pytest.raises(ConfigError, match=r"one value in each channel: 1 image\(s\)"):
            CorrdetTrainer(tiny_cfg).train()

    def test_parts_that_do_not_divide_are_refused(self, tiny_cfg):
        tiny_cfg.SOLVER.ACCUMULATE = 4
        with pytest.raises(ConfigError, match=r"is 4, which does not divide the 2 image\(s\)"):
            CorrdetTrainer(tiny_cfg)
