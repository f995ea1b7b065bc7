"""How often files are opened for reading."""

import builtins
import collections
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def count_opens(*paths: str) -> Iterator[dict[str, int]]:
    """In the block, counts by path how often Python opens these files for reading."""
    counts = collections.Counter()
    wanted = {os.path.realpath(path): path for path in paths}
    true_open = builtins.open

    def counting(file, mode="r", *args, **kwargs):
        if isinstance(file, str | os.PathLike) and "r" in mode:
            path = wanted.get(os.path.realpath(file))
            if path is not None:
                counts[path] += 1
        return true_open(file, mode, *args, **kwargs)

    builtins.open = io.open = counting  # pathlib's is that of io
    try:
        yield counts
    finally:
        builtins.open = io.open = true_open
