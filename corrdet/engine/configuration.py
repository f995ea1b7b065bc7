"""Reading configurations: safely, and with messages that name what is wrong."""

import argparse
import importlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import cloudpickle
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
)
from detectron2.utils.file_io import PathManager

from corrdet.config_keys import add_declared_keys, check_keys
from corrdet.data.augmentation import check_input
from corrdet.data.keypoints import check_keypoint_keys
from corrdet.data.proposals import check_proposal_files, check_proposal_pickles
from corrdet.data.register import register_from_config
from corrdet.data.turning import check_turning
from corrdet.errors import ConfigError, CorrdetError
from corrdet.modeling import check_detector
from corrdet.modeling.backbones.freezing import check_freezing
from corrdet.names import config_value, function_of, unknown_name

from .checkpoint import has_begun
from .config_files import check_config_file
from .model_ranges import check_network
from .pictures import check_pictures
from .ranges import check_channels, check_ranges
from .schedule import check_lr_scheduler
from .torchvision_weights import PREFIX, check_torchvision_address
from .weights import split_weights

_REGISTRIES = (
    ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY),
    ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY),
    ("MODEL.ANCHOR_GENERATOR.NAME", ANCHOR_GENERATOR_REGISTRY),
)
# Sections that every run reads; those of a detector are read by that detector only.
_SECTIONS = (
    "DATALOADER",
    "DATASETS",
    "INPUT",
    "INPUT.CROP",
    "MODEL",
    "MODEL_EMA",
    "SOLVER",
    "SOLVER.EARLY_STOPPING",
    "TEST",
    "TEST.BEST_CHECKPOINT",
)


def load_config(args: argparse.Namespace) -> CfgNode:
    """The configuration of a command line: defaults, then the file, then ``KEY VALUE`` overrides.

    Args:
        args: with Detectron2's ``config_file`` and ``opts``.

    Returns:
        a frozen config with Detectron2's and corrdet's keys; ``DATASETS.REGISTER`` is registered.

    Raises:
        ConfigError: no such file, YAML that would run code, an unknown key or name, a value of the
            wrong type, losses or options that the model cannot be trained with, input that
            cannot be made.
    """
    cfg = get_cfg()
    add_declared_keys(cfg)
    cfg = _MergingNode(cfg)
    if args.config_file:
        _merge(cfg, args.config_file, lambda: check_config_file(args.config_file, cfg))
        _merge(cfg, args.config_file, lambda: cfg.merge_from_file(args.config_file, False))
    if len(args.opts) % 2:
        raise ConfigError(
            f"overrides come as KEY VALUE pairs, got an odd number of words: {' '.join(args.opts)}"
        )
    _merge(cfg, "the command line", lambda: cfg.merge_from_list(args.opts))
    cfg = CfgNode(cfg)
    check_keys(cfg, *_SECTIONS)
    check_ranges(cfg)
    register_from_config(cfg.DATASETS.REGISTER)
    check_names(cfg)
    check_detector(cfg)
    check_network(cfg)
    check_input(cfg)
    check_keypoint_keys(cfg)
    check_turning(cfg)
    cfg.freeze()
    return cfg


def import_modules(modules: Iterable[str]) -> None:
    """Import users' modules, which register losses, models or data sets.

    They are named on the command line and never in a config: reading a config runs no code.

    Args:
        modules: names, found as ``python -m`` finds them, or paths of ``.py`` files.

    Raises:
        ConfigError: there is no such module or file.
    """
    for module in modules:
        if module.endswith(".py"):
            _import_file(module)
            continue
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # a module that the user's imports
            raise ConfigError(f"--import: no module named {module!r}") from error


def _import_file(path: str) -> None:
    name = "corrdet_import_" + re.sub(r"\W", "_", os.path.abspath(path))
    if name in sys.modules:
        return
    if not os.path.isfile(path):
        raise ConfigError(f"--import: no file {path!r}")
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    # Loaders' workers that are not forked know no such name: what they get of it comes whole.
    cloudpickle.register_pickle_by_value(module)


