"""Files of weights: read without running code, and what is wrong with them in one line."""

import io
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from corrdet.arrays_only import NUMPY_NUMBERS, named_objects, read_array_pickle
from corrdet.errors import CorrdetError
from corrdet.names import kind_of

# Under which checkpoints of others keep their weights: Detectron2 and corrdet, then mmdetection and
# Lightning, pycls, and what tutorials do.
WEIGHTS_KEYS = ("model", "state_dict", "model_state", "model_state_dict", "module", "net")


class CheckpointError(CorrdetError, ValueError):
    """A file of weights that cannot be used."""


class WeightsReadError(CorrdetError, OSError):
    """A file of weights cannot be read."""


class MissingWeightsError(WeightsReadError, FileNotFoundError):
    """There is no file of weights."""


def split_weights(path: str | None) -> tuple[str, bool]:
    """Where weights are, and whether they are matched with the model's by similar names.

    Later versions of Detectron2 than 0.6 have this option, behind a "?".

    Args:
        path: as in ``MODEL.WEIGHTS``, for example ``weights.pth?matching_heuristics=True``.

    Raises:
        MissingWeightsError: no such file.
        CheckpointError: another option; or a file that begins as no weights do.
    """
    path, _, query = (path or "").partition("?")
    if query not in ("", "matching_heuristics=True"):
        raise CheckpointError(
            f"unknown option {query!r} of weights, expected matching_heuristics=True"
        )
    if path and "://" not in path:
        if not os.path.isfile(path):
            raise MissingWeightsError(_missing(path))
        check_begin(path)
    return path, bool(query)


def _missing(path: str) -> str:
    expected = "expected a .pth, .pkl or .safetensors file or an address such as detectron2://..."
    if os.path.isdir(path):
        files = sorted(f for f in os.listdir(path) if f.endswith((".pth", ".pkl", ".safetensors")))
        listed = ", ".join(files[:3])
        more = f"; in it: {listed}" if listed else ""
        return f"no weights at {path!r}, which is a folder; {expected}{more}"
    folder, name = os.path.split(path)
    if not os.path.isdir(folder or "."):
        return f"no weights at {path!r}, as there is no folder {folder!r}; {expected}"
    near = get_close_matches(name, os.listdir(folder or "."), n=1)
    hint = f"; did you mean {os.path.join(folder, near[0])!r}?" if near else ""
    return f"no weights at {path!r}; {expected}{hint}"


def check_begin(path: str) -> None:
    """
    Raises:
        WeightsReadError: the file cannot be read.
        CheckpointError: it is empty, or begins as what often stands in the place of weights.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(200)
    except OSError as error:
        raise WeightsReadError(f"{path} was not read: {error}") from error
    reason = None
    if path.endswith(".safetensors") and begin[8:9] == b"{":
        return  # behind its length, which can be any bytes
    begin = begin.lstrip()
    if not begin:
        reason = "it is empty: its download or copy has failed"
    elif begin.startswith(b"version https://git-lfs"):
        reason = "it is the pointer that Git LFS has in the place of a file: git lfs pull gets it"
    elif begin[:1] == b"<":
        reason = "it is a web page or XML: the address of the file itself is another"
    elif begin.startswith(b"\x1f\x8b"):
        reason = "it is compressed by gzip: unpack it"
    elif begin.startswith(b"{"):
        reason = "it is JSON: weights in several files are not read, merge them into one"
    if reason:
        raise CheckpointError(f"{path} was not loaded: {reason}")


def read_weights(path: str) -> dict[str, Any]:
    """A file as a dictionary, by its suffix.

    Args:
        path: ``.safetensors``: weights alone; ``.pkl``: see :func:`load_array_pickle`; all others:
            see :func:`load_tensors`.

    Raises:
        WeightsReadError: it cannot be read.
        CheckpointError: it is damaged, or holds what could run code.
    """
    check_begin(path)
    if path.endswith(".safetensors"):
        return load_safetensors(path)
    return load_array_pickle(path) if path.endswith(".pkl") else load_tensors(path)


def load_tensors(path: str) -> dict[str, Any]:
    """Read a dictionary that ``torch.save`` wrote, if it holds nothing that could run code.

    Beside tensors there may be plain data, and numbers of numpy.

    Args:
        path: a ``.pth`` file. The checksums in it are tested; files of PyTorch before 1.6 have
            none.

    Raises:
        WeightsReadError: it cannot be read.
        CheckpointError: anything else is in the file, or it is damaged.
    """
    try:
        check_sums(path)
        with _numbers_of_numpy():
            data = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise WeightsReadError(f"{path} was not read: {error}") from error
    except Exception as error:  # damaged files make torch raise nearly anything
        # Without torch's own words, which advise to load it in the way that runs code.
        found = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        if found:
            raise CheckpointError(_foreign(path, found[1])) from error
        raise CheckpointError(
            f"{path} was not loaded: it is damaged or no file of weights, or it holds other "
            f"objects, which could run code on this machine. ({type(error).__name__})"
        ) from error
    return _dictionary(path, data)


def _numbers_of_numpy() -> AbstractContextManager:
    """Where files of tensors may hold numbers of numpy, such as a best AP: since PyTorch 2.6."""
    try:
        return torch.serialization.safe_globals([*NUMPY_NUMBERS])
    except AttributeError:
        return nullcontext()


def check_sums(path: str) -> None:
    """Read a checkpoint in PyTorch's zip format, and compare its parts with their checksums.

    ``torch.load`` does not: a flipped bit gives another weight without a word. Other files have no
    checksums. A file of 800 MB takes about 0.6 s.

    Raises:
        CheckpointError: a part is damaged.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
        try:
            with zipfile.ZipFile(file) as archive:
                # Written with torch.serialization.set_crc32_options(False), all sums are 0.
                has_sums = any(part.CRC for part in archive.infolist())
                if any(part.compress_type for part in archive.infolist()):
                    raise CheckpointError(
                        f"{path} was not loaded: it is a compressed archive: unpack it, and give "
                        "the file in it"
                    )
                damaged = archive.testzip() if has_sums else None
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise CheckpointError(
                f"{path} was not loaded: it is damaged, perhaps its download or copy was cut off "
                f"({error})"
            ) from error
    if damaged:
        raise CheckpointError(
            f"{path} was not loaded: it is damaged, as the checksum of {damaged} in it says"
        )


