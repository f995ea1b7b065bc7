"""Losses that make a detector's classification score tell how good its box is, for Detectron2.

Importing this package registers its meta-architectures and data sets with Detectron2. The losses
(:mod:`corrdet.losses`) and operators (:mod:`corrdet.ops`) need PyTorch only.
"""

import warnings
from importlib.util import find_spec

from .config import add_corrdet_config

__version__ = "0.1.0"
__all__ = ["add_corrdet_config"]

if find_spec("detectron2") is not None:
    try:
        from . import data, modeling  # noqa: F401  (imported for what they register)
    except ImportError as error:
        # Not an error yet: `python -m corrdet.env` must still be able to say what is wrong.
        # Whatever needs the missing part raises this again.
        warnings.warn(f"corrdet has registered nothing with Detectron2: {error}", stacklevel=2)
