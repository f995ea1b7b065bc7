"""Pascal VOC annotations, one XML file per image, to one COCO file.

From the command line::

    python -m corrdet.data.voc --annotations Annotations/ --images JPEGImages/ --output voc.json

The format is that of the PASCAL Visual Object Classes Challenge's development kit (Everingham et
al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 88(2), 2010).
VOC counts pixels from 1 and its boxes contain the pixels of both corners. The box of the whole
image is (1, 1, width, height) there and (0, 0, width, height) in continuous coordinates, so 1 is
subtracted from xmin and ymin only, as Detectron2's own VOC loader does: the box (5, 5, 5, 5) is one
pixel, of width and height 1. Many tools write continuous coordinates into the same XML instead:
``zero_based`` takes the numbers as they are, and there (5, 5, 5, 5) has no area and is refused.
After that, boxes that overhang their image by up to two pixels are clipped to it and counted, as
those of converters that are off by one are; whatever overhangs by more is refused.

The ids of classes must be the same in all splits. With ``image_set`` they are those of all XML
files of the folder, whatever the split; for splits in folders of their own, ``classes`` gives them,
or ``--classes-of train.json`` takes those of a file that was converted before.
"""

import argparse
import json
import math
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from corrdet.coco import read_ground_truth
from corrdet.coco.messages import listing
from corrdet.coco.rules import OVERHANG_TOLERANCE
from corrdet.errors import CorrdetError
from corrdet.files import ReadError, atomic_write

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MAX_LISTED = 20
EXIF_ORIENTATION = 0x0112  # tag; values 5 to 8 mean that width and height are swapped
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocError(CorrdetError, ValueError):
    """The annotations cannot be converted; the message lists what is wrong, by file and object.

    ``problems``: all of them, one string each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__(
            f"{len(self.problems)} problem(s) in the VOC annotations:\n"
            f"{listing(self.problems, limit=MAX_LISTED)}\n"
            "Correct them, or leave out what is bad: --skip-bad on the command line, "
            'on_error="skip" in Python.'
        )


class VocFolderError(ReadError, FileNotFoundError):
    """A folder is missing, or has no XML files."""


class _BadFile(Exception):
    """A whole XML file cannot be used."""


@dataclass
class _VocImage:
    file_name: str
    width: int
    height: int
    objects: list[tuple[str, tuple[float, float, float, float], int]] = field(default_factory=list)
    clipped: int = 0


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses document type declarations.

    Annotations have none; with one come entities, which can expand a small file to gigabytes.
    """

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise _BadFile("has a document type declaration (<!DOCTYPE ...>), which is not accepted")


