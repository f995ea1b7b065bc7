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

import corrdet.ops
from corrdet.ops.kernels import OPERATORS

# Seconds after which a process counts as hanging.
TIMEOUT = 60


def run(operator):
    """Results and gradients of an example of a size that several threads share."""
    arguments = OPERATORS[operator].example(50_000)
    results = getattr(corrdet.ops, operator)(*arguments)
    results = results if isinstance(results, tuple) else (results,)
    leaves = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]
    gradients = torch.autograd.grad(sum(r.square().sum() for r in results), leaves)
    return *(result.detach() for result in results), *gradients


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def expected(two_threads):
    """Results of this process, whose OpenMP threads have then started."""
    return {name: run(name) for name in OPERATORS}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensors in actual.items():
        assert all(map(torch.equal, tensors, expected[name])), name


@pytest.mark.slow
def test_several_python_threads(expected):
    """All operators at once, and each of them in several threads."""
    with ThreadPoolExecutor(4) as pool:
        futures = [(name, pool.submit(run, name)) for _ in range(4) for name in OPERATORS]
        for name, future in futures:
            assert_same({name: future.result(TIMEOUT)}, {name: expected[name]})


class Results(Dataset):
    """Items are the results of all operators."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        assert torch.get_num_threads() == 1
        return {name: run(name) for name in OPERATORS}


@pytest.mark.slow
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
    results = {name: run(name) for name in OPERATORS}
    # As arrays: a tensor is shared, and its sender would have to live until it is received.
    connection.send({name: [t.numpy() for t in tensors] for name, tensors in results.items()})


@pytest.mark.slow
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
