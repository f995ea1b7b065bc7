"""Data sets, and the way from files to batches.

Importing this registers ``digits_train``, ``digits_val``, ``neon_trees_train``, ``neon_trees_val``.

- :mod:`~corrdet.data.digits`, :mod:`~corrdet.data.neon_trees`: data sets that make themselves on
  first use.
- :mod:`~corrdet.data.voc`: Pascal VOC XML to COCO; also ``python -m corrdet.data.voc``.
- :mod:`~corrdet.data.register`: users' COCO files, named in the config.
- :mod:`~corrdet.data.checks`: what is wrong with annotations before training finds out;
  :mod:`~corrdet.data.image_checks`: the same of image files, :mod:`~corrdet.data.keypoints`: of
  keypoints.
- :mod:`~corrdet.data.augmentation`: augmentation as in SSD.
- :mod:`~corrdet.data.dataset`: a config's data sets, loaded, checked and joined.
- :mod:`~corrdet.data.mapper`, :mod:`~corrdet.data.loader`: samples, and batches that survive a
  restart.
"""

import sys
from importlib.util import find_spec

from corrdet.files import atomic_write, datasets_root

__all__ = ["atomic_write", "datasets_root"]

# Files and the VOC converter do without Detectron2. Python says "-m" for as long as it is on its
# way to the module of `python -m corrdet.data.voc`, which would wait seconds for nothing.
if sys.argv[:1] != ["-m"] and find_spec("detectron2") is not None:
    from .checks import AnnotationError, check_dataset
    from .dataset import DatasetTypeError, EmptyDatasetError, load_dataset, training_dicts
    from .digits import prepare_digits, register_digits
    from .image_checks import ImageReadError, filter_unreadable
    from .loader import ResumableLoader, build_train_loader
    from .mapper import CorrdetDatasetMapper, ImageSizeError
    from .neon_trees import prepare_neon_trees, register_neon_trees
    from .register import RegistrationError, register_from_config

    __all__ += [
        "AnnotationError",
        "CorrdetDatasetMapper",
        "DatasetTypeError",
        "EmptyDatasetError",
        "ImageReadError",
        "ImageSizeError",
        "RegistrationError",
        "ResumableLoader",
        "build_train_loader",
        "check_dataset",
        "filter_unreadable",
        "load_dataset",
        "prepare_digits",
        "prepare_neon_trees",
        "register_digits",
        "register_from_config",
        "register_neon_trees",
        "training_dicts",
    ]

    register_digits()
    register_neon_trees()
