"""The folder of a training or an evaluation, which is one's at a time."""

import errno
import fcntl
import json
import logging
import os
import socket
from contextlib import suppress
from typing import Any

from detectron2.utils import comm

from corrdet.errors import CorrdetError

from .launching import is_restarted

LOCK_NAME = ".training.lock"
# Of file systems that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class FolderInUseError(CorrdetError, RuntimeError):
    """Another training or evaluation writes into the folder."""


class OutputFolder:
    """In the block, no other run may write into a folder; all processes enter it.

    An evaluation is a run as well: its results have the names of those that a training writes.

    The operating system gives the lock back when its process ends, however that ends. It is a lock
    of the process, which the workers of its loaders do not inherit.

    Attributes:
        has_begun: whether torchrun has started the processes again in a training that had begun
            here: it goes on with its own checkpoints.
    """

    def __init__(self, folder: str, *, eval_only: bool = False):
        """
        Args:
            folder: ``OUTPUT_DIR``, made if need be; addresses such as s3://... are not locked.
            eval_only: leave what is known of the training that was here as it is.
        """
        self._folder = folder
        self._eval_only = eval_only
        self._file: Any = None
        self.has_begun = False

    def __enter__(self) -> "OutputFolder":
        """
        Raises:
            FolderInUseError: on all processes.
        """
        # torchrun counts for each machine; and a machine whose processes were well has them started
        # again, too.
        self._is_restarted = any(comm.all_gather(is_restarted()))
        answer: tuple[str | None, bool] = (None, False)
        if comm.is_main_process() and "://" not in self._folder:
            answer = self._lock()
        problem, self.has_begun = comm.all_gather(answer)[0]
        if problem is not None:
            raise FolderInUseError(problem)
        return self

    def _lock(self) -> tuple[str | None, bool]:
        path = os.path.join(self._folder, LOCK_NAME)
        os.makedirs(self._folder, exist_ok=True)
        self._file = open(path, "a+")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logging.getLogger(__name__).warning(
                    "%s is on a file system without locks: see that no other training writes there",
                    self._folder,
                )
                return None, False
            owner = self._content()
            return (
                f"OUTPUT_DIR {self._folder!r} is that of {owner.get('kind', 'a training')} that "
                f"runs (process {owner.get('process', '?')} on {owner.get('host', '?')}): expected "
                "another folder, or that it has ended",
                False,
            )
        before = self._content()
        if self._eval_only:
            self._note(**{"run": "", "begun": False, **before, "kind": "an evaluation"})
            return None, False
        has_begun = (
            self._is_restarted and before.get("run") == _run() and before.get("begun", False)
        )
        self._note(run=_run(), begun=has_begun, kind="a training")
        return None, has_begun

    def note_beginning(self) -> None:
        """The training has taken the folder: checkpoints are its own from now on."""
        if self._file is not None:
            self._note(run=_run(), begun=True, kind="a training")

    def _note(self, **content: Any) -> None:
        self._file.seek(0)
        self._file.truncate()
        json.dump({**content, "process": os.getpid(), "host": socket.gethostname()}, self._file)
        self._file.flush()

    def _content(self) -> dict[str, Any]:
        self._file.seek(0)
        with suppress(ValueError):
            content = json.load(self._file)
            return content if isinstance(content, dict) else {}
        return {}

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _run() -> str:
    """A name of torchrun's that stays when it starts the processes again."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")
