"""What a report was made of: when, by which version and command, of which files."""

import hashlib
import os
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone

import corrdet
from corrdet.coco.messages import printable
from corrdet.files import reading


def provenance(paths: Sequence[str | os.PathLike], arguments: Sequence[str]) -> dict:
    """For JSON: date (UTC), version, command, and path, bytes and SHA-256 of each file.

    Args:
        paths: of the files that were read.
        arguments: of the command.

    Raises:
        ReadError: a file cannot be read.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": corrdet.__version__,
        "command": printable(shlex.join(["python", "-m", "corrdet.analysis", *arguments])),
        "files": [_file(path) for path in paths],
    }


def _file(path: str | os.PathLike) -> dict:
    with reading(), open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
        if digest is None:  # Python 3.10
            digest = hashlib.sha256()
            while part := file.read(1 << 20):
                digest.update(part)
        size = file.tell()
    return {"path": printable(os.fspath(path)), "bytes": size, "sha256": digest.hexdigest()}