def convert_voc(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    *,
    classes: Sequence[str] | None = None,
    zero_based: bool = False,
    difficult: str = "crowd",
    on_error: str = "raise",
    warn: Callable[[str], None] | None = None,
    image_set: str | os.PathLike | None = None,
) -> dict:
    """Convert a folder of Pascal VOC XML files.

    Args:
        annotations: folder with the ``*.xml`` files, also in folders in it and as ``*.XML``; taken
            in the order of their paths.
        images: folder with the images. An image is looked for under the XML's ``<filename>``, then
            under the XML's own name with a usual image suffix; first in the folder that the XML's
            is called like, then in ``images`` itself.
        classes: the class names in the order of their ids, or None for those that occur in any XML
            file, also out of the image set, sorted.
        zero_based: boxes are (xmin, ymin, xmax, ymax) in continuous coordinates from 0, not VOC's.
        difficult: what becomes of objects marked ``<difficult>1</difficult>``. ``"crowd"``:
            ``iscrowd = 1``, so that COCO's evaluation counts them neither as missed nor as found,
            which is what VOC's evaluation does, and Detectron2's training leaves them out;
            ``"keep"``: ordinary objects; ``"drop"``: left out.
        on_error: ``"raise"``, or ``"skip"``: leave out bad files and objects and warn of each.
        warn: takes the warnings; printed to the standard error if not given.
        image_set: a file such as ``ImageSets/Main/train.txt``, which names an XML file a line,
            without suffix; what is behind the name is not read. All XML files if not given.

    Returns:
        The COCO data set. Image ids and category ids count from 1, ``file_name`` is relative to
        ``images``, ``area`` is that of the box, and there are no masks.

    Raises:
        VocError: with ``on_error="raise"``, naming everything that is wrong: malformed XML, missing
            images, two files for one image, sizes that differ from the image's, unknown classes,
            boxes that are degenerate or overhang the image by more than two pixels; names of the
            image set without an XML file.
        VocFolderError: if a folder is missing or holds no XML, or the image set is missing or
            empty.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
    if difficult not in ("crowd", "keep", "drop"):
        raise ValueError(f"difficult must be 'crowd', 'keep' or 'drop', not {difficult!r}")
    annotations, images = Path(annotations), Path(images)
    for folder in (annotations, images):
        if not folder.is_dir():
            raise VocFolderError(f"{folder} is not a folder")
    files = sorted(file for file in annotations.rglob("*") if file.suffix.lower() == ".xml")
    if not files:
        raise VocFolderError(f"no .xml files in {annotations}")
    problems: list[str] = []
    others: list[Path] = []
    if image_set is not None:
        files, others = _split(files, annotations, Path(image_set), problems)
    parsed = _read_all(files, annotations, images, classes, zero_based, problems)
    if problems and on_error == "raise":
        raise VocError(problems)
    warn = warn or (lambda message: print(f"warning: {message}", file=sys.stderr))
    for problem in problems:
        warn(f"left out: {problem}")

    clipped = sum(image.clipped for image in parsed)
    if clipped:
        warn(
            f"clipped {clipped} box(es) that overhang their image by at most "
            f"{OVERHANG_TOLERANCE:g} pixels"
        )

    if classes is None:
        names = {name for image in parsed for name, _, _ in image.objects}
        classes = sorted(names.union(*map(_class_names, others)))
    return _to_coco(parsed, list(classes), difficult)


def convert_voc_file(
    annotations: str | os.PathLike, images: str | os.PathLike, output: str | os.PathLike, **options
) -> dict:
    """:func:`convert_voc`, and write the result to ``output``, completely or not at all."""
    dataset = convert_voc(annotations, images, **options)
    with atomic_write(output) as file:
        json.dump(dataset, file)
    return dataset


def _split(
    files: list[Path], annotations: Path, image_set: Path, problems: list[str]
) -> tuple[list[Path], list[Path]]:
    """The files that an image set names, and the others; names without a file are problems."""
    try:
        lines = image_set.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VocFolderError(f"the image set {image_set} cannot be read: {error}") from error
    names = {line.split()[0]: None for line in lines if line.strip()}
    if not names:
        raise VocFolderError(f"the image set {image_set} names no image")
    by_name: dict[str, Path] = {}
    for file in files:
        # By the path, or the name alone, where that says which.
        by_name.setdefault(file.stem, file)
    for file in files:
        by_name[file.relative_to(annotations).with_suffix("").as_posix()] = file
    chosen = set()
    for name in names:
        file = by_name.get(name) or by_name.get(name.removesuffix(".xml").removesuffix(".jpg"))
        if file is None:
            problems.append(f"{image_set.name}: {name} has no XML file in {annotations}")
        else:
            chosen.add(file)
    return [f for f in files if f in chosen], [f for f in files if f not in chosen]


def _read_all(
    files: Iterable[Path],
    annotations: Path,
    images: Path,
    classes: Sequence[str] | None,
    zero_based: bool,
    problems: list[str],
) -> list[_VocImage]:
    """Read XML files; what is wrong goes to ``problems``."""
    parsed: list[_VocImage] = []
    used: dict[str, str] = {}  # image -> the XML that it belongs to
    for file in tqdm(files, desc="reading VOC annotations", unit="file", disable=None):
        try:
            image = _read(file, annotations, images, classes, zero_based, problems)
            if image.file_name in used:
                raise _BadFile(f"is of {image.file_name}, as {used[image.file_name]} is already")
            used[image.file_name] = _name(file, annotations)
            parsed.append(image)
        except _BadFile as error:
            problems.append(f"{_name(file, annotations)}: {error}")
    return parsed


def _class_names(file: Path) -> set[str]:
    """Of a file that is not converted, so whatever else is wrong with it is of no concern."""
    try:
        names = {(_text(element, "name") or "") for element in _parse(file).findall("object")}
    except _BadFile:
        return set()
    return names - {""}


def _name(file: Path, annotations: Path) -> str:
    return file.relative_to(annotations).as_posix()


def _read(
    file: Path,
    annotations: Path,
    images: Path,
    classes: Sequence[str] | None,
    zero_based: bool,
    problems: list[str],
) -> _VocImage:
    """Read one XML file; what is wrong with single objects goes to ``problems``."""
    root = _parse(file)
    folder = images / file.relative_to(annotations).parent
    path = _find_image([folder, images], _text(root, "filename"), file.stem)
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            # The size as it is shown, which is what people draw boxes on and Detectron2 reads.
            if opened.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8):
                width, height = height, width
    except Exception as error:  # PIL raises many types for broken files
        raise _BadFile(f"image {path} cannot be read: {error}") from error
    stated = [_text(root, f"size/{key}") for key in ("width", "height")]
    # Some tools write 0 for "unknown"; a missing size is no contradiction either.
    if all(value not in (None, "", "0") for value in stated):
        if [_number(value) for value in stated] != [width, height]:
            raise _BadFile(
                f"says size {stated[0]} x {stated[1]}, "
                f"but {path.name} is {width} x {height} (w x h)"
            )
    image = _VocImage(path.relative_to(images).as_posix(), width, height)
    for index, element in enumerate(root.findall("object")):
        name = (_text(element, "name") or "").strip()
        try:
            if not name:
                raise ValueError("has no <name>")
            if classes is not None and name not in classes:
                raise ValueError(f"is of a class that is not among {', '.join(classes)}")
            box, is_clipped = _box(element, width, height, zero_based)
            image.clipped += is_clipped
        except ValueError as error:
            problems.append(
                f"{_name(file, annotations)}: object {index} ({name or 'unnamed'}) {error}"
            )
            continue
        is_difficult = int((_text(element, "difficult") or "0").strip() == "1")
        image.objects.append((name, box, is_difficult))
    return image


def _parse(file: Path) -> ElementTree.Element:
    try:
        root = _parse_bytes(file.read_bytes())
    except (ElementTree.ParseError, UnicodeDecodeError, LookupError, ValueError) as error:
        raise _BadFile(f"is not well-formed XML: {error}") from error
    except OSError as error:
        raise _BadFile(f"cannot be read: {error}") from error
    if root.tag != "annotation":
        raise _BadFile(f"is not a VOC annotation: its root is <{root.tag}>, not <annotation>")
    return root


DECLARATION = re.compile(
    rb"""^(?:\xef\xbb\xbf)?<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["'][^>]*\?>"""
)


