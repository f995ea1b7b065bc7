"""The operators, a module each, found by listing this folder. A module has

- the operator, a function of the module's name: it checks its arguments and calls the kernel;
- ``reference``, its twin in plain PyTorch, obvious and slow: the specification;
- ``example(size, seed=0)``: arguments of a call, and of ``torch.ops.corrdet.<name>``, for the tests
  and benchmarks of all operators;
- the fake kernel and the derivative, registered with PyTorch.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

OPERATORS: dict[str, ModuleType] = {
    module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)
}
