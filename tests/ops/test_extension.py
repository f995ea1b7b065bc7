"""What a user is told when the extension is missing, of another torch, or without CUDA."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch

import corrdet
from corrdet.ops import _checks, _extension


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
    with pytest.raises(ImportError, match=r"is not built.*pip install -e \."):
        _extension.load()


def test_built_with_another_torch(monkeypatch, tmp_path):
    library = tmp_path / "_C.so"
    library.write_bytes(b"\x7fELF\0corrdet built with torch 1.2.3+cpu\0")
    monkeypatch.setattr(_extension, "find_spec", lambda name: SimpleNamespace(origin=str(library)))
    expected = f"torch 1.2.3+cpu, but this is torch {torch.__version__}.*pip install -e"
    with pytest.raises(ImportError, match=expected.replace("+", r"\+")):
        _extension.load()


def test_does_not_load(monkeypatch, tmp_path):
    # As with an undefined symbol: the file says the right version, and the import fails.
    library = tmp_path / "_C.so"
    library.write_bytes(b"corrdet built with torch " + torch.__version__.encode() + b"\0")
    monkeypatch.setattr(_extension, "find_spec", lambda name: SimpleNamespace(origin=str(library)))
    monkeypatch.delattr(corrdet, "_C")
    monkeypatch.setitem(sys.modules, "corrdet._C", None)
    with pytest.raises(ImportError, match="does not load: .* and this is torch .*pip install"):
        _extension.load()


def test_cuda_tensor_without_cuda(monkeypatch):
    monkeypatch.setattr(_checks, "HAS_CUDA", False)
    tensor = SimpleNamespace(device=torch.device("cuda", 1))
    with pytest.raises(RuntimeError, match="on cuda:1, but corrdet was built without CUDA.*nvcc"):
        _checks.check_device("boxes1", tensor)


def test_unsupported_device():
    tensor = SimpleNamespace(device=torch.device("mps"))
    with pytest.raises(ValueError, match="must be on a CPU or CUDA device, got mps"):
        _checks.check_device("values", tensor)
