"""What is logged of how scores and IoUs of a batch's positives agree."""

import pytest
import scipy.stats
import torch
from detectron2.utils.events import EventStorage

from corrdet.modeling.core import WRITER_PERIOD, log_agreement

WRITTEN = WRITER_PERIOD - 1


def written(scores, ious, factors=None, iteration=WRITTEN):
    """What is left in the storage: name -> value."""
    with EventStorage(iteration) as storage:
        log_agreement(storage, scores, ious, factors or {})
    return {name: value for name, (value, _) in storage.latest().items()}


def positives(n=30):
    scores = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return scores, scores**4 + 0.1 * torch.sin(50 * scores)


def test_correlations_are_those_of_scores_and_ious():
    x, y = positives()
    spread = x.var(correction=0) + y.var(correction=0) + (x.mean() - y.mean()) ** 2
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    values = written(x, y)
    assert {name: value for name, value in values.items() if "correlation" in name} == (
        pytest.approx(
            {
                "correlation/pearson": scipy.stats.pearsonr(x, y)[0],
                "correlation/spearman": scipy.stats.spearmanr(x, y)[0],
                "correlation/concordance": (2 * covariance / spread).item(),
            }
        )
    )


def test_inconsistency_and_distributions_of_factors():
    scores, ious = torch.tensor([0.9, 0.2, 0.5]), torch.tensor([0.5, 0.3, 0.5])
    values = written(scores, ious, {"factor": torch.tensor([1.5, 1.0, 2.0])})
    assert {name: value for name, value in values.items() if "correlation" not in name} == (
        pytest.approx(
            {
                "AIC/sum": 0.5,
                "AIC/mean": 0.5 / 3,
                "positives/factor-mean": 1.5,
                "positives/factor-p10": 1.0,
                "positives/factor-p50": 1.5,
                "positives/factor-p90": 2.0,
            }
        )  # fmt: skip
    )


def test_one_positive_has_an_inconsistency_and_no_correlation():
    assert set(written(*positives(1))) == {"AIC/sum", "AIC/mean"}


@pytest.mark.parametrize("count, iteration", [(30, WRITTEN - 1), (30, WRITTEN + 1), (0, WRITTEN)])
def test_nothing_between_periods_and_without_positives(count, iteration):
    assert written(*positives(count), iteration=iteration) == {}
