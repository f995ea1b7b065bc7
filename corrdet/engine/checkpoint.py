"""Checkpoints that are never half-written, and never run code when they are loaded."""

import os
from collections.abc import Callable
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from corrdet.arrays_only import read_array_pickle
from corrdet.errors import CorrdetError
from corrdet.files import atomic_write


class CheckpointError(CorrdetError, ValueError):
    """A file of weights that cannot be used."""


class WeightsReadError(CorrdetError, OSError):
    """A file of weights cannot be read."""


class MissingWeightsError(WeightsReadError, FileNotFoundError):
    """There is no file of weights."""


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic saving and weights-only loading.

    It reads the same files as Detectron2's: its own ``.pth``, the model zoo's ``.pkl``, Caffe2's
    ``.pkl`` and pycls' ``.pyth``.
    """

    _match_by_name = False
    # Called with what is in a file and its path, before anything of it is loaded.
    check: Callable[[dict[str, Any], str], None] | None = None

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """As the base class; a reader sees the file in full or not at all.

        Args:
            name: of the file, without its suffix.
            tag: whether it is what a training is resumed from.
            kwargs: what is saved beside the checkpoint's own.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **kwargs}
        for key, checkpointable in self.checkpointables.items():
            data[key] = checkpointable.state_dict()
        basename = f"{name}.pth"
        path = os.path.join(self.save_dir, basename)
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_write(path, "wb") as file:
            torch.save(data, file)
        if tag:
            self.tag_last_checkpoint(basename)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint"), "w") as file:
            file.write(last_filename_basename)

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """As the base class.

        Raises:
            MissingWeightsError: no such file.
            CheckpointError: not a checkpoint, or one that would run code when loaded.
        """
        path, self._match_by_name = split_weights(path)
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        data = self._read_file(filename)
        if self.check is not None:
            self.check(data, filename)
        return data

    def _read_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            data = load_array_pickle(filename)
            if "model" in data and "__author__" in data:
                return data
            blobs = data.get("blobs", data)
            weights = {key: value for key, value in blobs.items() if not key.endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        data = load_tensors(filename)
        if filename.endswith(".pyth"):
            weights = {
                key: value
                for key, value in data["model_state"].items()
                if not key.endswith("num_batches_tracked")
            }
            return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        if "model" not in data:
            data = {"model": data}
        if self._match_by_name:
            data["matching_heuristics"] = True
        return data


class StrictCheckpointer(SafeCheckpointer):
    """Refuses weights of another model: for evaluation and export, where nothing is trained."""

    def _log_incompatible_keys(self, incompatible) -> None:
        """
        Raises:
            CheckpointError: parameters or buffers are missing or of another shape. The state of
                losses, which is neither, may be.
        """
        names = {*dict(self.model.named_parameters()), *dict(self.model.named_buffers())}
        wrong = [name for name, *_ in incompatible.incorrect_shapes]
        wrong += [name for name in incompatible.missing_keys if name in names]
        if wrong:
            raise CheckpointError(
                f"the weights are of another model: {len(wrong)} parameters are missing or have "
                f"another shape, {wrong[0]} among them"
            )
        super()._log_incompatible_keys(incompatible)


def load_tensors(path: str) -> dict[str, Any]:
    """Read a dictionary that ``torch.save`` wrote, if it holds nothing that could run code.

    Args:
        path: a ``.pth`` file.

    Raises:
        WeightsReadError: it cannot be read.
        CheckpointError: anything else is in the file, or it is damaged.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsReadError(f"{path} was not read: {error}") from error
    except Exception as error:  # damaged files make torch raise nearly anything
        # Without torch's own words, which advise to load it in the way that runs code.
        raise CheckpointError(
            f"{path} was not loaded: it is damaged or no file of weights, or it holds other "
            f"objects, which could run code on this machine. ({type(error).__name__})"
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path} holds a {type(data).__name__}, expected a dictionary of weights"
        )
    return data


def split_weights(path: str | None) -> tuple[str, bool]:
    """Where weights are, and whether they are matched with the model's by similar names.

    Later versions of Detectron2 than 0.6 have this option, behind a "?".

    Args:
        path: as in ``MODEL.WEIGHTS``, for example ``weights.pth?matching_heuristics=True``.

    Raises:
        MissingWeightsError: no such file.
        CheckpointError: another option.
    """
    path, _, query = (path or "").partition("?")
    if query not in ("", "matching_heuristics=True"):
        raise CheckpointError(
            f"unknown option {query!r} of weights, expected matching_heuristics=True"
        )
    if path and "://" not in path and not os.path.isfile(path):
        raise MissingWeightsError(
            f"no weights at {path!r}; expected a .pth or .pkl file or an address such as "
            "detectron2://..."
        )
    return path, bool(query)


def load_array_pickle(path: str) -> dict[str, Any]:
    """Read a pickle of nothing but plain containers, strings, numbers and numpy arrays.

    Args:
        path: a ``.pkl`` file such as those of Detectron2's and Caffe2's model zoos.

    Returns:
        the dictionary in the file.

    Raises:
        WeightsReadError: it cannot be read.
        CheckpointError: anything else is in the file, or it is damaged.
    """
    try:
        with open(path, "rb") as file:
            data = read_array_pickle(file)
    except OSError as error:
        raise WeightsReadError(f"{path} was not read: {error}") from error
    except Exception as error:  # damaged files make pickle raise nearly anything
        raise CheckpointError(f"{path} was not loaded: {error or type(error).__name__}") from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path} holds a {type(data).__name__}, expected a dictionary of weights"
        )
    return data
