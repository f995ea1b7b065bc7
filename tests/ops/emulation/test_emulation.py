"""The emulation of CUDA finds the faults that it is for: see cuda_emulation.h."""

import pytest
import torch

from tests.helpers.emulation import ORDERS

pytestmark = pytest.mark.slow

FAULTS = {
    1: "race between a write and a read|read before any write|race between a read and a write",
    2: "out of bounds: result\\[16\\] of 16",
    3: "read before any write: shared memory\\[3\\]",
    4: "divergent barrier",
    5: "race between two writes: result",
    6: "race between an atomic addition and a read|race between an atomic addition and another",
}


@pytest.mark.parametrize("order", ORDERS)
def test_emulation_runs_a_correct_kernel(emulator, order):
    message, result = emulator.faulty(0, order)
    assert message == ""
    assert result.tolist() == list(range(7, -1, -1)) * 2


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_emulation_finds_faults(emulator, fault, order):
    message, _ = emulator.faulty(fault, order)
    assert message
    with pytest.raises(RuntimeError, match=FAULTS[fault]):
        raise RuntimeError(message)


def test_arguments_are_checked(emulator):
    grad, boxes = torch.zeros(5), torch.zeros(5, 4)
    arguments = boxes, 4, 1, boxes, 4, 1, 5
    for name, dtype, wrong, message in (
        (
            "elementwise",
            torch.float32,
            (*arguments, "iou", grad),
            "no function elementwise_float32",
        ),
        ("elementwise_iou", torch.float32, arguments, "takes 9 arguments, not 7"),
        ("elementwise_iou", torch.float64, (*arguments, "iou", grad), "values of 4 bytes"),
        ("elementwise_iou", torch.float32, (*arguments, "eiou", grad), "no name 'eiou'"),
    ):
        with pytest.raises(RuntimeError, match=message):
            emulator.run(name, dtype, *wrong)
