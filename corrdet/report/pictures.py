"""Pictures of the most inconsistent detections."""

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import PureWindowsPath

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from corrdet.coco.naming import parts_of
from corrdet.measures import Results
from corrdet.measures.matching import box_ious

PICTURE_SIDE = 400
PICTURES_OF_A_KIND = 6
# A sure detection that hardly touches an object of its class, or none, is another mistake than a
# badly placed box.
TOUCHING_IOU = 0.25


def chapter(
    results: Sequence[Results], folder: str | os.PathLike, room: int, progress: bool
) -> tuple[str, list[str]]:
    """Pictures of the most inconsistent detections, in at most ``room`` bytes; and what failed."""
    # Fewer of each file where there are many.
    count = max(2, PICTURES_OF_A_KIND * 3 // max(3, len(results)))
    headings = (
        ("Sure, but badly placed",
         "Of the detections that touch an object of their class, those whose score is farthest "
         "above their IoU, one of each image. A high score lets them win against better boxes."),
        ("Well placed, but unsure",
         "Those whose IoU is farthest above their score, one of each image. A low score lets good "
         "boxes lose, or fall below a threshold."),
    )  # fmt: skip
    chosen = [_inconsistent(result, count) for result in results]
    total = sum(len(rows) for pair in chosen for rows in pair)
    problems, parts = [], []
    left_out = 0
    bar = tqdm(total=total, desc="pictures", unit="picture", disable=not progress)
    for result, pair in zip(results, chosen, strict=True):
        for (heading, what), rows in zip(headings, pair, strict=True):
            cards = []
            for row in rows:
                bar.update()
                try:
                    card = _picture(result, int(row), folder)
                except _PictureError as error:
                    problems.append(str(error))
                    continue
                size = len(card.encode(errors="replace"))
                if size > room:
                    left_out += 1
                    continue
                room -= size
                cards.append(card)
            name = f": {escape(result.name)}" if len(results) > 1 else ""
            content = "\n".join(cards) or "<p>None.</p>"
            parts.append(
                f'<h3>{heading}{name}</h3>\n<p>{what}</p>\n<div class="figures pictures">\n'
                f"{content}\n</div>"
            )
    bar.close()
    problems = list(dict.fromkeys(problems))
    legend = (
        '<ul class="legend"><li><span class="key"><i></i></span>objects of the class</li>'
        '<li><span class="key"><i class="solid"></i></span>the detection</li></ul>'
    )
    notes = [f"Not drawn: {problem}." for problem in problems]
    if left_out:
        notes.append(f"{left_out} pictures are left out to keep the file small.")
    if results[0].iou_type == "segm":
        notes.append("Boxes are drawn around the masks; the IoU is that of the masks.")
    said = "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)
    return f"{legend}\n{said}" + "\n".join(parts), problems


def _inconsistent(result: Results, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the detections whose score is farthest above, and below, their IoU."""
    matches = result.matches
    gaps = matches.scores - matches.best_ious
    # Boxes in a crowd count as neither right nor wrong.
    is_counted = ~matches.ignored[0, 0]
    sure = np.flatnonzero(is_counted & (gaps > 0) & (matches.best_ious >= TOUCHING_IOU))
    unsure = np.flatnonzero(is_counted & (gaps < 0) & (matches.best_ious >= 0.5))
    picked = []
    for rows, key in ((sure, -gaps), (unsure, gaps)):
        rows = rows[np.argsort(key[rows], kind="stable")]
        _, first = np.unique(matches.images[rows], return_index=True)
        picked.append(rows[np.sort(first)[:count]])
    return picked[0], picked[1]


class _PictureError(Exception):
    """An image cannot be shown; says which and why."""


def _picture(result: Results, row: int, folder: str | os.PathLike) -> str:
    """A figure of a detection, the objects of its class around it, on a part of their image."""
    gt, matches = result.ground_truth, result.matches
    image_row, category = int(matches.images[row]), int(matches.categories[row])
    file_name = gt.file_names[image_row] or ""
    image = _open(folder, file_name, gt.sizes[image_row])
    box = result.boxes[row]
    is_near = (gt.images == image_row) & (gt.categories == category) & ~gt.is_crowd
    objects = gt.boxes[is_near]
    # The object that it is about; masks may be nearest to another, which is in the picture too.
    ious = box_ious(np.broadcast_to(box, objects.shape), objects, np.zeros(len(objects), bool))
    nearest = objects[np.argmax(ious)]

    left, top, right, bottom = _surroundings(np.stack([box, nearest]), image.size)
    part = image.crop((left, top, right, bottom))
    part.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    data = io.BytesIO()
    part.save(data, "JPEG", quality=80, optimize=True)
    encoded = base64.b64encode(data.getvalue()).decode()

    def rectangle(xywh, style):
        x, y, width, height = xywh[0] - left, xywh[1] - top, xywh[2], xywh[3]
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        # Dark below light: to be seen on any image.
        return f'<rect class="under" {place}/><rect class="{style}" {place}/>'

    shapes = "".join(rectangle(xywh, "object") for xywh in objects) + rectangle(box, "detection")
    score, iou = matches.scores[row], matches.best_ious[row]
    label = f"{gt.category_names[category]}: score {score:.2f}, IoU {iou:.2f}"
    alternative = f"A part of the image {file_name} with a detection and the objects of its class."
    return (
        f'<figure><div class="picture"><img alt="{escape(alternative)}" width="{part.width}" '
        f'height="{part.height}" src="data:image/jpeg;base64,{encoded}">'
        f'<svg viewBox="0 0 {right - left} {bottom - top}" preserveAspectRatio="none" '
        f'aria-hidden="true">{shapes}</svg></div>'
        f'<figcaption><strong>{escape(label)}</strong> <span class="what">{escape(file_name)}'
        "</span></figcaption></figure>"
    )


def _open(folder: str | os.PathLike, file_name: str, size: np.ndarray) -> Image.Image:
    """An image as its annotations see it.

    Raises:
        _PictureError: it is not in the folder, cannot be read, or has another size.
    """
    if not file_name:
        raise _PictureError("an image has no file name in the annotations")
    path = _path_in(folder, file_name)
    try:
        with Image.open(path) as opened:
            # Detectron2 and others turn photographs before anything else.
            turned = ImageOps.exif_transpose(opened)
            wanted = tuple(int(side) for side in size)
            for image in (turned, opened):
                if 0 in wanted or image.size == wanted:
                    return image.convert("RGB")
            actual = turned.size
    except FileNotFoundError as error:
        raise _PictureError(f"{file_name} is missing") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _PictureError(f"{file_name} cannot be read ({error})") from error
    raise _PictureError(
        f"{file_name} has {actual[0]} x {actual[1]} pixels, its annotations are of "
        f"{wanted[0]} x {wanted[1]}"
    )


def _path_in(folder: str | os.PathLike, file_name: str) -> str:
    """Where a file is, by its path or the end of it: other machines have other folders.

    Raises:
        _PictureError: it is not in the folder. The report may be passed on: what a file of
            annotations asks for stays in there.
    """
    parts = parts_of(file_name)
    is_absolute = file_name.startswith(("/", "\\")) or PureWindowsPath(file_name).is_absolute()
    if ".." not in parts:
        for start in range(len(parts) if is_absolute else 1):
            path = os.path.join(folder, *parts[start:])
            if os.path.isfile(path) or not is_absolute:
                return path
    raise _PictureError(f"{file_name} is outside of the folder of the images")


def _surroundings(boxes: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of an image to show for boxes XYWH: with some margin, not too small."""
    low = boxes[:, :2].min(axis=0)
    high = (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    sides = np.maximum(1.8 * (high - low), 160)
    # As square as the image allows, so that pictures stand side by side.
    sides = np.minimum(np.maximum(sides, sides.max() * 0.75), size)
    start = np.clip((low + high - sides) / 2, 0, np.array(size) - sides)
    left, top = np.floor(start).astype(int).tolist()
    right, bottom = np.ceil(start + sides).astype(int).tolist()
    return left, top, min(right, size[0]), min(bottom, size[1])
