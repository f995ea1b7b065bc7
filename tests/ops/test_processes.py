"""Operators called from several Python threads at once, and in processes forked after they ran.

What holds for forked processes holds for all of PyTorch on the CPU, whose threads are OpenMP's: a
fork copies no thread but the one that called it. A process forked after its parent computed with
several threads can compute with one, as DataLoader's workers do. With GNU OpenMP several hang, as
they do in PyTorch's own operators: processes that are to have several must be spawned.
"""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from corrdet.ops import elementwise_iou, pairwise_iou, smooth_error, soft_rank, step_error
from tests.ops.cases import random_boxes

# Seconds after which a process counts as hanging.
TIMEOUT = 60


def run_iou(seed):
    # Of a size that several threads share, as all below.
    boxes1 = random_boxes(3000, torch.float32, seed=seed).requires_grad_()
    boxes2 = random_boxes(400, torch.float32, seed=seed + 1)
    values = pairwise_iou(boxes1, boxes2, "giou")
    return values.detach(), *torch.autograd.grad(values.square().sum(), boxes1)


def run_elementwise(seed):
    boxes1 = random_boxes(50_000, torch.float32, seed=seed).requires_grad_()
    values = elementwise_iou(boxes1, random_boxes(50_000, torch.float32, seed=seed + 1), "ciou")
    return values.detach(), *torch.autograd.grad(values.square().sum(), boxes1)


def run_soft_rank(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(8, 20_000, generator=generator).requires_grad_()
    ranks = soft_rank(values, 0.001)
    return ranks.detach(), *torch.autograd.grad(ranks.square().sum(), values)


def run_step(seed):
    logits, labels, ious = samples(seed)
    classification, localization = step_error(logits, labels, "alrp", 1.0, ious)
    gradients = torch.autograd.grad(classification + localization, (logits, ious))
    return classification.detach(), localization.detach(), *gradients


def run_smooth(seed):
    logits, labels, ious = samples(seed)
    value = smooth_error(logits, labels, ious=ious.detach())
    return value.detach(), *torch.autograd.grad(value, logits)


def samples(seed, positives=300, negatives=100_000):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(positives + negatives, generator=generator)
    labels = (torch.arange(len(logits)) % (len(logits) // positives) == 0).long()
    ious = torch.rand(int(labels.sum()), generator=generator)
    return logits.requires_grad_(), labels, ious.requires_grad_()


RUNS = {
    "pairwise_iou": run_iou,
    "elementwise_iou": run_elementwise,
    "soft_rank": run_soft_rank,
    "step_error": run_step,
    "smooth_error": run_smooth,
}


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def expected(two_threads):
    """Results of this process, whose OpenMP threads have then started."""
    return {name: run(0) for name, run in RUNS.items()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensors in actual.items():
        assert all(map(torch.equal, tensors, expected[name])), name


def test_several_python_threads(expected):
    """All operators at once, and each of them in several threads."""
    with ThreadPoolExecutor(4) as pool:
        futures = [(name, pool.submit(run, 0)) for _ in range(4) for name, run in RUNS.items()]
        for name, future in futures:
            assert_same({name: future.result(TIMEOUT)}, {name: expected[name]})


class Results(Dataset):
    """Items are the results of all operators."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        assert torch.get_num_threads() == 1
        return {name: run(0) for name, run in RUNS.items()}


def test_forked_workers_of_a_data_loader(expected):
    loader = DataLoader(
        Results(), batch_size=None, num_workers=2, timeout=TIMEOUT, multiprocessing_context="fork"
    )
    results = list(loader)
    assert len(results) == 4
    for result in results:
        assert_same(result, expected)


def compute(connection):
    torch.set_num_threads(1)
    results = {name: run(0) for name, run in RUNS.items()}
    # As arrays: a tensor is shared, and its sender would have to live until it is received.
    connection.send({name: [t.numpy() for t in tensors] for name, tensors in results.items()})


def test_forked_process(expected):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=compute, args=(sender,), daemon=True)
    process.start()
    try:
        assert receiver.poll(TIMEOUT), "the process hangs"
        arrays = receiver.recv()
        process.join(TIMEOUT)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert_same({name: list(map(torch.from_numpy, a)) for name, a in arrays.items()}, expected)
