"""What the tests of all operators share."""

import torch


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