def _parse_bytes(content: bytes) -> ElementTree.Element:
    """The root, in the encoding that the file declares; Python's parser knows but a few itself.

    Raises:
        ElementTree.ParseError, UnicodeDecodeError, LookupError, ValueError: as they come.
    """
    parser = ElementTree.XMLParser(target=_NoDoctype())
    declared = DECLARATION.match(content)
    encoding = declared[1].decode().lower() if declared else "utf-8"
    if encoding.startswith(("utf", "us-ascii", "iso-8859-1")):
        return ElementTree.fromstring(content, parser=parser)
    return ElementTree.fromstring(content[declared.end() :].decode(encoding), parser=parser)


def _text(element: ElementTree.Element, path: str) -> str | None:
    found = element.find(path)
    return None if found is None or found.text is None else found.text.strip()


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _find_image(folders: Sequence[Path], file_name: str | None, stem: str) -> Path:
    # Only the last part of <filename> is used: paths in it are those of somebody else's machine,
    # and must not lead out of the folder.
    names = [Path(file_name.replace("\\", "/")).name] if file_name else []
    for suffix in IMAGE_SUFFIXES:
        names += [stem + suffix, stem + suffix.upper()]
    for folder in folders:
        for name in names:
            if name and (folder / name).is_file():
                return folder / name
    wanted = names[0] if file_name else f"{stem}.*"
    raise _BadFile(f"image {wanted} is not in {folders[-1]}")


