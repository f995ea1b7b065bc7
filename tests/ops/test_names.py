"""What users of the operators see: names, signatures, help."""

import inspect
import pydoc

import pytest

import corrdet.ops
from corrdet.ops import reference
from corrdet.ops.kernels import OPERATORS


def test_every_operator_is_named():
    assert reference.__all__ == sorted(OPERATORS)
    assert corrdet.ops.__all__ == sorted([*OPERATORS, "backend", "set_backend"])
    for name, module in OPERATORS.items():
        assert getattr(corrdet.ops, name) is getattr(module, name)
        assert getattr(reference, name) is module.reference


def test_dir_shows_nothing_else():
    assert dir(corrdet.ops) == sorted([*corrdet.ops.__all__, "kernels", "pure", "reference"])
    assert dir(reference) == sorted(OPERATORS)


@pytest.mark.parametrize("module", [corrdet.ops, reference])
def test_help(module):
    text = pydoc.plain(pydoc.render_doc(module))
    for name in OPERATORS:
        assert f"    {name}" in text and "FUNCTIONS" in text
    assert " at 0x" not in text


def test_type_checkers_see_signatures():
    """Names are bound by imports, as a ``__getattr__`` would be of any type."""
    for module in (corrdet.ops, reference):
        source = inspect.getsource(module)
        assert "__getattr__" not in source and "globals()" not in source
        for name in OPERATORS:
            assert f"from .kernels.{name} import " in source
