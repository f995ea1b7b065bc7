#!/usr/bin/env python3
"""Install Detectron2 into the environment of the interpreter that runs this file.

Detectron2 is not on the package registry under its own name. An sdist of its release 0.6 is there
as `pb1-detectron2`: upstream's Python files, without the C++ sources that its setup.py compiles.
This installs those files as a pure-Python distribution named `detectron2`, which trains and runs
RetinaNet, Faster R-CNN and Mask R-CNN. What needs the compiled part raises an error that says so:
rotated boxes, Detectron2's own deformable convolution and its fast COCO evaluation.

An installed Detectron2 is never replaced.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

UPSTREAM = "git+https://github.com/facebookresearch/detectron2.git"

SDIST_REQUIREMENT = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# The local part tells this wheel from upstream's builds in `pip list`.
VERSION = "0.6+corrdet.pure"

# What the package imports, without upstream's upper bounds: they date from 2021 and would
# downgrade the packages that this was tested with.
REQUIREMENTS = (
    "torch",
    "torchvision",
    "numpy",
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
)

# Folders of the sdist and where upstream's setup.py puts them.
PACKAGES = {
    "detectron2/": "detectron2/",
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}

# Release 0.6 is of 2021. These names are gone from NumPy, Pillow and setuptools since.
SUBSTITUTIONS = (
    (re.compile(r"\bnp\.(bool|int|float|object|str)\b"), r"\1"),
    (re.compile(r"\bImage\.LINEAR\b"), "Image.BILINEAR"),
    (re.compile(r"\bnp\.array\((\w+), copy=False\)"), r"np.asarray(\1)"),
    (re.compile(r"^import pkg_resources\n", re.MULTILINE), ""),
    (
        re.compile(
            r"pkg_resources\.resource_filename\(\s*\"detectron2\.model_zoo\",\s*"
            r"os\.path\.join\(\"configs\", config_path\)\s*\)"
        ),
        'os.path.join(os.path.dirname(__file__), "configs", config_path)',
    ),
    # The fast COCO evaluation is compiled code, so it cannot be the default here.
    (re.compile(r"\buse_fast_impl=True,"), "use_fast_impl=False,"),
)

COMPILED_STAND_IN = f'''"""Stands in for Detectron2's compiled extension, which is not installed."""

_MESSAGE = (
    "detectron2._C.{{}} is compiled code, and this Detectron2 is the pure-Python installation made "
    "by corrdet. Rotated boxes, detectron2's own deformable convolution and COCO evaluation with "
    "use_fast_impl=True need upstream's compiled build: `pip uninstall detectron2`, then "
    "`pip install --no-build-isolation {UPSTREAM}`."
)


def get_compiler_version():
    return "none: pure-Python installation"


def get_cuda_version():
    return "none: pure-Python installation"


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")

    def missing(*args, **kwargs):
        raise NotImplementedError(_MESSAGE.format(name))

    return missing
