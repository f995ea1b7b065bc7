"""The devices that the operators are tested on."""

import pytest
import torch


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)],
)
def device(request):
    if request.param == "cuda":
        from corrdet.ops._extension import HAS_CUDA

        if not torch.cuda.is_available() or not HAS_CUDA:
            pytest.skip("needs a CUDA GPU and an extension built with CUDA")
    return request.param
