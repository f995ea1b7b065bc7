"""What the report says first: the verdict on each results file."""

from collections.abc import Mapping, Sequence
from html import escape

from corrdet.measures.errors_by_type import TYPES
from corrdet.options import is_number

from .errors import WHAT
from .html import breakable, interval, is_significant, number


def introduction(entries: Sequence[Mapping]) -> str:
    first = entries[0]
    kind = {"bbox": "boxes", "segm": "masks"}.get(first["iou_type"], first["iou_type"])
    lines = []
    for entry in entries:
        name = f"<strong>{escape(entry['name'])}</strong>"
        if not entry["detections"]:
            lines.append(f"{name} holds no detection: there is nothing to rank.")
            continue
        line = f"{name}: AP {number(entry['AP'])}, beta_cls {number(entry['beta_cls'])}."
        if is_number(entry.get("AP_upper")) and is_number(entry["AP"]):
            gain = entry["AP_upper"] - entry["AP"]
            line += (
                " If the correct detections of each class were ranked by how well they fit, AP "
                f"would be {number(entry['AP_upper'])} ({number(gain, '+')})."
            )
        bounds = entry.get("bootstrap", {}).get("differences", {}).get("AP")
        if bounds is not None:
            verdict = (
                "more than the choice of images explains"
                if is_significant(entry, "AP")
                else "which the choice of images alone may explain"
                if bounds[0] <= 0 <= bounds[1]
                else "which is no more than chance once all measures are tested together"
            )
            line += (
                f" AP differs from that of the first by {number(entry['differences']['AP'], '+')} "
                f"{interval(bounds, '+')}, {verdict}."
            )
        if costs := _costly(entry):
            line += f" Most AP50 is lost to {costs}."
        lines.append(line)
    items = "\n".join(f"<li>{line}</li>" for line in lines)
    return (
        f'<p class="muted">{len(entries)} results {"files" if len(entries) > 1 else "file"}, '
        f"{first['images']} images, {first['ground_truths']} objects, {kind} compared.</p>\n"
        f"<ul>\n{items}\n</ul>"
    )


def _costly(entry: Mapping) -> str:
    """The two types of errors that cost most, in words."""
    costs = [(entry.get("errors", {}).get(name, {}).get("cost") or 0.0, name) for name in TYPES]
    return " and ".join(
        f"errors of the type {name} ({WHAT[name][0]}, {number(cost)})"
        for cost, name in sorted(costs, reverse=True)[:2]
        if cost > 0
    )


def made(metrics: Mapping) -> str:
    """When, by what and of which files the report was made, as far as that is told."""
    found = metrics.get("made")
    if found is None:
        return ""
    files = "".join(
        f"<li>{breakable(file['path'])}, {file['bytes']} bytes, SHA-256 {file['sha256']}</li>\n"
        for file in found["files"]
    )
    return (
        f"<p>{escape(found['date'])}, corrdet {escape(found['version'])}:</p>\n"
        f"<p><code>{escape(found['command'])}</code></p>\n<ul>\n{files}</ul>"
    )
