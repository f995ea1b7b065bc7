"""A few seconds of `make fuzz`, the same examples each time."""

import pytest

from tests.ops import fuzz


@pytest.mark.slow
@pytest.mark.parametrize("check", fuzz.PROPERTIES, ids=lambda check: check.__name__)
def test_fuzz(check):
    fuzz.run(check, 60, derandomize=True)
