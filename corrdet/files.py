"""Files and directories that are either complete or not there.

A killed process must not leave half a data set behind that the next run would take for a whole one,
and two processes that start together (one per GPU, say) must not write into each other's files.
Both follow from one rule: write beside the destination, under a temporary name, then rename.
"""

import errno
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import portalocker

from corrdet.errors import CorrdetError, WriteError

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
# Of Python's mkstemp, as atomic_write asks for it.
LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
# What only writing says: no space, a quota, a limit of sizes, read-only.
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class OtherFilesError(CorrdetError, FileExistsError):
    """A folder is to be filled that holds what was not made here."""


class ReadError(CorrdetError, OSError):
    """A file or folder that the user has named cannot be read."""


@contextmanager
def reading() -> Iterator[None]:
    """In the block, what the operating system says of files is for the user to mend.

    Raises:
        ReadError: an OSError with the same message.
    """
    try:
        yield
    except CorrdetError:
        raise
    except OSError as error:
        parts = (error.errno, error.strerror, error.filename)
        raise ReadError(*(error.args if error.filename is None else parts)) from error


def datasets_root() -> Path:
    """Folder of all data sets: ``$DETECTRON2_DATASETS``, or ``datasets``, as Detectron2 has it.

    The variable is read at every call, so that setting it after the import still counts.
    """
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w", **open_arguments: Any) -> Iterator[IO]:
    """Open a temporary file that replaces ``path`` when the block ends without an exception.

    Readers see the old file or the new one, never a part. On an exception the temporary file is
    removed and ``path`` stays as it was.

    Args:
        path: destination; its folder is created when it is missing.
        mode: ``"w"`` (UTF-8 unless ``encoding`` is given) or ``"wb"``.
        open_arguments: further arguments of :func:`open`.

    Raises:
        WriteError: no file can be made there, or the disk is full.
        ValueError: for any other mode; appending and updating cannot be atomic this way.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"atomic_write writes whole files: mode must be 'w' or 'wb', not {mode!r}")
    if mode == "w":
        open_arguments.setdefault("encoding", "utf-8")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened, temporary = temporary_file(path, mode, open_arguments)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error}") from error
    try:
        # mkstemp makes files private to the user; results are shared like any other file.
        os.chmod(temporary, 0o666 & ~_umask())
        with opened as file:
            yield file
            file.flush()
            # Without this a power failure could leave the new name on an empty file.
            os.fsync(file.fileno())
            # While the file is open, and so locked: it is no leftover yet.
            os.replace(temporary, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        if (cause := disk_error(error)) is not None:
            raise WriteError(
                f"{path} was not written: {cause.strerror}. What was there before is intact"
            ) from error
        raise


def temporary_file(path: Path, mode: str, open_arguments: dict[str, Any]) -> tuple[IO, str]:
    """An open file beside ``path``, locked until it is closed; and its name.

    :func:`remove_dead` removes it when its process has been killed.
    """
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        file = open(handle, mode, **open_arguments)
        # Some file systems have no locks: there leftovers stay.
        with suppress(OSError, portalocker.LockException):
            portalocker.lock(file, portalocker.LOCK_EX)
        if os.path.exists(name):
            return file, name
        file.close()  # somebody took it for a leftover before it was locked


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove the temporary files of processes that were killed in :func:`atomic_write`.

    Those of living processes are locked, wherever the file system has locks.

    Args:
        folder: in which they are looked for, and in the folders in it, two deep: where evaluations
            and reports of several test sets are.
    """
    places = [Path(folder), *Path(folder).glob("*/"), *Path(folder).glob("*/*/")]
    remove_dead(p for place in places if place.is_dir() for p in list(place.iterdir()))


def remove_dead(paths: Iterable[Path]) -> None:
    """Remove those files of :func:`temporary_file` whose writers are dead."""
    for path in paths:
        if not LEFTOVER.fullmatch(path.name):
            continue
        try:
            with open(path, "r+b") as file:
                portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
                path.unlink()
        except (OSError, portalocker.LockException):
            continue
        logger.info(f"removed {path}, which a process left that was killed while writing")