def load_safetensors(path: str) -> dict[str, torch.Tensor]:
    """Tensors by name; the metadata are of no meaning here.

    Raises:
        WeightsReadError: it cannot be read.
        CheckpointError: it is damaged.
    """
    try:
        return load_file(path)
    except OSError as error:
        raise WeightsReadError(f"{path} was not read: {error}") from error
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} was not loaded: it is damaged or no file of safetensors ({error})"
        ) from error


def load_array_pickle(path: str) -> dict[str, Any]:
    """Read a pickle of nothing but plain containers, strings, numbers and numpy arrays.

    Args:
        path: a ``.pkl`` file such as those of Detectron2's and Caffe2's model zoos.

    Returns:
        the dictionary in the file.

    Raises:
        WeightsReadError: it cannot be read.
        CheckpointError: anything else is in the file, or it is damaged.
    """
    try:
        with open(path, "rb") as file:
            data = read_array_pickle(file)
    except OSError as error:
        raise WeightsReadError(f"{path} was not read: {error}") from error
    except Exception as error:  # damaged files make pickle raise nearly anything
        found = re.match(r"it holds (\S+\.\S+), which could", str(error))
        if found:
            raise CheckpointError(_foreign(path, found[1])) from error
        raise CheckpointError(f"{path} was not loaded: {error or type(error).__name__}") from error
    return _dictionary(path, data)


def _dictionary(path: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {kind_of(data)}, expected a dictionary of weights")
    return data


def _foreign(path: str, name: str) -> str:
    """What to say of a file that holds an object of another class; with the remedy."""
    try:
        with open(path, "rb") as file:
            places = _places(file)
    except Exception:  # what cannot be looked through is refused all the same
        places = {}
    # Python 2's names are those that the file has; PyTorch says what they have become.
    place = next((p for n, p in places.items() if n.split(".")[-1] == name.split(".")[-1]), "")
    where = f" under {place!r}" if place else ""
    weights = "w.state_dict()" if name in places and not place else "w"
    for key in WEIGHTS_KEYS:
        if any(p == key or p.startswith(f"{key}.") for p in places.values()):
            weights = f"w[{key!r}]"
            break
    reader = "torch.load(f, weights_only=False)"
    if path.endswith(".pkl"):
        reader = "pickle.load(f, encoding='latin1')"
    remedy = (
        f"import pickle, torch; f = open({path!r}, 'rb'); w = {reader}; "
        f"torch.save({{k: torch.as_tensor(v) for k, v in {weights}.items()}}, 'tensors.pth')"
    )
    return (
        f"{path} was not loaded: it holds {name}{where}, which could run code on this machine. "
        "Ask for a file of tensors only; or make one, where its code may run and if you trust "
        f'whoever made it: python -c "{remedy}"'
    )


def _places(file: BinaryIO) -> Mapping[str, str]:
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        return named_objects(file)
    with zipfile.ZipFile(file) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        return named_objects(io.BytesIO(archive.read(name)))
