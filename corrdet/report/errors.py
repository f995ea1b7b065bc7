"""Errors by type: what each costs, and pictures of each."""

import os
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from corrdet.measures import Results
from corrdet.measures.bootstrap import cost_name
from corrdet.measures.errors_by_type import CORRECT, TYPES

from . import svg
from .html import interval, is_significant, legend, names_of, number
from .pictures import PictureError, draw

WHAT = {
    "Cls": ("wrong class", "The box fits an object of another class."),
    "Loc": ("badly placed", "The box overlaps an object of its class by 0.1 to 0.5 only."),
    "Both": ("wrong class and place", "It overlaps an object of another class by 0.1 to 0.5."),
    "Dupe": ("duplicate", "A better scored detection has found the same object."),
    "Bkg": ("background", "There is no object."),
    "Miss": ("missed", "An object that no detection is near."),
    "FP": ("all false positives", "What AP50 would be without any: behind all correct ones."),
    "FN": ("all missed objects", "What AP50 would be if objects that are not found did not count."),
}
PICTURES_OF_A_TYPE = 4


def chapter(
    results: Sequence[Results],
    entries: Sequence[Mapping],
    folder: str | os.PathLike | None,
    room: int,
    problems: list[str],
) -> tuple[str, int]:
    """Bars that open, with pictures in at most ``room`` bytes; and the room that is left.

    What cannot be drawn is appended to ``problems``.
    """
    if any(result.errors is None for result in results):
        return (
            "<p>Of federated annotations (LVIS) errors have no types: what is not annotated may be "
            "there.</p>",
            room,
        )
    costs = [entry["errors"][name]["cost"] for entry in entries for name in WHAT]
    largest = max([1e-9, *(cost for cost in costs if cost is not None)])
    parts = []
    for name, (title, what) in WHAT.items():
        bars = "".join(_bar(entries, series, name, largest) for series in range(len(entries)))
        shown = []
        if folder is not None and name in TYPES:
            for result in results:
                cards, room = _cards(result, name, folder, room, problems)
                if cards:
                    of = f"<h4>{escape(result.name)}</h4>" if len(results) > 1 else ""
                    shown.append(f'{of}<div class="figures pictures">{cards}</div>')
        parts.append(
            f'<details id="errors-{name}"><summary><strong>{name}</strong> {title}{bars}</summary>'
            f"<p>{what}</p>\n{''.join(shown)}</details>"
        )
    drawn = "" if folder is None else " A click on a bar shows its surest errors."
    return (
        "<p>What AP50 would gain if the errors of one type were mended, and nothing else (TIDE, "
        f"Bolya et al., ECCV 2020), in percent of AP50.{drawn} The types overlap: their sum is not "
        "what all of them cost.</p>\n"
        f'{legend(names_of(results))}<div class="errors">\n' + "\n".join(parts) + "\n</div>"
    ), room


def _bar(entries: Sequence[Mapping], series: int, name: str, largest: float) -> str:
    entry, key = entries[series], cost_name(name)
    error = entry["errors"][name]
    sampled = entry.get("bootstrap", {})
    bounds = interval(sampled.get("intervals", {}).get(key))
    said = f"{number(error['cost'])} {bounds}".strip()
    if series:
        change = sampled.get("differences", {}).get(key)
        star = " *" if is_significant(entry, key) else ""
        said += f"; {number(entry['differences'][key], '+')}{star} {interval(change, '+')}".rstrip()
    width = 100 * max(error["cost"] or 0, 0) / largest
    return (
        f'<span class="bar"><span class="track"><i style="width:{width:.1f}%;background:'
        f'var(--s{series % svg.NUM_STYLES})"></i></span><span>{said}</span>'
        f'<span class="muted">{error["count"]} errors</span></span>'
    )


def _cards(
    result: Results, name: str, folder: str | os.PathLike, room: int, problems: list[str]
) -> tuple[str, int]:
    """Pictures of the surest errors of a type, one of each image; of missed objects the largest."""
    errors, gt, found = result.errors, result.ground_truth, result.detections
    if name == "Miss":
        rows = np.flatnonzero(errors.missed)
        rows = rows[np.argsort(-gt.areas[rows], kind="stable")]
        images = gt.images[rows]
    else:
        rows = np.flatnonzero((errors.types == TYPES.index(name)) & ~errors.ignored)
        rows = rows[np.argsort(-found.scores[errors.detections[rows]], kind="stable")]
        images = found.images[errors.detections[rows]]
    _, first = np.unique(images, return_index=True)
    cards = []
    for place in np.sort(first)[:PICTURES_OF_A_TYPE].tolist():
        row = int(rows[place])
        try:
            card = _card(result, name, row, folder)
        except PictureError as error:
            problems.append(str(error))
            continue
        size = len(card.encode(errors="replace"))
        if size <= room:
            room -= size
            cards.append(card)
    return "".join(cards), room


def _card(result: Results, name: str, row: int, folder: str | os.PathLike) -> str:
    errors, gt, found = result.errors, result.ground_truth, result.detections
    names = gt.category_names
    if name == "Miss":
        box = gt.boxes[row]
        label = f"{names[gt.categories[row]]}, missed"
        return draw(gt, int(gt.images[row]), folder, label, [], [box], box[None])
    detection, target = int(errors.detections[row]), int(errors.objects[row])
    boxes = [found.boxes[detection]]
    label = f"{names[found.categories[detection]]}: score {found.scores[detection]:.2f}"
    objects = []
    if target >= 0 and name != "Bkg":
        objects.append(gt.boxes[target])
        if name in ("Cls", "Both"):
            label += f", object: {names[gt.categories[target]]}"
    if name == "Dupe":
        better = (errors.types == CORRECT) & (errors.objects == target)
        boxes += [found.boxes[errors.detections[other]] for other in np.flatnonzero(better)]
    return draw(
        gt,
        int(found.images[detection]),
        folder,
        label,
        boxes,
        objects,
        np.stack([*boxes, *objects]),
    )
