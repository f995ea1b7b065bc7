"""Which backend computes, how it is chosen, and what users without the extension see."""

import os
import re
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

from corrdet import env, ops
from corrdet.ops import _backend, _transforms
from corrdet.ops.kernels import OPERATORS
from corrdet.ops.pure import lower_ious, smooth_error, sums
from tests.helpers.ops import assert_near, samples
from tests.helpers.pairwise_errors import PAIRWISE_ERRORS, SMOOTH_LOSSES, compare_pairwise_error
from tests.helpers.training import ROOT

CPU = torch.device("cpu")


def run(operator):
    """Results and gradients of the operator's example."""
    arguments = OPERATORS[operator].example(300)
    results = getattr(ops, operator)(*arguments)
    results = results if isinstance(results, tuple) else (results,)
    leaves = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]
    gradients = torch.autograd.grad(sum(r.square().sum() for r in results), leaves)
    return [r.detach() for r in results] + list(gradients)


@pytest.mark.parametrize("operator", OPERATORS)
def test_all_backends_agree(operator):
    results = []
    for name in _backend.BACKENDS:
        with ops.set_backend(name):
            assert ops.backend() == name
            results.append(run(operator))
    for others in results[1:]:
        for mine, theirs in zip(results[0], others, strict=True):
            assert_near(mine, theirs)


def test_the_backend_is_what_it_was_behind_a_block():
    before = _backend._chosen
    with ops.set_backend("reference"):
        with pytest.raises(ZeroDivisionError), ops.set_backend("torch"):
            raise ZeroDivisionError
        assert ops.backend() == "reference"
    assert _backend._chosen == before


@pytest.mark.parametrize("call", [
    lambda: ops.set_backend("cuda"),
    lambda: ops.set_backend(1),
])  # fmt: skip
def test_unknown_backends(call):
    with pytest.raises(_backend.BackendError, match="must be one of extension, torch, reference"):
        call()


def test_other_devices_have_no_extension():
    with ops.set_backend(None):
        assert ops.backend("mps") == ops.backend("xpu") == "torch"
    with ops.set_backend("extension"), pytest.raises(_backend.BackendError, match="for mps"):
        ops.backend("mps")


def test_an_extension_without_cuda(monkeypatch):
    monkeypatch.setattr(_backend, "HAS_CUDA", False)
    with ops.set_backend(None):
        assert ops.backend("cuda:1") == "torch"
    assert "built without CUDA" in _backend.why_no_extension(torch.device("cuda"))


@pytest.mark.parametrize("name", [
    "elementwise_iou", "elementwise_iou_backward", "pairwise_iou", "pairwise_iou_backward",
    "smooth_error", "soft_rank", "soft_rank_backward", "step_error", "weighted_rows",
])  # fmt: skip
def test_schemas_are_those_of_the_extension(name):
    schemas = [
        str(getattr(getattr(torch.ops, namespace), name).default._schema).partition("::")[2]
        for namespace in _transforms.NAMESPACES.values()
    ]
    # C++'s names of results have no counterpart where Python has none.
    assert len({re.sub(r" -> .*", "", schema) for schema in schemas}) == 1


def test_one_warning_says_why(monkeypatch):
    monkeypatch.setattr(_backend, "_has_warned", False)
    monkeypatch.setattr(_backend, "extension", None)
    monkeypatch.setattr(_backend, "WHY_NOT", "it is on holiday")
    with ops.set_backend(None), pytest.warns(UserWarning, match="on cpu: it is on holiday") as said:
        assert ops.backend() == "torch"
        run("soft_rank")
        run("step_error")
    assert len(said) == 1 and "\n" not in str(said[0].message)
    monkeypatch.setattr(_backend, "_has_warned", False)
    with ops.set_backend("torch"), warnings.catch_warnings():
        warnings.simplefilter("error")
        run("soft_rank")


@pytest.mark.parametrize("loss", SMOOTH_LOSSES[::3], ids=str)
@pytest.mark.parametrize("lam, delta", [(8.0, 0.5), (50.0, 60.0)])
def test_series_without_pairs_one_by_one(monkeypatch, loss, lam, delta):
    """Which few samples are not computed with."""
    monkeypatch.setattr(smooth_error, "FEW_PAIRS", 0)
    monkeypatch.setattr(lower_ious, "FEW", 0)
    with ops.set_backend("torch"):
        for size in ((1, 1), (5, 0), (2, 3), (40, 500)):
            for scale in (1.0, 1000.0):
                inputs = samples(*size, scale=scale, ties=scale == 1)
                compare_pairwise_error(PAIRWISE_ERRORS["smooth_error"], *inputs, loss, lam, delta)


