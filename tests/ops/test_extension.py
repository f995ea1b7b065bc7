"""What a user is told when the extension is missing, of another torch, or without CUDA."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import corrdet
from corrdet.ops import _backend, _extension


def test_build_info():
    info = _extension.extension.build_info()
    assert set(info) == {"torch", "compiler", "cuda", "architectures"}
    assert info["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert re.match(r"gcc|clang|msvc", info["compiler"])
    if info["cuda"] is None:
        assert info["architectures"] == []
    else:
        assert re.match(r"\d+\.\d+", info["cuda"])
        assert info["architectures"]
    assert _extension.HAS_CUDA == (info["cuda"] is not None)


def test_version_is_read_from_the_file():
    library = _extension.extension.__file__
    assert _extension.built_with_torch(library) == _extension.extension.build_info()["torch"]


def test_not_built(monkeypatch):
    monkeypatch.setattr(_extension, "find_spec", lambda name: None)
    monkeypatch.setattr(_extension.Path, "glob", lambda *arguments: iter(()))
    assert _extension.load()[0] is None
    assert re.search(r"is not built.*pip install -e \.", _extension.load()[1])


def test_built_for_another_python(monkeypatch):
    monkeypatch.setattr(_extension, "find_spec", lambda name: None)
    there = [Path("_C.cpython-38-aarch64-linux-gnu.so")]
    monkeypatch.setattr(_extension.Path, "glob", lambda *arguments: iter(there))
    module, reason = _extension.load()
    assert module is None
    assert "for another Python or system alone (_C.cpython-38-aarch64-linux-gnu.so)" in reason


def test_built_with_another_torch(monkeypatch, tmp_path):
    library = tmp_path / "_C.so"
    library.write_bytes(b"\x7fELF\0corrdet built with torch 1.2.3+cpu\0")
    monkeypatch.setattr(_extension, "find_spec", lambda name: SimpleNamespace(origin=str(library)))
    module, reason = _extension.load()
    assert module is None
    assert f"torch 1.2.3+cpu, but this is torch {torch.__version__}" in reason
    assert "pip install -e" in reason and "\n" not in reason


def test_does_not_load(monkeypatch, tmp_path):
    # As with an undefined symbol: the file says the right version, and the import fails.
    library = tmp_path / "_C.so"
    library.write_bytes(b"corrdet built with torch " + torch.__version__.encode() + b"\0")
    monkeypatch.setattr(_extension, "find_spec", lambda name: SimpleNamespace(origin=str(library)))
    monkeypatch.delattr(corrdet, "_C")
    monkeypatch.setitem(sys.modules, "corrdet._C", None)
    module, reason = _extension.load()
    assert module is None
    assert re.search("does not load .* and this is torch .*pip install", reason)


@pytest.mark.parametrize(
    "capability, built, runs",
    [
        ((8, 0), ["8.0", "9.0"], True),
        ((8, 9), ["8.0", "9.0"], True),  # code runs on later ones of its major version
        ((7, 5), ["8.0", "9.0+PTX"], False),
        ((12, 0), ["8.0", "9.0"], False),
        ((12, 0), ["8.0", "9.0+PTX"], True),
        ((9, 0), ["9.0a"], True),
        ((10, 0), ["9.0a"], False),
        ((8, 6), ["Ampere"], True),
    ],
)
def test_architectures(capability, built, runs):
    reason = _backend.why_not_on_architecture(capability, built)
    assert (reason == "") == runs
    own = "{}.{}".format(*capability)
    assert (
        runs or f"this one is of {own}: build it again with `TORCH_CUDA_ARCH_LIST={own}" in reason
    )
