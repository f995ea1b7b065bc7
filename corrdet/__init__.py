"""Losses that make a detector's classification score tell how good its box is, for Detectron2.

Importing this package imports neither PyTorch nor Detectron2, and registers nothing.
:func:`add_corrdet_config` registers its models and data sets with Detectron2, and so does importing
:mod:`corrdet.engine`, or :mod:`corrdet.modeling` or :mod:`corrdet.data` alone. The losses
(:mod:`corrdet.losses`) and operators (:mod:`corrdet.ops`) need PyTorch only.
"""

from .config import add_corrdet_config

__version__ = "0.1.0"
__all__ = ["__version__", "add_corrdet_config"]
