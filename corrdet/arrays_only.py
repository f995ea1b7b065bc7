"""Pickles of plain containers, strings, numbers and numpy arrays, read without running code.

Python's own reader calls what a file names, and numpy's arrays take from a file what their bytes
are: a few of them as pointers crash the interpreter. Here the opcodes that plain data need are
interpreted, and no others; of numpy only arrays and numbers of plain types are made, of as many
bytes as the file has. So a file of a stranger gives a value or an error, in memory and time in
proportion to its size.
"""

import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from corrdet.names import kind_of

# Booleans, integers, floating-point and complex numbers, and texts of a stated length.
_PLAIN_TYPE = re.compile(r"[<>=|]?(\?|b1|[iu][1248]|f[248]|f16|c8|c16|[SU]\d{1,9})")
_KEYS = str | int | float | bytes | None
# What plain data are written with, by Python 2 as well.
_OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG "
    "LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
    "BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST APPEND "
    "APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT "
    "LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
).split()


def read_array_pickle(file: BinaryIO, admitted: Mapping[tuple[str, str], Callable] = {}) -> Any:
    """
    Args:
        file: such as a ``.pkl`` of Detectron2's and Caffe2's model zoos; it can be sought in.
        admitted: (module, name) -> what is called in its place, beside what arrays need.

    Returns:
        what is in the file.

    Raises:
        pickle.UnpicklingError: it holds anything else.
        Exception: damaged files make the reader raise nearly anything.
    """
    return _Reader(file, admitted).load()


def named_objects(file: BinaryIO) -> dict[str, str]:
    """The classes and functions that a pickle names, found without making anything of them.

    Args:
        file: a pickle, as in a ``.pkl`` file or a checkpoint of PyTorch.

    Returns:
        module and name, ``argparse.Namespace`` -> keys that lead to its first use, such as
        ``trainer.args``; an empty text where it is the whole content. In the order of the keys.

    Raises:
        Exception: damaged files make the reader raise nearly anything.
    """
    found: dict[str, str] = {}
    for path, value in _walk(_Scanner(file, {}).load()):
        if isinstance(value, _Foreign):
            found.setdefault(value.name, path)
    return found


def _walk(content: Any) -> Iterator[tuple[str, Any]]:
    waiting, seen = [("", content)], set()
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if isinstance(value, dict | list | tuple | _Foreign):
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, dict):
                below = [(f"{path}.{key}".lstrip("."), part) for key, part in value.items()]
            else:
                below = [(path, p) for p in getattr(value, "parts", value)]
            waiting.extend(reversed(below))


class _BoundedFile:
    """A file of which no more is asked than it has: lengths in it are anybody's."""

    def __init__(self, file: BinaryIO):
        self._file = file
        start = file.tell()
        self.size = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > self.size:
            raise EOFError("it ends before its content does")
        return self._file.read(count)


class _Type:
    """In the place of a numpy dtype, of which the state could be nonsense."""

    def __init__(self, text: Any, *_: Any):
        # What objects' bytes are is an address; parts of a structure could be objects.
        if not isinstance(text, str) or not _PLAIN_TYPE.fullmatch(text):
            raise pickle.UnpicklingError(f"arrays of the type {text!r}, expected plain numbers")
        self.dtype = np.dtype(text)

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(p is not None for p in state[2:5]):
            raise pickle.UnpicklingError("arrays of a structured type, expected plain numbers")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class NumberType(_Type):
    """:class:`_Type` of numbers alone, for readers that call ``__setstate__``, as PyTorch's."""

    def __init__(self, text: Any, *_: Any):
        super().__init__(text)
        if self.dtype.kind not in "biufc":
            raise pickle.UnpicklingError(f"a value of the type {text!r}, expected a number")

    __setstate__ = _Type.set_state


def read_number(kind: NumberType, data: bytes) -> np.generic:
    """In the place of what numpy stores its numbers by."""
    if type(kind) is not NumberType or type(data) is not bytes:
        raise pickle.UnpicklingError("a number without a type, or of no bytes")
    (number,) = np.frombuffer(data, kind.dtype)
    return number


