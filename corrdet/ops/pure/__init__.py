"""The operators in PyTorch's own operations: what runs where there is no extension for a device.

Exact and near-linear as the kernels are, in the same memory, and by the same algorithms where these
can be said in tensors: sorting, searching and prefix sums in place of loops. A module for each
operator registers it as ``torch.ops.corrdet_torch.<name>``, with the schema of
``torch.ops.corrdet.<name>``. No call names a device.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
