from types import SimpleNamespace

import pytest
import scipy.stats
import torch
from detectron2.utils.events import EventStorage

from corrdet.engine.hooks import BatchAgreement, BatchCorrelation, WriteEvaluations


def written(model, iteration, hook=BatchCorrelation):
    """What a hook with a period of 5 leaves in the storage: name -> value."""
    hook = hook(model, period=5)
    with EventStorage(iteration) as storage:
        hook.trainer = SimpleNamespace(iter=iteration, storage=storage)
        hook.after_step()
    return {name: value for name, (value, _) in storage.latest().items()}


def positives(n=30):
    scores = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {"scores": scores, "ious": scores**4 + 0.1 * torch.sin(50 * scores)}


def test_correlations_are_those_of_scores_and_ious():
    latest = positives()
    x, y = latest["scores"], latest["ious"]
    spread = x.var(correction=0) + y.var(correction=0) + (x.mean() - y.mean()) ** 2
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    assert written(SimpleNamespace(latest_positives=latest), 4) == pytest.approx(
        {
            "correlation/pearson": scipy.stats.pearsonr(x, y)[0],
            "correlation/spearman": scipy.stats.spearmanr(x, y)[0],
            "correlation/concordance": (2 * covariance / spread).item(),
        }
    )


@pytest.mark.parametrize(
    "model, iteration",
    [
        (SimpleNamespace(latest_positives=positives()), 3),
        (SimpleNamespace(latest_positives=positives()), 5),
        (SimpleNamespace(latest_positives=positives(1)), 4),
        (SimpleNamespace(latest_positives=None), 4),
        (SimpleNamespace(), 4),  # one of Detectron2's own
    ],
)
def test_no_correlations_between_periods_and_where_there_are_none(model, iteration):
    assert written(model, iteration) == {}


def test_inconsistency_and_distributions_of_whatever_else_there_is():
    latest = {
        "scores": torch.tensor([0.9, 0.2, 0.5]),
        "ious": torch.tensor([0.5, 0.3, 0.5]),
        "factor": torch.tensor([1.5, 1.0, 2.0]),
    }
    values = written(SimpleNamespace(latest_positives=latest), 4, BatchAgreement)
    assert values == pytest.approx(
        {
            "AIC/sum": 0.5, "AIC/mean": 0.5 / 3, "positives/factor-mean": 1.5,
            "positives/factor-p10": 1.0, "positives/factor-p50": 1.5, "positives/factor-p90": 2.0,
        }
    )  # fmt: skip
    assert set(latest) == {"scores", "ious", "factor"}


def test_one_positive_has_an_inconsistency():
    model = SimpleNamespace(latest_positives=positives(1))
    assert set(written(model, 4, BatchAgreement)) == {"AIC/sum", "AIC/mean"}


@pytest.mark.parametrize(
    "model, iteration",
    [
        (SimpleNamespace(latest_positives=positives()), 3),
        (SimpleNamespace(latest_positives=positives(0)), 4),
        (SimpleNamespace(latest_positives=None), 4),
        (SimpleNamespace(), 4),
    ],
)
def test_no_inconsistency_between_periods_and_where_there_is_none(model, iteration):
    assert written(model, iteration, BatchAgreement) == {}


@pytest.mark.parametrize("period, expected", [(5, [4, 9]), (0, [])])
def test_evaluations_are_written_at_once(period, expected):
    iterations = []
    writer = SimpleNamespace(write=lambda: iterations.append(hook.trainer.iter))
    hook = WriteEvaluations([writer], period)
    for iteration in range(12):
        hook.trainer = SimpleNamespace(iter=iteration)
        hook.after_step()
    assert iterations == expected