def _box(
    element: ElementTree.Element, width: int, height: int, zero_based: bool
) -> tuple[tuple[float, float, float, float], bool]:
    """XYXY in continuous coordinates, and whether it was clipped; or ValueError with what is
    wrong."""
    numbers = [_number(_text(element, f"bndbox/{corner}")) for corner in CORNERS]
    if not all(math.isfinite(number) for number in numbers):
        written = [_text(element, f"bndbox/{corner}") for corner in CORNERS]
        raise ValueError(f"has no proper box: {dict(zip(CORNERS, written, strict=True))}")
    x1, y1, x2, y2 = numbers
    described = f"({', '.join(f'{number:g}' for number in numbers)})"
    if not zero_based:
        x1, y1 = x1 - 1, y1 - 1
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"has the degenerate box {described}")
    overhang = max(-x1, -y1, x2 - width, y2 - height)
    is_inside = x1 < width and y1 < height and x2 > 0 and y2 > 0
    # A coordinate 0 is no overhang but another way to count, which is for the user to say.
    counts_from_0 = not zero_based and min(x1, y1) == -1
    if 0 < overhang <= OVERHANG_TOLERANCE and is_inside and not counts_from_0:
        return (max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)), True
    if overhang > 0:
        hint = ""
        if counts_from_0:
            hint = (
                "; a coordinate 0 suggests boxes that count from 0: try zero_based (--zero-based)"
            )
        raise ValueError(f"has the box {described} outside of the {width} x {height} image{hint}")
    return (x1, y1, x2, y2), False


def _to_coco(parsed: Sequence[_VocImage], classes: list[str], difficult: str) -> dict:
    ids = {name: index + 1 for index, name in enumerate(classes)}
    images, annotations = [], []
    for image_id, image in enumerate(parsed, start=1):
        images.append(
            {
                "id": image_id,
                "file_name": image.file_name,
                "width": image.width,
                "height": image.height,
            }
        )
        for name, (x1, y1, x2, y2), is_difficult in image.objects:
            if is_difficult and difficult == "drop":
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[name],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(is_difficult and difficult == "crowd"),
                    "difficult": is_difficult,
                }
            )
    return {
        "info": {"description": "converted from Pascal VOC"},
        "licenses": [],
        "categories": [{"id": index, "name": name} for name, index in ids.items()],
        "images": images,
        "annotations": annotations,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m corrdet.data.voc", description="Pascal VOC XML files to one COCO JSON file."
    )
    parser.add_argument("--annotations", required=True, help="folder with the XML files")
    parser.add_argument("--images", required=True, help="folder with the images")
    parser.add_argument("--output", required=True, help="COCO file to write")
    parser.add_argument(
        "--image-set",
        metavar="FILE",
        help="such as ImageSets/Main/train.txt: the XML files to convert; classes are those of all",
    )
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--classes", nargs="+", help="class names in order; default: all, sorted")
    classes.add_argument(
        "--classes-of", metavar="FILE", help="take the classes of a COCO file, of another split"
    )
    parser.add_argument(
        "--zero-based", action="store_true", help="boxes are continuous coordinates from 0"
    )
    parser.add_argument(
        "--difficult",
        choices=("crowd", "keep", "drop"),
        default="crowd",
        help="objects marked difficult: ignored in evaluation (default), kept, or left out",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out what is bad, and warn")
    options = parser.parse_args(arguments)
    try:
        dataset = convert_voc_file(
            options.annotations,
            options.images,
            options.output,
            classes=options.classes
            if options.classes_of is None
            else read_ground_truth(options.classes_of).category_names,
            image_set=options.image_set,
            zero_based=options.zero_based,
            difficult=options.difficult,
            on_error="skip" if options.skip_bad else "raise",
        )
    except CorrdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{options.output}: {len(dataset['images'])} images, "
        f"{len(dataset['annotations'])} annotations, {len(dataset['categories'])} classes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