def check_gpus(num_gpus: int) -> None:
    """
    Raises:
        ConfigError: a distributed training on more GPUs than this machine has.
    """
    if num_gpus > 1 and num_gpus > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus is {num_gpus}, but torch sees {torch.cuda.device_count()} CUDA GPU(s): "
            "MODEL.DEVICE cpu trains with as many processes on CPUs"
        )


def check_run(
    cfg: CfgNode,
    *,
    eval_only: bool = False,
    resume: bool = False,
    trainer: type[DefaultTrainer] = DefaultTrainer,
) -> None:
    """Look for what a run needs on this machine, so that it fails before it starts.

    Args:
        cfg: see :func:`load_config`.
        eval_only: whether it only evaluates.
        resume: whether it goes on with the checkpoint in ``OUTPUT_DIR``, where there is one.
        trainer: what trains. One with a ``build_lr_scheduler`` of its own knows the names of its
            schedulers itself.

    Raises:
        ConfigError: no GPU, no weights, no file of annotations or proposals, a scheduler that there
            is not, stages frozen at random weights, or pictures without OpenCV.
    """
    _check_device(cfg.MODEL.DEVICE)
    goes_on = resume and has_begun(cfg.OUTPUT_DIR)
    if not goes_on:
        if eval_only and not cfg.MODEL.WEIGHTS:
            raise ConfigError("--eval-only needs weights: MODEL.WEIGHTS path/to/model_final.pth")
        try:
            path, _ = split_weights(cfg.MODEL.WEIGHTS)
            if path.startswith(PREFIX):
                check_torchvision_address(path)
        except CorrdetError as error:
            raise ConfigError(f"MODEL.WEIGHTS: {error}") from error
    # Loaders and mappers of one's own know best how many channels they give.
    if function_of(trainer.build_train_loader).__module__.startswith(("corrdet.", "detectron2.")):
        check_channels(cfg)
    built_by = function_of(trainer.build_lr_scheduler)
    if not eval_only and built_by is function_of(DefaultTrainer.build_lr_scheduler):
        check_lr_scheduler(cfg)
    splits = ("TEST",) if eval_only else ("TRAIN", "TEST")
    for key in splits:
        for name in cfg.DATASETS[key]:
            # As plain values only: data sets that make themselves would be made by asking.
            metadata = MetadataCatalog.get(name).as_dict()
            file = metadata.get("json_file")
            if "dirname" in metadata and "split" in metadata:  # Pascal VOC
                file = os.path.join(
                    metadata["dirname"], "ImageSets", "Main", f"{metadata['split']}.txt"
                )
            if file is not None and not PathManager.isfile(file):
                raise ConfigError(
                    f"DATASETS.{key}: data set {name!r} is not on this machine: no file {file}. "
                    "Detectron2's own data sets are expected below the folder that the environment "
                    "variable DETECTRON2_DATASETS names, by default 'datasets'"
                )
    check_proposal_files(cfg, *splits)
    check_proposal_pickles(cfg, *splits)
    if not eval_only:
        check_pictures(cfg)
        check_freezing(cfg, has_weights=goes_on or bool(cfg.MODEL.WEIGHTS))


def _check_device(name: str) -> None:
    expected = "cpu, cuda, or cuda with a number such as cuda:0"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE is {name!r}: expected {expected}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ConfigError(
                f"MODEL.DEVICE is {name!r}, but torch sees no CUDA GPU: MODEL.DEVICE cpu does "
                "without"
            )
        if device.index is not None and device.index >= count:
            raise ConfigError(
                f"MODEL.DEVICE is {name!r}, but torch sees {count} CUDA GPU(s), from cuda:0 on"
            )
        return
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # RuntimeError, NotImplementedError, AssertionError by the device
        reason = str(error).split("\n")[0]
        raise ConfigError(
            f"MODEL.DEVICE is {name!r}, on which torch computes nothing here ({reason}): expected "
            f"{expected}"
        ) from error