# For torch.serialization.safe_globals: (what is called, the name in the file).
NUMPY_NUMBERS = (
    (NumberType, "numpy.dtype"),
    (read_number, "numpy.core.multiarray.scalar"),
    (read_number, "numpy._core.multiarray.scalar"),
)


class _Reader(pickle._Unpickler):  # type: ignore[name-defined]
    """In Python, as the one in C can be made to fill the memory, by a number in ten bytes."""

    def __init__(self, file: BinaryIO, admitted: Mapping[tuple[str, str], Callable]):
        self._bounded = _BoundedFile(file)
        super().__init__(self._bounded, encoding="latin1")
        # Bytes of one place in the file could be made into any number of arrays. Of protocol 2,
        # those of an array are made from a text first.
        self._left = 2 * self._bounded.size
        functions = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _Type,
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): self._encode_latin1,
            ("__builtin__", "bytes"): _no_bytes,
        }
        for core in ("numpy.core", "numpy._core"):  # versions 1 and 2
            functions[f"{core}.multiarray", "_reconstruct"] = _empty_array
            functions[f"{core}.multiarray", "scalar"] = self._scalar
            functions[f"{core}.numeric", "_frombuffer"] = self._from_buffer
        self._functions = {**functions, **admitted}

    dispatch = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]  # type: ignore
        for name in _OPCODES
    }

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            # Of the opcodes; the error of a memo that lacks something is an UnpicklingError.
            raise pickle.UnpicklingError(
                f"it holds objects, which could run code on this machine, or is damaged ({error})"
            ) from None

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._functions[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, which could run code on this machine; only arrays are "
                "read from .pkl files"
            ) from None

    def _load_bytearray8(self) -> None:
        (length,) = np.frombuffer(self.read(8), "<u8").tolist()
        self.append(bytearray(self.read(length)))

    def _load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        # OrderedDict would take pairs, from objects with methods of their own.
        is_known = any(function == known for known in self._functions.values())
        if not is_known or function is np.ndarray or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls what is no function of arrays")
        if function is OrderedDict:
            arguments = [_pairs(*arguments)] if arguments else []
        self.stack[-1] = function(*arguments)

    def _load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Type):
            target.set_state(state)
        elif isinstance(target, np.ndarray):
            *_, shape, kind, is_fortran, data = state
            data = self._bytes_for(data, kind, _checked_shape(shape))
            # In place, as other places of the file may refer to the array already.
            target.__setstate__((1, shape, kind.dtype, bool(is_fortran), data))
        elif not isinstance(target, OrderedDict):  # whose state is PyTorch's _metadata
            raise pickle.UnpicklingError(f"it sets the state of {kind_of(target)}")

    def _load_setitem(self) -> None:
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def _load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError(f"it sets the items of {kind_of(target)}")
        target.update(_pairs(zip(items[::2], items[1::2], strict=True)))

    for _name in ("bytearray8", "reduce", "build", "setitem", "setitems", "dict"):
        dispatch[getattr(pickle, _name.upper())[0]] = locals()[f"_load_{_name}"]

    # ---- What files may call.

    def _encode_latin1(self, text: str, encoding: str) -> bytes:
        """Protocol 2 stores bytes so; the codec is fixed, as others could decompress bombs."""
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}, expected latin1")
        return self._spent(text.encode("latin1"))

    def _scalar(self, kind: _Type, data: Any) -> Any:
        return np.frombuffer(self._bytes_for(data, kind, ()), kind.dtype)[0]

    def _from_buffer(self, data: Any, kind: _Type, shape: Any, order: str) -> np.ndarray:
        data = self._bytes_for(data, kind, _checked_shape(shape))
        if not kind.dtype.itemsize:
            raise pickle.UnpicklingError("an array of nothing")
        return np.frombuffer(bytearray(data), kind.dtype).reshape(shape, order=order)

    def _bytes_for(self, data: Any, kind: Any, shape: tuple) -> bytes | bytearray:
        if not isinstance(kind, _Type):
            raise pickle.UnpicklingError("an array without a type")
        data = data.encode("latin1") if isinstance(data, str) else data  # of Python 2
        if not isinstance(data, bytes | bytearray):
            raise pickle.UnpicklingError(f"an array of {kind_of(data)}, expected bytes")
        if len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise pickle.UnpicklingError(
                f"an array {shape} of {kind.dtype} of {len(data)} bytes: it is damaged"
            )
        return self._spent(data)

    def _spent(self, data: Any) -> Any:
        self._left -= len(data)
        if self._left < 0:
            raise pickle.UnpicklingError("it has larger arrays than bytes")
        return data


