"""Pickles of arrays: what a stranger's file holds is a value or an error, and nothing is run."""

import argparse
import io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from corrdet.arrays_only import named_objects, read_array_pickle


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def read(content, protocol=4):
    return read_array_pickle(io.BytesIO(pickle.dumps(content, protocol)))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_and_arrays_of_every_protocol(protocol):
    shared = [1, 2.5, None, True, "é", b"\xff", b"", 1 << 70]
    content = {
        "weights": OrderedDict(big=np.arange(6, dtype=">f4").reshape(2, 3), none=np.zeros((0, 2))),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "text": np.array(["ab", "c"]),
        "numbers": (np.int64(4), np.bool_(True), np.float32(0.5)),
        "shared": [shared, shared],
    }
    loaded = read(content, protocol)
    assert type(loaded["weights"]) is OrderedDict
    assert loaded["weights"]["big"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert loaded["weights"]["none"].shape == (0, 2)
    assert loaded["fortran"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert loaded["text"].tolist() == ["ab", "c"]
    assert loaded["numbers"] == (4, True, 0.5)
    assert loaded["shared"] == [shared, shared]
    assert loaded["shared"][0] is loaded["shared"][1]
    loaded["fortran"][0, 0] = 7  # torch warns of arrays that it cannot write to


def test_python_2():
    # The protocol that Caffe2's model zoo has, with bytes that are no ASCII.
    state = (
        b"(I1\n(I2\ntp3\ncnumpy\ndtype\np4\n(S'f4'\nI0\nI1\ntp5\nRp6\n(I3\nS'<'\nNNNI-1\nI-1\nI0\n"
    )
    state += b"tp7\nbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x80\\xbf'\np8\ntp9\nb."
    array = b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntS'b'\ntp2\nR"
    assert read_array_pickle(io.BytesIO(array + state)).tolist() == [1, -1]


EMPTY = np.empty(0).__reduce__()[0]
PLAIN, OBJECTS = np.dtype("f8"), np.dtype("O")


def with_state(*state):
    return Call(EMPTY, np.ndarray, (0,), b"b", state=state)


@pytest.mark.parametrize(
    "content, message",
    [
        (Call(np.ndarray, (1,), OBJECTS, b"A" * 8), "type 'O8', expected plain numbers"),
        (np.array([None, 3], dtype=object), "type 'O8'"),
        (np.zeros(2, dtype=[("a", "f4"), ("b", "O")]), "type 'V12'"),
        (np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]), "type 'V8'"),
        (np.zeros(2, dtype="M8[s]"), "type 'M8'"),
        (
            with_state(
                1, (1,), Call(np.dtype, "f8", False, True, state=(3, "|", (OBJECTS, (1,)), None,
                None, 8, 8, 63)), False, b"A" * 8,
            ),
            "type 'O8'|structured type",
        ),
        (
            with_state(
                1, (1,), Call(np.dtype, "f8", False, True, state=(3, "|", None, ("a",),
                {"a": (PLAIN, 0)}, 8, 8, 63)), False, b"A" * 8,
            ),
            "structured type",
        ),
        (with_state(1, (2,), PLAIN, False, b"A" * 8), r"\(2,\) of float64 of 8 bytes: .*damaged"),
        (with_state(1, (1 << 62, 4), PLAIN, False, b""), "of 0 bytes"),
        (with_state(1, (-1,), PLAIN, False, b"A" * 8), r"the shape \(-1,\)"),
        (with_state(1, (1,), "f8", False, b"A" * 8), "without a type"),
        (with_state(1, (1,), PLAIN, False, [1.0]), "an array of a list"),
        (Call(EMPTY, np.ndarray, (1 << 40,), b"b"), "another class or shape"),
        (Call(np.ndarray, (1 << 40,)), "no function of arrays"),
        (Call(np.float32(0).__reduce__()[0], OBJECTS, b"A" * 8), "type 'O8'"),
        ([{(1, 2): 3}], "a tuple as a key"),
        ({1, 2}, "could run code"),
        (Call(OrderedDict, [[(1, 2), 3]]), "a tuple as a key"),
        (Call(os.getcwd), "posix.getcwd, which could run code"),
        (argparse.Namespace(a=1), "argparse.Namespace|copyreg"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_refused(content, message):
    for protocol in (2, 4):
        with pytest.raises(pickle.UnpicklingError, match=message):
            read(content, protocol)


def test_the_state_of_what_may_be_called_cannot_be_set():
    # A function with other defaults would be another for whoever calls it next.
    code = b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__Ns\x86b."
    with pytest.raises(pickle.UnpicklingError, match="sets the state of a"):
        read_array_pickle(io.BytesIO(code))


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x04]r\xff\xff\xff\xff.",  # a memo of 4 billion entries
        b"\x80\x05\x96" + b"\xff\xff\xff\xff\x01\x00\x00\x00.",  # 8 GB of zeros
        b"\x80\x04\x8e" + b"\xff\xff\xff\xff\x01\x00\x00\x00.",
        b"\x80\x04\x95" + b"\xff\xff\xff\xff\x01\x00\x00\x00.",
        b"\x80\x04" + b")" + b"\x85" * 300_000 + b"}\x94h\x00N.",  # deeper than any stack
        b"\x80\x04C\xff" + b"A" * 255 + b"\x940(" + b"c_codecs\nencode\nX\x00\x00\x00\x00\x86R" * 9,
    ],
)
def test_memory_is_bounded_by_the_file(code, tmp_path):
    (tmp_path / "bomb.pkl").write_bytes(code)
    limited = (
        "import resource, sys\n"
        "from corrdet.arrays_only import read_array_pickle\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "try:\n"
        "    read_array_pickle(open(sys.argv[1], 'rb'))\n"
        "except MemoryError:\n"
        "    raise\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
    )
    command = [sys.executable, "-c", limited, str(tmp_path / "bomb.pkl")]
    done = subprocess.run(command, capture_output=True, timeout=60, env=one_thread())
    assert done.returncode == 0, done.stderr.decode()