'''


class InstallError(Exception):
    """Nothing was installed; the message says why and what to do."""


def pip(*arguments: str) -> None:
    """Run pip in this interpreter's environment, with its output shown.

    Raises:
        InstallError: pip failed. It has printed why.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command).returncode != 0:
        raise InstallError(f"`pip {' '.join(arguments)}` failed; its own message is above.")


def check_sha256(archive: Path, expected: str = SDIST_SHA256) -> None:
    """Raise InstallError unless the file has the expected SHA-256."""
    got = hashlib.sha256(archive.read_bytes()).hexdigest()
    if got != expected:
        raise InstallError(
            f"{archive.name} is not the archive that this script was written for: expected sha256 "
            f"{expected}, got {got}."
        )


def download_sdist(folder: Path) -> Path:
    """Download the sdist into `folder` and return its path.

    pip runs the sdist's setup.py to read its metadata. Given the hash it compares first, so a
    changed archive is refused before any of its code runs.

    Raises:
        InstallError: pip cannot have it, or it is not the expected file.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SDIST_REQUIREMENT} --hash=sha256:{SDIST_SHA256}\n")
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
    try:
        pip("download", *options, "--dest", str(folder), "--requirement", str(requirements))
    except InstallError as error:
        raise InstallError(
            f"Could not download {SDIST_REQUIREMENT} with sha256 {SDIST_SHA256}: pip says above "
            "what came instead. Nothing was installed. Upstream's source is the other way: "
            f"{Path(__file__).name} --source"
        ) from error
    archives = list(folder.glob("pb1*detectron2-0.6.tar.gz"))
    if len(archives) != 1:
        raise InstallError(f"pip left {[a.name for a in archives]}, expected one sdist.")
    check_sha256(archives[0])
    return archives[0]


def modernize(source: str) -> str:
    """Replace the names that NumPy, Pillow and setuptools have removed since release 0.6."""
    for pattern, replacement in SUBSTITUTIONS:
        source = pattern.sub(replacement, source)
    return source


def read_sdist(archive: Path) -> dict[str, bytes]:
    """Return the package's files by their path in the wheel, with the changes made."""
    files = {}
    with tarfile.open(archive) as sdist:
        for member in sdist.getmembers():
            if not member.isfile():
                continue
            path = member.name.split("/", 1)[1]
            content = sdist.extractfile(member).read()
            if path == "LICENSE":
                files[f"detectron2-{VERSION}.dist-info/LICENSE"] = content
            for folder, destination in PACKAGES.items():
                if path.startswith(folder):
                    if path.endswith(".py"):
                        content = modernize(content.decode()).encode()
                    files[destination + path.removeprefix(folder)] = content
    files["detectron2/_C.py"] = COMPILED_STAND_IN.encode()
    return files


def write_wheel(files: dict[str, bytes], folder: Path) -> Path:
    """Write a pure-Python wheel of `files` into `folder` and return its path."""
    info = f"detectron2-{VERSION}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: Detectron2 0.6 without its compiled extension",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "License-File: LICENSE",
        "Requires-Python: >=3.10",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
    ]
    tags = [
        "Wheel-Version: 1.0",
        "Generator: corrdet",
        "Root-Is-Purelib: true",
        "Tag: py3-none-any",
    ]
    files = dict(sorted(files.items()))
    files[f"{info}/METADATA"] = ("\n".join(metadata) + "\n").encode()
    files[f"{info}/WHEEL"] = ("\n".join(tags) + "\n").encode()
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()

    wheel = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as output:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, date_time=(2021, 10, 27, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            output.writestr(entry, content)
    return wheel


def install_pure() -> None:
    """Build the pure-Python wheel in a temporary folder and install it."""
    missing = [name for name in ("torch", "setuptools") if not importlib.util.find_spec(name)]
    if missing:
        raise InstallError(
            f"{' and '.join(missing)} must be installed first, into the environment of "
            f"{sys.executable}: pip reads the sdist's metadata with them."
        )
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        folder = Path(name)
        wheel = write_wheel(read_sdist(download_sdist(folder)), folder)
        pip("install", str(wheel))


def install_from_source(source: str) -> None:
    """Compile and install upstream's Detectron2 against this environment's torch."""
    # Upstream's setup.py imports torch, which pip's build isolation would hide.
    pip("install", "--no-build-isolation", source)


def main(arguments: list[str] | None = None) -> int:
    """Install Detectron2 unless it is there; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        metavar="URL_OR_PATH",
        nargs="?",
        const=UPSTREAM,
        help=f"compile and install upstream's source instead, by default {UPSTREAM}",
    )
    options = parser.parse_args(arguments)

    installed = importlib.util.find_spec("detectron2")
    if installed is not None:
        print(f"Detectron2 is already installed: {installed.origin}. Nothing to do.")
        return 0
    try:
        if options.source:
            install_from_source(options.source)
        else:
            install_pure()
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
