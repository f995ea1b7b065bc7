"""``MODEL.BACKBONE.FREEZE_AT``: how many of a backbone's first stages are not trained."""

from detectron2.config import CfgNode

from corrdet.errors import ConfigError
from corrdet.names import config_value
from corrdet.options import Key, Range, is_whole

# The stem and the stages res2 to res5.
STAGES = Range("a whole number in [0, 5]", lambda v: is_whole(v) and 0 <= v <= 5)
# Detectron2's that read the key; corrdet's do, all of them.
_DETECTRON2S = (
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
)
_CORRDETS = (
    "build_deformable_resnet_fpn_backbone",
    "build_mobilenet_v2_fpn_backbone",
    "build_res2net_fpn_backbone",
    "build_resnet10_fpn_backbone",
    "build_retinanet_deformable_resnet_fpn_backbone",
    "build_retinanet_mobilenet_v2_fpn_backbone",
    "build_retinanet_res2net_fpn_backbone",
    "build_retinanet_resnet10_fpn_backbone",
    "build_retinanet_torchvision_fpn_backbone",
    "build_ssd_resnet_backbone",
    "build_ssd_resnet_fpn_backbone",
    "build_torchvision_fpn_backbone",
)
READ_FREEZE_AT = (*_DETECTRON2S, *_CORRDETS)


def check_freezing(cfg: CfgNode, *, has_weights: bool) -> None:
    """Look for stages that would stay at their random weights.

    Args:
        cfg: the config of a training.
        has_weights: whether it starts from weights, or goes on with a checkpoint.

    Raises:
        ConfigError: stages are frozen without weights, or there are not so many.
    """
    name, key = cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.FREEZE_AT"
    if name not in READ_FREEZE_AT:
        return
    frozen = config_value(cfg, key)
    Key(0, STAGES).check(key, frozen)
    if frozen and not has_weights:
        raise ConfigError(
            f"{key} is {frozen}, but without MODEL.WEIGHTS the first {frozen} stage(s) of "
            f"{name} would be frozen at random weights: expected {key} 0, or weights"
        )
