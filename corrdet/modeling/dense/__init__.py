"""Detectors of one stage: RetinaNet, FCOS, FoveaBox, ATSS, PAA.

A detector is a module of this folder: it is registered by being here.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
