import numpy as np
import pytest
import torch

from corrdet.matching import fit_two_gaussians
from tests.helpers.matching import scikit_learn


def rows(seed=0):
    """Values (M, K), shuffled with what is not valid, of one to K per row."""
    generator = torch.Generator().manual_seed(seed)
    count = 40
    first = torch.rand(count, 45, generator=generator).double() * 1.5
    second = torch.randn(count, 45, generator=generator).double() * 0.3 + 3
    values = torch.where(torch.rand(count, 45, generator=generator) < 0.4, first, second)
    values[0] = 2.5  # all the same
    values[1, ::2], values[1, 1::2] = 0.25, 0.75  # two values
    values[2] = torch.linspace(0, 1, 45).double() ** 8 * 1e4  # spread over orders of magnitude
    values[3] = 1e-3 * first[3]
    valid = torch.rand(count, 45, generator=generator) < torch.rand(count, 1, generator=generator)
    valid[:5] = True
    valid[5:9] = False
    valid[7, 3] = valid[8, 5] = valid[8, 9] = True  # one value, two values
    values[~valid] = torch.nan  # never read
    return values, valid


@pytest.mark.parametrize("max_iterations, tolerance", [(100, 1e-3), (3, 1e-3), (500, 1e-7)])
def test_agrees_with_scikit_learn(max_iterations, tolerance, device):
    values, valid = rows()
    fitted = fit_two_gaussians(
        values.to(device), valid.to(device), max_iterations=max_iterations, tolerance=tolerance
    )
    log_joint = fitted.log_joint(values.to(device)).cpu()
    compared = 0
    for row in range(len(values)):
        row_values = values[row][valid[row]]
        if len(row_values) < 2:  # scikit-learn refuses it
            continue
        expected = scikit_learn(row_values, max_iterations, tolerance)
        close = {"rtol": 1e-6, "atol": 1e-9}
        assert fitted.iterations[row] == expected.n_iter_
        np.testing.assert_allclose(fitted.weights[row].cpu(), expected.weights_, **close)
        np.testing.assert_allclose(fitted.means[row].cpu(), expected.means_[:, 0], **close)
        np.testing.assert_allclose(
            fitted.variances[row].cpu(), expected.covariances_[:, 0, 0], **close
        )
        samples = row_values.numpy().reshape(-1, 1)
        mine = log_joint[row][valid[row]]
        np.testing.assert_allclose(
            mine.logsumexp(dim=1), expected.score_samples(samples), rtol=1e-6, atol=1e-6
        )
        margin = (mine[:, 0] - mine[:, 1]).abs() > 1e-6  # neither is the likelier by rounding
        components = torch.from_numpy(expected.predict(samples))
        assert torch.equal(mine.argmax(dim=1)[margin], components[margin])
        compared += 1
    assert compared > 30


def test_rows_do_not_touch_each_other():
    values, valid = rows(1)
    together = fit_two_gaussians(values, valid)
    for row in range(0, len(values), 7):
        alone = fit_two_gaussians(values[row : row + 1], valid[row : row + 1])
        for mine, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(mine[row], expected[0], rtol=1e-12, atol=1e-12)


def test_rows_that_cannot_be_fitted():
    values = torch.tensor(
        [[1.0, 2.0, 9.0], [1.0, torch.nan, 3.0], [1.0, torch.inf, 3.0], [4, 4, 4]]
    )
    valid = torch.tensor([[True, True, True]] * 3 + [[False, False, False]])
    fitted = fit_two_gaussians(values, valid)
    assert fitted.means[0].isfinite().all()
    assert fitted.means[1:3].isnan().all()
    assert fitted.means[3].isfinite().all() and fitted.iterations[3] == 0


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_fit(shape):
    fitted = fit_two_gaussians(torch.zeros(shape), torch.ones(shape, dtype=torch.bool))
    assert fitted.means.shape == (shape[0], 2)
    assert fitted.log_joint(torch.zeros(shape)).shape == (*shape, 2)


def test_bad_input():
    values, valid = rows()
    with pytest.raises(TypeError, match="valid must be a bool tensor, got int64"):
        fit_two_gaussians(values, valid.long())
    with pytest.raises(TypeError, match="values must be a float32 or float64 tensor, got int64"):
        fit_two_gaussians(valid.long(), valid)
    with pytest.raises(ValueError, match=r"same shape, got \(40, 45\) and \(40, 44\)"):
        fit_two_gaussians(values, valid[:, 1:])
    with pytest.raises(ValueError, match="2 dimensions, got shape"):
        fit_two_gaussians(values[0], valid[0])
