"""The configuration: what corrdet adds to Detectron2's.

Stands above all rooms, as it imports them; they take :mod:`corrdet.config_keys`.
"""

from .config_keys import add_declared_keys, check_keys, declare

__all__ = ["add_corrdet_config", "check_keys", "declare"]


def add_corrdet_config(cfg) -> None:
    """Add corrdet's keys and their defaults to a Detectron2 config, in place.

    Registers corrdet's models and data sets with Detectron2, too.

    Args:
        cfg (CfgNode): the result of ``detectron2.config.get_cfg()``.
    """
    import corrdet.data
    import corrdet.engine
    import corrdet.modeling  # noqa: F401  (these declare and register)

    add_declared_keys(cfg)