def test_chunks_change_nothing(monkeypatch):
    """Of samples, and of what positives look up."""

    def results():
        inputs = samples(60, 9000)
        return [
            error.run(error.function, *inputs, loss)[0]
            for error in PAIRWISE_ERRORS.values() for loss in error.losses
        ]  # fmt: skip

    with ops.set_backend("torch"):
        expected = results()
        for module in ("sums", "step_sums", "cells"):
            monkeypatch.setattr(f"corrdet.ops.pure.{module}.CHUNK", 2048)
        monkeypatch.setattr("corrdet.ops.pure.cells.LOOKED_UP", 1000)
        monkeypatch.setattr("corrdet.ops.pure.pairs.CHUNK", 1000)
        for mine, theirs in zip(results(), expected, strict=True):
            assert_near(mine, theirs)


def test_a_device_without_float64(monkeypatch):
    """As Apple's GPUs: sums are in float32 there, and less exact."""
    monkeypatch.setattr(sums, "_has_float64", lambda device: False)
    with ops.set_backend("torch"):
        for error in PAIRWISE_ERRORS.values():
            for loss in error.losses:
                logits, labels, ious = samples(40, 2000, dtype=torch.float32)
                inputs = logits, labels, ious.float(), loss
                actual = error.run(error.function, *inputs)
                expected = error.run(error.twin, *inputs)
                for mine, theirs in zip(actual, expected, strict=True):
                    assert_near(mine, theirs, 1e-3)
        values = torch.randn(500, generator=torch.Generator().manual_seed(0))
        assert_near(ops.soft_rank(values, 0.1), ops.reference.soft_rank(values, 0.1), 1e-4)


LOSSES = """
import sys, torch
import corrdet.losses as losses
from corrdet import ops
logits = torch.linspace(-2, 2, 40).requires_grad_()
labels = (torch.arange(40) % 5 == 0).long()
ious = torch.linspace(0.1, 0.9, 8)
total = losses.ap_loss(logits, labels) + losses.ape_loss(logits, labels, ious)
total = total + losses.correlation_loss(logits[labels == 1], ious, "spearman")
total.backward()
assert logits.grad.isfinite().all()
print(ops.backend(), f"{total.item():.5f}", "detectron2" in sys.modules)
"""


@pytest.fixture
def elsewhere(tmp_path):
    """A function that runs a script on a copy of the package, with what is given as ``_C``."""
    shutil.copytree(
        ROOT / "corrdet", tmp_path / "corrdet", ignore=shutil.ignore_patterns("_C*", "__pycache__")
    )

    def run_script(name="", content=b"", script=LOSSES, **variables):
        for old in (tmp_path / "corrdet").glob("_C*"):
            old.unlink()
        if name:
            (tmp_path / "corrdet" / name).write_bytes(content)
        environment = {k: v for k, v in os.environ.items() if k != _backend.VARIABLE}
        environment |= {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", **variables}
        return subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, text=True,
            capture_output=True,
        )  # fmt: skip

    return run_script


SUFFIX = f".{sys.implementation.cache_tag}-x86_64-linux-gnu.so"
MARK = b"corrdet built with torch "


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("", b"", "it is not built"),
        ("_C.abi3.so", MARK + b"1.2.3\0", "built with torch 1.2.3, but this is torch"),
        ("_C.abi3.so", MARK + torch.__version__.encode() + b"\0", "does not load"),
    ],
    ids=["missing", "other_torch", "broken_file"],
)
def test_losses_work_without_the_extension(elsewhere, name, content, reason):
    finished = elsewhere(name, content)
    assert finished.returncode == 0, finished.stderr
    told = [line for line in finished.stderr.splitlines() if "UserWarning" in line]
    assert len(told) == 1 and reason in told[0]
    backend, value, has_detectron2 = finished.stdout.split()
    assert backend == "torch" and has_detectron2 == "False"
    with ops.set_backend("extension"):
        scope = {}
        exec(compile(LOSSES, "losses", "exec"), scope)  # noqa: S102
    assert float(value) == pytest.approx(scope["total"].item(), abs=2e-5)


@pytest.mark.slow
def test_the_environment_variable(elsewhere):
    finished = elsewhere(CORRDET_BACKEND="torch")
    assert finished.stdout.startswith("torch") and finished.stderr == ""
    finished = elsewhere(CORRDET_BACKEND="extension")
    assert finished.returncode == 1
    expected = "extension cannot be used on cpu: it is not built"
    assert expected in finished.stderr.splitlines()[-1]


def test_a_wrong_environment_variable(monkeypatch):
    monkeypatch.setattr(_backend, "_chosen", "cuda")  # as it is read
    expected = "CORRDET_BACKEND must be one of extension, torch, reference, got 'cuda'"
    with pytest.raises(_backend.BackendError, match=expected):
        run("soft_rank")


def test_the_environment_report_names_the_backend(monkeypatch):
    assert ("corrdet.ops on cpu", ops.backend()) in env._extension()
    monkeypatch.setattr(_backend, "extension", None)
    monkeypatch.setattr(_backend, "WHY_NOT", "it is on holiday")
    with ops.set_backend(None):
        reason = "torch, as corrdet._C cannot be used: it is on holiday"
        assert ("corrdet.ops on cpu", reason) in env._extension()
