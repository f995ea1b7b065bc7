"""Checkpoints that are never half-written, and never run code when they are loaded."""

import logging
import os
import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from corrdet.errors import CorrdetError
from corrdet.files import atomic_write, remove_leftovers

from .converters import convert, find_converter, without_common_prefix
from .starting_weights import StartingWeights
from .weight_names import (
    check_enough,
    check_kinds,
    other_shapes,
    summary,
    table,
    weights_in,
    without_prefix,
)
from .weights import (
    CheckpointError,
    MissingWeightsError,
    WeightsReadError,
    read_weights,
    split_weights,
)

# What a training saves to go on from; not model_best, which may be of any time.
_TO_GO_ON_FROM = re.compile(r"model_(\d+|final)\.pth")

logger = logging.getLogger(__name__)


class BrokenWeightsError(CorrdetError, FloatingPointError):
    """The weights of a model are not finite, and so nothing to keep."""


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic saving and weights-only loading.

    It reads the same files as Detectron2's: its own ``.pth``, the model zoo's ``.pkl``, Caffe2's
    ``.pkl`` and pycls' ``.pyth``; and ``.safetensors``, and the checkpoints of mmdetection and
    Lightning, as far as their names are the model's.
    """

    _match_by_name = False
    # Of --resume, where the last checkpoint is damaged.
    _older: tuple[str, ...] = ()
    # What of weights is taken that a training starts from, not those that it goes on from.
    starting: StartingWeights | None = None
    _is_start = False
    # Called with what is in a file and its path, before anything of it is loaded.
    check: Callable[[dict[str, Any], str], None] | None = None

    def __init__(self, model: nn.Module, save_dir: str = "", **kwargs: Any) -> None:
        """As the base class; what processes that were killed while saving left is removed."""
        super().__init__(model, save_dir, **kwargs)
        if save_dir and self.save_to_disk:
            remove_leftovers(save_dir)

    # ---- Saving.

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """As the base class; a reader sees the file in full or not at all.

        Args:
            name: of the file, without its suffix.
            tag: whether it is what a training is resumed from.
            kwargs: what is saved beside the checkpoint's own.

        Raises:
            BrokenWeightsError: see :func:`broken_weights`; nothing is written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        broken = broken_weights(self.model)
        if broken:
            more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
            raise BrokenWeightsError(
                f"{name}.pth was not saved: the weights of the model are not finite "
                f"({', '.join(broken[:3])}{more})"
            )
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

    # ---- Which file.

    def has_checkpoint(self) -> bool:
        """Whether there is a file to go on from, also if ``last_checkpoint`` is lost."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The last checkpoint: that of ``last_checkpoint``, or if it is lost the one before."""
        files = self._checkpoints()
        return files[0] if files else ""

    def _checkpoints(self) -> list[str]:
        tagged = super().get_checkpoint_file() if self.save_dir else ""
        if "://" in self.save_dir:
            return [tagged] if tagged and super().has_checkpoint() else []
        return checkpoints_in(self.save_dir, tagged)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As the base class; where the last checkpoint is lost or damaged, from the one before.

        Raises:
            MissingWeightsError: ``last_checkpoint`` names a file that is not there, nor is another.
        """
        files = self._checkpoints() if resume else []
        if resume:
            self._say_if_lost(files)
            self._older = tuple(files[1:])
        self._is_start = not files
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._older, self._is_start = (), False

    def _say_if_lost(self, files: list[str]) -> None:
        tagged = super().get_checkpoint_file() if self.save_dir else ""
        if "://" in self.save_dir or os.path.isfile(tagged) or not (tagged or files):
            return
        lost = os.path.join(self.save_dir, "last_checkpoint") + " is missing"
        if tagged:
            lost = f"{tagged}, the last checkpoint, is missing"
        if not files:
            raise MissingWeightsError(
                f"{lost}, and {self.save_dir} has no other to go on from; without --resume the "
                "training begins anew"
            )
        logger.warning("%s: %s is used", lost, files[0])

    # ---- Loading.

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """As the base class.

        Raises:
            MissingWeightsError: no such file, or an address that it cannot be had from.
            CheckpointError: not a checkpoint, one that would run code when loaded, or one of
                another model.
        """
        path, self._match_by_name = split_weights(path)
        if "://" in path:
            path = self._downloaded(path)
        return super().load(path, *args, **kwargs)

    def _downloaded(self, address: str) -> str:
        try:
            path = self.path_manager.get_local_path(address)
        except CorrdetError:
            raise
        except Exception as error:  # of many types, by the kind of address
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            raise MissingWeightsError(
                f"no weights from {address}: {reason}. Download the file by other means, and give "
                "its path"
            ) from error
        if not os.path.isfile(path):
            raise MissingWeightsError(
                f"no weights from {address}: there is no such kind of address"
            )
        return path

    def _load_file(self, filename: str) -> dict[str, Any]:
        first = None
        for file in (filename, *self._older):
            try:
                data = self._read_file(file)
                if self._older:
                    self._check_finite(data["model"], file)
                break
            except (CheckpointError, WeightsReadError) as error:
                first = first or error
        else:
            assert first is not None
            raise first
        if first is not None:
            logger.warning("%s. The checkpoint before it is used: %s", first, file)
        if self.check is not None:
            self.check(data, file)
        self._path = file
        return data

    def _check_finite(self, weights: dict[str, Any], filename: str) -> None:
        tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
        own = dict(self.model.named_parameters())
        parameters = {name: tensors.pop(name) for name in own.keys() & tensors.keys()}
        broken = _broken(parameters, tensors)
        if broken:
            raise CheckpointError(_not_finite(filename, broken))

    def _read_file(self, filename: str) -> dict[str, Any]:
        data = read_weights(filename)
        weights, key = weights_in(data.get("blobs", data), filename)
        if filename.endswith(".pkl"):
            if "model" in data and "__author__" in data:
                return {**data, "model": weights}
            weights = {k: value for k, value in weights.items() if not k.endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        if filename.endswith(".pyth"):
            weights = {
                k: value for k, value in weights.items() if not k.endswith("num_batches_tracked")
            }
            return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        # What others save beside the weights is of no use here.
        data = {**data, "model": weights} if key == "model" else {"model": weights}
        if self._match_by_name:
            data["matching_heuristics"] = True
        return data

    def _load_model(self, checkpoint: dict[str, Any]):
        """
        Raises:
            CheckpointError: see :func:`~.weight_names.check_enough`; or values that are complex and
                not the model's, or not finite.
        """
        state = self.model.state_dict()
        own = state.keys()
        checkpoint = self._converted(checkpoint, own)
        weights, prefix = without_prefix(checkpoint["model"], own, self._path)
        if self.starting is not None and self._is_start:
            weights = self.starting.chosen(weights, state, self._path)
        check_kinds(weights, state, self._path)
        theirs = list(weights)
        with other_shapes() as similar:
            incompatible = super()._load_model({**checkpoint, "model": weights})
        same = {name for name, *_ in incompatible.incorrect_shapes}
        shapes = [
            *incompatible.incorrect_shapes,
            *(found[1:] for found in similar if found[1] not in same),
        ]
        wrong = {name for name, *_ in shapes}
        # Detectron2 takes what it does not miss out of the missing ones.
        loaded = [name for name in own if name not in {*incompatible.missing_keys, *wrong}]
        check_enough(loaded, theirs, own, self._path)
        broken = sorted({*broken_weights(self.model)} & {*loaded})
        if broken:
            raise CheckpointError(_not_finite(self._path, broken))
        parts = (
            loaded,
            [name for name in incompatible.missing_keys if name not in wrong],
            [n for n in incompatible.unexpected_keys if n not in {found[0] for found in similar}],
            shapes,
        )
        behind = f", behind the prefix {prefix!r}" if prefix else ""
        level = logging.INFO if len(loaded) == len(own) else logging.WARNING
        logger.log(level, "weights of %s%s: %s", self._path, behind, summary(*parts))
        if len(loaded) < len(own):
            logger.info("part by part:\n%s", table(*parts))
        return incompatible

    def _converted(self, checkpoint: dict[str, Any], own: Collection[str]) -> dict[str, Any]:
        weights = checkpoint["model"]
        converter = find_converter(weights, own)
        if converter is None:
            weights = without_common_prefix(weights)
            converter = find_converter(weights, own)
        if converter is None:
            return checkpoint
        logger.info("%s has the names of %s, which are converted", self._path, converter.of)
        for remark in converter.remarks(self.model):
            logger.warning("%s: %s", self._path, remark)
        checkpoint = {**checkpoint, "model": convert(converter, weights, self._path)}
        if converter.is_backbone:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _log_incompatible_keys(self, incompatible) -> None:
        """Said already, and in a line."""


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


def has_begun(folder: str) -> bool:
    """Whether --resume is to go on in a folder: it has a checkpoint, or the name of a lost one.

    The checkpointer, of which :meth:`SafeCheckpointer.has_checkpoint` asks for a file, says that
    one is lost.
    """
    tag = os.path.join(folder, "last_checkpoint")
    return os.path.isfile(tag) or bool(checkpoints_in(folder))


def checkpoints_in(folder: str, tagged: str = "") -> list[str]:
    """Files that a training can go on from, the last first.

    Args:
        folder: ``OUTPUT_DIR``, on this machine.
        tagged: the one that ``last_checkpoint`` names, which comes first if it is there.
    """
    if not os.path.isdir(folder):
        return []
    paths = [os.path.join(folder, name) for name in os.listdir(folder)]
    paths = [path for path in paths if _TO_GO_ON_FROM.fullmatch(os.path.basename(path))]
    paths.sort(key=lambda path: (os.path.getmtime(path), path), reverse=True)
    if os.path.isfile(tagged):
        return [tagged, *(path for path in paths if not os.path.samefile(path, tagged))]
    return paths


def _not_finite(path: str, names: list[str]) -> str:
    return (
        f"{path}: {len(names)} of the weights in it are not finite, {names[0]} among them: of a "
        "training that has diverged, or damaged"
    )


def broken_weights(model: nn.Module) -> list[str]:
    """Names of parameters that are not finite and of buffers that are NaN; waits once for a GPU.

    Buffers may be infinite: masks of attention are.
    """
    return _broken(dict(model.named_parameters()), dict(model.named_buffers()))


def _broken(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> list[str]:
    checks = {name: value.detach().isfinite().all() for name, value in parameters.items()}
    checks.update(
        (name, ~value.isnan().any()) for name, value in buffers.items() if value.is_floating_point()
    )
    if not checks:
        return []
    device = next(iter(checks.values())).device
    good = torch.stack([check.to(device) for check in checks.values()]).tolist()
    return [name for name, is_good in zip(checks, good, strict=True) if not is_good]