def _no_bytes() -> bytes:
    """What protocol 2 stores empty bytes as; with an argument, bytes() could fill the memory."""
    return b""


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """What numpy stores arrays as, before their state."""
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise pickle.UnpicklingError("an array of another class or shape than numpy writes")
    return np.empty(0)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n for n in shape):
        raise pickle.UnpicklingError(f"an array of the shape {shape!r}")
    return shape


def _pairs(items: Any) -> dict:
    """Hashes of tuples of tuples of ... can exceed the stack of the interpreter."""
    pairs = []
    for key, value in items:
        if not isinstance(key, _KEYS):
            raise pickle.UnpicklingError(f"{kind_of(key)} as a key, expected a text")
        pairs.append((key, value))
    return dict(pairs)


class _Foreign:
    """In the place of a class, a function, or what would have been made with it."""

    def __init__(self, name: str, parts: tuple = ()):
        self.name, self.parts = name, parts


class _Scanner(_Reader):
    """Makes nothing, and takes note of what it would have been."""

    dispatch = {**_Reader.dispatch}

    def find_class(self, module: str, name: str) -> Any:
        return _Foreign(f"{module}.{name}")

    def _load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Foreign):
            function = _Foreign("")
        if function.name == "collections.OrderedDict":
            pairs = arguments[0] if arguments else []
            self.append({str(pair[0]): pair[1] for pair in pairs})
        else:
            self.append(_Foreign(function.name, (arguments,)))

    def _load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Foreign):
            target.parts += (state,)

    def _set_items(self, items: list) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update({str(k)[:80]: v for k, v in zip(items[::2], items[1::2])})  # noqa: B905
        elif isinstance(self.stack[-1], _Foreign):
            self.stack[-1].parts += (items,)

    def _load_appends(self) -> None:
        items = self.pop_mark()
        self._append_all(items)

    def _load_append(self) -> None:
        self._append_all([self.stack.pop()])

    def _append_all(self, items: list) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif isinstance(self.stack[-1], _Foreign):
            self.stack[-1].parts += (items,)

    def _load_newobj_ex(self) -> None:
        self.stack.pop()
        self._load_reduce()

    def _load_persid(self) -> None:  # of tensors: their bytes are elsewhere in the file
        self.readline()
        self.append(_Foreign(""))

    def _load_binpersid(self) -> None:
        self.stack[-1] = _Foreign("")

    def _load_set(self) -> None:
        self.append([])

    def _load_frozenset(self) -> None:
        self.append(self.pop_mark())

    for _code, _function in (
        (pickle.REDUCE, _load_reduce),
        (pickle.NEWOBJ, _load_reduce),
        (pickle.NEWOBJ_EX, _load_newobj_ex),
        (pickle.BUILD, _load_build),
        (pickle.APPEND, _load_append),
        (pickle.APPENDS, _load_appends),
        (pickle.PERSID, _load_persid),
        (pickle.BINPERSID, _load_binpersid),
        (pickle.EMPTY_SET, _load_set),
        (pickle.ADDITEMS, _load_appends),
        (pickle.FROZENSET, _load_frozenset),
    ):
        dispatch[_code[0]] = _function