def test_no_more_arrays_than_bytes():
    data = b"A" * 8000
    content = [with_state(1, (1000,), PLAIN, False, data) for _ in range(10)]
    with pytest.raises(pickle.UnpicklingError, match="larger arrays than bytes"):
        read(content)


FUZZ = """
import io, pickle, random, resource, sys, warnings
from collections import OrderedDict
import numpy as np
from corrdet.arrays_only import named_objects, read_array_pickle

warnings.simplefilter("ignore")

class Call:
    def __init__(self, *parts):
        self.parts = parts[0], parts[1:]
    def __reduce__(self):
        return self.parts

import os
weights = OrderedDict(a=np.arange(6, dtype="f4"), b=np.ones((2, 2)), c=np.array(["x", "y"]))
contents = [
    {"model": weights, "iteration": np.int64(3), "list": [1, 2.5, "text", b"bytes", (None, True)]},
    {"objects": np.array([None, "a"], dtype=object), "parts": np.zeros(2, dtype="f4,O")},
    {"trap": Call(os.mkdir, sys.argv[1])},
    {"trap": Call(np.ndarray, (1,), np.dtype("O"), b"A" * 8)},
    [Call(eval, "open('trap', 'w')"), np.zeros((3, 0)), {"a": {"b": {"c": np.float32(3)}}}],
]
seeds = [pickle.dumps(c, protocol) for c in contents for protocol in (0, 2, 4, 5)]
opcodes = [getattr(pickle, name)[0] for name in dir(pickle) if name.isupper()
           and isinstance(getattr(pickle, name), bytes) and len(getattr(pickle, name)) == 1]

b"a".decode("raw_unicode_escape")  # imported now, not when the first file needs it

def forbidden(event, arguments):
    if event.startswith(("os.", "subprocess", "exec", "compile", "open", "ctypes")):
        sys.stderr.write(f"called: {event} {arguments}\\n")
        os._exit(3)

sys.addaudithook(forbidden)
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
draw = random.Random(int(sys.argv[2]))
values = errors = 0
for _ in range(int(sys.argv[3])):
    code = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(code)) if code else 0
        kind = draw.randrange(6)
        if kind == 0 and code:
            code[place] = draw.randrange(256)
        elif kind == 1:
            code.insert(place, draw.choice(opcodes))
        elif kind == 2:
            del code[place : place + draw.choice((1, 2, 8))]
        elif kind == 3:
            other = draw.choice(seeds)
            start = draw.randrange(len(other))
            code[place:place] = other[start : start + draw.choice((2, 8, 40))]
        elif kind == 4 and code:
            code[place] ^= 1 << draw.randrange(8)
        else:
            code[place : place + 4] = draw.choice((b"\\xff\\xff\\xff\\xff", b"\\0\\0\\0\\x7f"))
    for read in (read_array_pickle, named_objects):
        try:
            read(io.BytesIO(bytes(code)))
            values += 1
        except MemoryError:
            raise
        except Exception:
            errors += 1
print(values, errors)
"""


def one_thread() -> dict:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def fuzz(tmp_path, seed, count) -> tuple[int, int]:
    arguments = [sys.executable, "-c", FUZZ, str(tmp_path / "trap"), str(seed), str(count)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=one_thread() |
        {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not os.listdir(tmp_path)
    values, errors = map(int, done.stdout.split())
    return values, errors


def test_mutated_files_give_a_value_or_an_error(tmp_path):
    values, errors = fuzz(tmp_path, seed=0, count=6000)
    assert values > 500 and errors > 3000  # neither all intact nor all cut short


class TestNamedObjects:
    def test_they_are_named_with_the_keys_that_lead_to_them(self):
        content = {
            "model": {"weight": torch.zeros(2), "n": np.float64(2)},
            "trainer": {"hooks": [{"args": argparse.Namespace(lr=0.1)}]},
        }
        found = named_objects(io.BytesIO(pickle.dumps(content, 2)))
        assert found["argparse.Namespace"] == "trainer.hooks.args"
        assert found["torch._utils._rebuild_tensor_v2"] == "model.weight"

    @pytest.mark.parametrize("protocol", range(6))
    def test_nothing_is_run(self, tmp_path, protocol):
        trap = tmp_path / "trap"
        content = {"model": {"a": Call(os.mkdir, str(trap))}}
        found = named_objects(io.BytesIO(pickle.dumps(content, protocol)))
        assert found["posix.mkdir"] == "model.a"
        assert not trap.exists()
