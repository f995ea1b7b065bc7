"""What needs OpenCV, which an installation without dependencies lacks."""

from importlib.util import find_spec

from detectron2.config import CfgNode

from corrdet.errors import ConfigError


def check_opencv(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: pictures of the training are asked for, and OpenCV is not installed.
    """
    if cfg.VIS_PERIOD > 0 and find_spec("cv2") is None:
        raise ConfigError(
            f"VIS_PERIOD is {cfg.VIS_PERIOD}, but pictures are drawn by Detectron2's Visualizer, "
            "which needs OpenCV: pip install opencv-python-headless, or VIS_PERIOD 0"
        )
