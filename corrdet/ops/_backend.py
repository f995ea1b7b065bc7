"""What computes the operators: the compiled extension, PyTorch's operations, or the references."""

import os
import re
import warnings
from contextlib import AbstractContextManager

import torch

from corrdet.errors import CorrdetError

from ._extension import HAS_CUDA, WHY_NOT, extension

BACKENDS = ("extension", "torch", "reference")
VARIABLE = "CORRDET_BACKEND"
DEVICES = ("cpu", "cuda", "meta")  # those that kernels were ever written for


class BackendError(CorrdetError, RuntimeError):
    """A backend that there is not, or not here."""


def _checked(name: str | None, where: str) -> str | None:
    if name is not None and name not in BACKENDS:
        raise BackendError(f"{where} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


# Of the process, as the number of threads is. None: the extension wherever it can.
_chosen: str | None = os.environ.get(VARIABLE) or None
_has_warned = False


class set_backend(AbstractContextManager):  # noqa: N801, called as torch.set_grad_enabled is
    """Choose what computes all operators of this process; in a ``with`` block, until its end.

    The environment variable ``CORRDET_BACKEND`` chooses it from the start.

    Args:
        name: "extension", the compiled kernels, and an error where they cannot; "torch", the same
            results within rounding from PyTorch's own operations, on any device; "reference", the
            definitions, pair by pair, of which some take memory and time for each pair; or None,
            the extension wherever it can and "torch" elsewhere, as by default.

    Raises:
        BackendError: another name, or "extension" where there is none.
    """

    def __init__(self, name: str | None):
        global _chosen
        _checked(name, "the backend")
        if name == "extension" and extension is None:
            raise BackendError(f"corrdet's compiled extension cannot be used: {WHY_NOT}")
        self._before = _chosen
        _chosen = name

    def __exit__(self, *exception):
        global _chosen
        _chosen = self._before


def backend(device: str | torch.device = "cpu") -> str:
    """What computes the operators for tensors on a device.

    Returns:
        "extension", "torch" or "reference".

    Raises:
        BackendError: ``CORRDET_BACKEND`` names another, or the extension where it cannot be used.
    """
    device = torch.device(device)
    if _chosen not in (None, *BACKENDS):
        _checked(_chosen, f"the environment variable {VARIABLE}")
    if _chosen == "torch" or _chosen == "reference":
        return _chosen
    if extension is not None and device.type == "cpu":  # mostly
        return "extension"
    reason = why_no_extension(device)
    if reason and _chosen == "extension":
        raise BackendError(f"corrdet's compiled extension cannot be used on {device}: {reason}")
    return "torch" if reason else "extension"


def why_no_extension(device: torch.device) -> str:
    """Why the extension does not compute on a device, in a line; nothing where it does."""
    if device.type not in DEVICES:
        return f"there are no kernels for {device.type}"
    if extension is None:
        return WHY_NOT
    if device.type != "cuda":
        return ""
    if not HAS_CUDA:
        return (
            "it was built without CUDA: build it again with `CORRDET_CUDA=1 pip install -e .`, "
            "which needs the CUDA toolkit's nvcc and a torch with CUDA"
        )
    return _why_not_on_gpu(device.index)


def _why_not_on_gpu(index: int | None) -> str:
    built = extension.build_info()["architectures"] if extension is not None else []
    return why_not_on_architecture(torch.cuda.get_device_capability(index), built)


# As torch.compiler.assume_constant_result marks it, which imports the compiler, for seconds.
_why_not_on_gpu._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_not_on_architecture(capability: tuple[int, int], built: list[str]) -> str:
    """Why a GPU does not run what was compiled for some architectures; nothing where it does.

    Code runs on GPUs of the same major and no lower minor version, PTX on all of a later version.

    Args:
        capability: of the GPU, major and minor.
        built: architectures as in ``TORCH_CUDA_ARCH_LIST``, such as "8.0" or "9.0+PTX".
    """
    for name in built:
        match = re.match(r"(\d+)\.(\d+)([af]?)(\+PTX)?$", name)
        if match is None:  # a name, such as "Hopper": whoever gave it knows
            return ""
        version = int(match[1]), int(match[2])
        if match[3] == "a":
            if version == capability:
                return ""
        elif version <= capability and (match[4] or version[0] == capability[0]):
            return ""
    own = "{}.{}".format(*capability)
    return (
        f"it was built for GPUs of {', '.join(built)}, but this one is of {own}: build it again "
        f"with `TORCH_CUDA_ARCH_LIST={own} pip install -e .` in the folder of the source code"
    )


def warn_of_a_missing_extension(device: torch.device) -> None:
    """Say once in a process that, and why, the extension is not used where it would be faster."""
    global _has_warned
    if _has_warned or _chosen is not None or device.type not in DEVICES:
        return
    reason = why_no_extension(device)
    if reason:
        _has_warned = True
        warnings.warn(
            "corrdet computes its operators with PyTorch's operations, as its faster compiled "
            f"extension cannot be used on {device.type}: {reason}. The results are the same; "
            f"{VARIABLE}=torch in the environment chooses this without a warning.",
            stacklevel=2,
        )
