"""Pickles of plain containers, strings, numbers and numpy arrays, read without running code."""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np


def read_array_pickle(file: BinaryIO, admitted: Mapping[tuple[str, str], Callable] = {}) -> Any:
    """
    Args:
        file: such as a ``.pkl`` of Detectron2's and Caffe2's model zoos.
        admitted: (module, name) -> what is called in its place, beside what arrays need.

    Returns:
        what is in the file.

    Raises:
        pickle.UnpicklingError: it holds anything else.
        Exception: damaged files make pickle raise nearly anything.
    """
    return _ArrayUnpickler(file, admitted).load()


def _encode_latin1(text: str, encoding: str) -> bytes:
    """What protocol 2 stores bytes as; the codec is fixed, as others could decompress bombs."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}, expected latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """What protocol 2 stores empty bytes as; with an argument, bytes() could fill the memory."""
    return b""


class _ArrayUnpickler(pickle.Unpickler):
    # numpy moved its core between versions 1 and 2: files name either.
    _reconstruct = np.empty(0).__reduce__()[0]
    _scalar = np.float32(0).__reduce__()[0]
    _from_buffer = np.empty(0).__reduce_ex__(5)[0]
    _admitted = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _encode_latin1,
        ("__builtin__", "bytes"): _no_bytes,
    }
    for _core in ("numpy.core", "numpy._core"):
        _admitted[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
        _admitted[f"{_core}.multiarray", "scalar"] = _scalar
        _admitted[f"{_core}.numeric", "_frombuffer"] = _from_buffer

    def __init__(self, file: BinaryIO, admitted: Mapping[tuple[str, str], Callable]):
        super().__init__(file, encoding="latin1")
        self._all_admitted = {**self._admitted, **admitted}

    def find_class(self, module: str, name: str):
        try:
            return self._all_admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, which could run code on this machine; only arrays are "
                "read from .pkl files"
            ) from None
