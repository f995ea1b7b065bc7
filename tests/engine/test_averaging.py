"""The moving average of weights."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from corrdet.engine import ConfigError, CorrdetTrainer, take_average
from corrdet.engine.averaging import AverageWeights

pytestmark = pytest.mark.slow


def test_the_average():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1)
    hook = AverageWeights(model, 0.15)
    hook.before_train()
    expected = 1.0
    for step, value in enumerate([2.0, 3.0, 5.0]):
        model.weight.data.fill_(value)
        hook.after_step()
        decay = min(0.15, (1 + step) / (10 + step))  # 0.1, 0.15, 0.15
        expected = decay * expected + (1 - decay) * value
    assert hook.evaluating(model.weight.item)() == pytest.approx(expected)
    assert model.weight.item() == 5
    with pytest.raises(ZeroDivisionError), hook.in_place():
        raise ZeroDivisionError
    assert model.weight.item() == 5

    # Another process goes on with it.
    again = AverageWeights(model, 0.15)
    again.load_state_dict(hook.state_dict())
    again.before_train()
    for each in (hook, again):
        each.after_step()
    with hook.in_place():
        value = model.weight.item()
    with again.in_place():
        assert model.weight.item() == value


def test_evaluations_are_of_the_average(tiny_cfg, monkeypatch, caplog):
    cfg = tiny_cfg
    cfg.MODEL_EMA.ENABLED, cfg.MODEL_EMA.DECAY, cfg.SOLVER.MAX_ITER = True, 0.9, 3
    tested = []

    def test(cls, cfg, model, evaluators=None):
        tested.append(model.head.cls_score.weight.detach().clone())
        return {}

    monkeypatch.setattr(CorrdetTrainer, "test", classmethod(test))
    trainer = CorrdetTrainer(cfg)
    trainer.train()
    weight = trainer.model.head.cls_score.weight
    assert len(tested) == 1 and not torch.equal(tested[0], weight)

    folder = Path(cfg.OUTPUT_DIR)
    average = torch.load(folder / "model_final_ema.pth", weights_only=True)["model"]
    assert torch.equal(average["head.cls_score.weight"], tested[0])
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    assert torch.equal(checkpoint["model"]["head.cls_score.weight"], weight)

    with caplog.at_level(logging.INFO, "corrdet"):
        take_average(trainer.model, checkpoint, cfg)
    assert "the model has the moving average of its weights in their place" in caplog.text
    assert torch.equal(weight, tested[0])
    with pytest.raises(ConfigError, match="the weights come without an average"):
        take_average(trainer.model, {"model": average}, cfg)
    take_average(trainer.model, {}, SimpleNamespace(MODEL_EMA=SimpleNamespace(ENABLED=False)))