def disk_error(error: BaseException | None) -> OSError | None:
    """What the operating system has said of a disk that is full, behind another error perhaps.

    PyTorch's writer of checkpoints, for one, raises a RuntimeError of its own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OF_DISKS:
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def exclusive_lock(path: str | os.PathLike) -> Iterator[None]:
    """Hold the advisory lock file ``path``; wait for whoever has it.

    The operating system gives the lock back when its holder dies, so a stale file blocks nobody.
    """
    with open(path, "a") as file:
        portalocker.lock(file, portalocker.LOCK_EX)
        try:
            yield
        finally:
            portalocker.unlock(file)


def prepare_directory(
    directory: str | os.PathLike,
    identity: Mapping[str, Any],
    build: Callable[[Path], None],
) -> Path:
    """Return ``directory``, filled by ``build`` if it is missing, outdated or damaged.

    ``build`` works in a temporary sibling folder, which is renamed when it is complete and has its
    manifest: ``identity`` and the listing of what was made. A directory counts as good if its
    manifest names the same identity and its files are still those of the listing. Safe against
    kills at any moment and against any number of processes on one machine: one builds, the others
    wait.

    Args:
        directory: where the result shall be.
        identity: JSON-serializable; name, version and whatever else the content depends on.
        build: called with an empty folder to fill.

    Returns:
        ``directory`` as a path.

    Raises:
        OtherFilesError: ``directory`` holds files that were not made here; they are left alone.
        WriteError: the parent folder cannot be written.
    """
    directory = Path(directory)
    if _is_good(directory, identity):
        return directory
    parent = directory.absolute().parent
    with ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(parent / f".{directory.name}.lock"))
        except OSError as error:
            raise WriteError(
                f"cannot write to {parent}, where the data set {directory.name!r} is to be made: "
                f"{error}. "
                "Set the environment variable DETECTRON2_DATASETS to a folder that can be written."
            ) from error
        if _is_good(directory, identity):  # somebody else made it while this process waited
            return directory
        prefix = f".{directory.name}.tmp-"
        for leftover in parent.glob(f"{prefix}*"):  # of killed processes: the lock is ours
            shutil.rmtree(leftover, ignore_errors=True)
        if directory.exists():
            if any(directory.iterdir()) and not (directory / MANIFEST_NAME).is_file():
                raise OtherFilesError(
                    f"{directory} exists and was not made by corrdet (it has no {MANIFEST_NAME}). "
                    "Move it away, or set DETECTRON2_DATASETS to another folder."
                )
            logger.warning(f"{directory} is outdated or damaged and is made again.")
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            made = temporary / "made"
            made.mkdir()
            build(made)
            manifest = {"identity": dict(identity), "contents": _listing(made)}
            with atomic_write(made / MANIFEST_NAME) as file:
                json.dump(manifest, file, indent=1, sort_keys=True)
            if directory.exists():
                os.rename(directory, temporary / "replaced")
            os.rename(made, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _listing(directory: Path) -> dict[str, int]:
    """Size in bytes of each JSON file, number of files in each folder of anything else.

    Enough to notice a deleted image or a truncated annotation file, and quick for thousands of
    files.
    """
    listing: dict[str, int] = {}
    for folder, _, names in os.walk(directory):
        relative = Path(folder).relative_to(directory)
        for name in names:
            if name == MANIFEST_NAME and folder == str(directory):
                continue
            if name.endswith(".json"):
                listing[(relative / name).as_posix()] = os.path.getsize(os.path.join(folder, name))
            else:
                key = f"{relative.as_posix()}/*"
                listing[key] = listing.get(key, 0) + 1
    return listing


def _is_good(directory: Path, identity: Mapping[str, Any]) -> bool:
    try:
        manifest = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # Through JSON and back: tuples become lists, as they did in the file.
    expected = json.loads(json.dumps(dict(identity)))
    return (
        isinstance(manifest, dict)
        and manifest.get("identity") == expected
        and manifest.get("contents") == _listing(directory)
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