def check_output(folder: str) -> None:
    """Make the output folder, and see that a file can be written there.

    Args:
        folder: ``OUTPUT_DIR``; addresses such as s3://... are not checked.

    Raises:
        ConfigError: it cannot.
    """
    if "://" in folder:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_DIR is {folder!r}, into which nothing can be written "
            f"({error.strerror or error}): expected a folder, or a path for one"
        ) from error


def check_names(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: the config names a model, backbone, anchor generator or data set that does not
            exist; the message has the nearest one that does.
    """
    for key, registry in _REGISTRIES:
        name = config_value(cfg, key)
        if name not in registry:
            raise ConfigError(f"{key}: " + unknown_name("name", name, dict(iter(registry))))
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog.list():
                raise ConfigError(
                    f"DATASETS.{key}: "
                    + unknown_name("data set", name, DatasetCatalog.list())
                    + " (one's own are named in DATASETS.REGISTER)"
                )


class _MergingNode(CfgNode):
    """Takes an integer where yacs insists on a number with a decimal point."""

    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        _make_floats(cfg_other, self)
        super().merge_from_other_cfg(cfg_other)

    def merge_from_list(self, cfg_list: list) -> None:
        converted = list(cfg_list)
        for index in range(0, len(converted), 2):
            try:
                expected = config_value(self, converted[index])
            except (KeyError, TypeError):
                continue  # reported by the base class
            converted[index + 1] = _as_float(converted[index + 1], expected)
        super().merge_from_list(converted)


def _make_floats(given: dict, expected: Mapping) -> None:
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(expected.get(key), Mapping):
            _make_floats(value, expected[key])
        else:
            given[key] = _as_float(value, expected.get(key))


def _as_float(value: Any, expected: Any) -> Any:
    decoded = CfgNode._decode_cfg_value(value)
    return float(decoded) if type(expected) is float and type(decoded) is int else value


def _explain_mismatch(message: str, cfg: CfgNode) -> str:
    """yacs' message about a type, in words; any other message as it is."""
    match = re.fullmatch(
        r"Type mismatch \(.* vs\. <class '(\w+)'>\) with values \(.* vs\. (.*)\) "
        r"for config key: (\S+)",
        message,
        re.DOTALL,
    )
    if match is None:
        return message
    given_type, given, key = match.groups()
    expected = config_value(cfg, key)
    if isinstance(expected, tuple | list):
        element = repr(given) if given_type == "str" else given
        wanted = f'a tuple such as "({element},)"'
    elif isinstance(expected, Mapping):
        wanted = f"keys below it, such as {key}.{next(iter(expected), 'KEY')}"
    elif isinstance(expected, bool):
        wanted = "True or False"
    elif isinstance(expected, int):
        wanted = f"an integer such as {expected}"
    elif isinstance(expected, float):
        wanted = f"a number such as {expected}"
    else:
        wanted = f"a text such as {expected!r}"
    got = f"the text {given!r}" if given_type == "str" else given
    return f"{key}: expected {wanted}, got {got}"


def _merge(cfg: CfgNode, source: str, merge) -> None:
    try:
        merge()
    except ConfigError:
        raise
    except KeyError as error:
        # yacs: "Non-existent config key: MODEL.CRITERIA"
        key = str(error.args[0]).rsplit(": ", 1)[-1]
        raise ConfigError(f"{source}: " + unknown_name("config key", key, _keys(cfg))) from error
    except (AssertionError, ValueError) as error:
        # merge_from_list only asserts that a key exists: "Non-existent key: MODEL.CRITERIA.NAME"
        message = _explain_mismatch(str(error), cfg)
        if "Non-existent key" in message:
            message = unknown_name("config key", message.rsplit(": ", 1)[-1], _keys(cfg))
        raise ConfigError(f"{source}: {message}") from error


def _keys(node: Mapping, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
