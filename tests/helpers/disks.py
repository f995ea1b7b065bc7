"""A disk that is full, really."""

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = 300_000


@contextmanager
def small_disk(folder: Path, size: int, left: int) -> Iterator[Callable[[], None] | None]:
    """In the block, a folder is a file system on which a few bytes are left.

    Yields:
        None; without the right to make one a ``preexec_fn`` of subprocess that limits the size of
        files to LIMIT.
    """
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield _limit_files
        return
    try:
        if left < size:
            (folder / "other").write_bytes(bytes(size - left))
        yield None
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
