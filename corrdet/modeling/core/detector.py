"""What the rest of corrdet asks of a meta-architecture, without building a model."""

from typing import ClassVar

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

from corrdet.config_keys import check_keys
from corrdet.errors import ConfigError
from corrdet.losses import Criterion, build_criterion
from corrdet.names import config_value

from ..backbones.pyramids import check_p6
from .config_checks import check_replaced_keys, check_unset

_CRITERIA = ("MODEL.CRITERION", "MODEL.RPN_CRITERION")


class Detector:
    """A meta-architecture of corrdet, to be inherited from before ``nn.Module``.

    It has no state and builds nothing: these are facts that are known without a model.

    Attributes:
        num_classes_key: full name of the key that says how many classes are detected.
        activation_key: full name of the key that says what the activation of the class scores is;
            None where it is a sigmoid and nothing else.
        sections: of the config, those that it reads and that were declared by
            :func:`corrdet.config.declare`; their values are checked.
        replaced_keys: a node of Detectron2's, and pairs of its keys for losses and of ours below
            ``MODEL.CRITERION`` that take their place; a value of theirs that would do nothing is
            refused.
        regresses_deltas: whether losses can compare deltas, not only decoded boxes.
        has_priors: whether positives regress from boxes, of whose centres centerness is.
        has_levels: whether positives are on levels of a pyramid.
        has_image_bounds: whether ``TEST.IMAGE_BOUNDS`` can be had.
        supports_test_time_augmentation: whether views of ``TEST.AUG`` can be merged.
        exportable: whether :mod:`corrdet.modeling.deploy` can export it.
    """

    num_classes_key: ClassVar[str]
    activation_key: ClassVar[str | None] = None
    sections: ClassVar[tuple[str, ...]] = ()
    replaced_keys: ClassVar[tuple[str, tuple[tuple[str, str], ...]] | None] = None
    regresses_deltas: ClassVar[bool] = True
    has_priors: ClassVar[bool] = True
    has_levels: ClassVar[bool] = False
    has_image_bounds: ClassVar[bool] = False
    supports_test_time_augmentation: ClassVar[bool] = False
    exportable: ClassVar[bool] = False

    @classmethod
    def activation_of(cls, cfg: CfgNode) -> str:
        """The activation of the class scores: "sigmoid", or "softmax" with background."""
        return config_value(cfg, cls.activation_key) if cls.activation_key else "sigmoid"

    @classmethod
    def criterion_keys(cls, cfg: CfgNode) -> tuple[str, ...]:
        """Full names of the nodes that it takes losses from."""
        return ("MODEL.CRITERION",)

    @classmethod
    def check_values(cls, cfg: CfgNode) -> None:
        """
        Raises:
            ConfigError: a value that the detector cannot work with; the message starts with its
                key.
        """
        check_keys(cfg, *cls.sections)
        check_p6(cfg)
        if cfg.TEST.IMAGE_BOUNDS and not cls.has_image_bounds:
            raise ConfigError(
                "TEST.IMAGE_BOUNDS is for dense detectors: expected False for "
                f"{cfg.MODEL.META_ARCHITECTURE}"
            )
        if cfg.TEST.IMAGE_BOUNDS and not cfg.TEST.BETA_IMG:
            raise ConfigError(
                "TEST.IMAGE_BOUNDS True needs the ground truth at evaluation: expected "
                "TEST.BETA_IMG True, got False"
            )
        if cfg.TEST.IMAGE_BOUNDS and cls.activation_of(cfg) == "softmax":
            raise ConfigError(
                "TEST.IMAGE_BOUNDS permutes the scores of a class, which with "
                f"{cls.activation_key} 'softmax' cannot change alone: expected one of them to be "
                "False or 'sigmoid'"
            )
        if cls.replaced_keys is not None:
            theirs, keys = cls.replaced_keys
            check_replaced_keys(cfg, theirs, "MODEL.CRITERION", keys, cls.__name__)

    @classmethod
    def build_criterion(cls, cfg: CfgNode) -> Criterion:
        """The losses of ``MODEL.CRITERION``, after the detector's own values have been checked.

        Raises:
            ConfigError: as :meth:`check_values`.
            ValueError: as :func:`corrdet.losses.build_criterion`.
        """
        cls.check_values(cfg)
        return build_criterion(
            cfg,
            activation=cls.activation_of(cfg),
            has_deltas=cls.regresses_deltas,
            has_priors=cls.has_priors,
            has_levels=cls.has_levels,
            activation_key=cls.activation_key,
        )

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        """All of a config that the detector reads, its losses too; no model is built.

        Raises:
            ConfigError, ValueError: as :meth:`build_criterion`.
        """
        cls.build_criterion(cfg)


# ---- Of any registered meta-architecture.


def check_detector(cfg: CfgNode) -> None:
    """Check what a config says of the model.

    Raises:
        ConfigError: losses or values that the meta-architecture cannot work with, losses or a
            quality that it does not read, or test-time augmentation that it does not have.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = META_ARCH_REGISTRY.get(name)
    is_ours = issubclass(architecture, Detector)
    if cfg.MODEL.DENSE.QUALITY and not (is_ours and "MODEL.DENSE" in architecture.sections):
        raise ConfigError(
            f"MODEL.DENSE.QUALITY is {cfg.MODEL.DENSE.QUALITY!r}, but nothing reads it: "
            f"MODEL.META_ARCHITECTURE is {name!r}"
        )
    if is_ours:
        try:
            architecture.check_config(cfg)
        except ConfigError:
            raise
        except ValueError as error:  # of corrdet.losses
            raise ConfigError(str(error)) from error
    if cfg.MODEL.KEYPOINT_ON and is_ours and not issubclass(architecture, GeneralizedRCNN):
        raise ConfigError(
            "MODEL.KEYPOINT_ON is True, but nothing reads it: keypoints are for R-CNN, and "
            f"MODEL.META_ARCHITECTURE is {name!r}"
        )
    read = architecture.criterion_keys(cfg) if is_ours else ()
    for key in _CRITERIA:
        if key not in read:
            check_unset(cfg, key, f"MODEL.META_ARCHITECTURE is {name!r}")
    _check_test_time_augmentation(cfg)


def _check_test_time_augmentation(cfg: CfgNode) -> None:
    if not cfg.TEST.AUG.ENABLED:
        return
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = META_ARCH_REGISTRY.get(name)
    if not issubclass(architecture, GeneralizedRCNN) and not getattr(
        architecture, "supports_test_time_augmentation", False
    ):
        raise ConfigError(
            "TEST.AUG.ENABLED is for corrdet's dense detectors without masks and for R-CNN, but "
            f"MODEL.META_ARCHITECTURE is {name!r}"
        )
    if cfg.MODEL.KEYPOINT_ON:
        raise ConfigError(
            "TEST.AUG.ENABLED cannot merge keypoints: expected False with MODEL.KEYPOINT_ON True"
        )
