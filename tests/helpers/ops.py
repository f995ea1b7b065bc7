"""What the tests of all operators share."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from corrdet.ops import set_backend
from corrdet.ops._extension import HAS_CUDA

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """The devices that the operators are tested on."""
    if request.param == "cuda" and not (torch.cuda.is_available() and HAS_CUDA):
        pytest.skip("needs a CUDA GPU and an extension built with CUDA")
    return request.param


@pytest.fixture(params=["extension", "torch"])
def backend(request):
    """What computes the operators in a test."""
    with set_backend(request.param):
        yield request.param


def repeats(run):
    """Results of `run`, tensors, with several numbers of threads and in threads of Python."""
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 2, 5):
            torch.set_num_threads(number)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:
        results += pool.map(lambda _: run(), range(6))
    return results


def samples(positives, negatives, dtype=torch.float64, device="cpu", scale=1.0, ties=False, seed=0,
            ignored=3):  # fmt: skip
    """Logits, labels and the positives' IoUs; with `ties` many of each are equal."""
    generator = torch.Generator().manual_seed(seed)
    count = positives + negatives + ignored
    labels = torch.tensor([1] * positives + [0] * negatives + [-1] * ignored)
    labels = labels[torch.randperm(count, generator=generator)]
    logits = torch.randn(count, generator=generator, dtype=torch.float64)
    logits = logits * scale - 1.5 * (labels != 1)
    ious = torch.rand(positives, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    if ties:
        logits, ious = (logits * 2).round() / 2, (ious * 5).ceil() / 5
    logits = logits.to(dtype)
    return logits.to(device), labels.to(device), ious.to(device)


def random_boxes(n, dtype=torch.float64, device="cpu", seed=0, inverted=False):
    """Boxes (n, 4) that overlap often; with `inverted` some have sides of negative or no length."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 20
    sizes = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 9 + 1
    if inverted:
        sizes[::3] -= 5
        sizes[::5, 0] = 0
        sizes[::10] = 0
    return torch.cat([corners, corners + sizes], 1).to(device, dtype)


def assert_near(actual, expected, tolerance=None):
    """Compare with `expected`, relative to its largest value, and exactly where it is NaN."""
    if tolerance is None:
        tolerance = {
            torch.float64: 1e-10,
            torch.float32: 1e-5,
            torch.float16: 2e-3,
            torch.bfloat16: 2e-2,
        }[actual.dtype]
    expected = expected.to(actual)
    finite = expected[expected.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True
    )
