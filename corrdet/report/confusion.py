"""Which classes are taken for which."""

from collections.abc import Mapping, Sequence
from html import escape

from .html import scroll


def chapter(entries: Sequence[Mapping]) -> str:
    parts = []
    for entry in entries:
        found = entry["confusion"]
        rows = "".join(
            f'<tr><th scope="row">{escape(pair["object"])}</th>'
            f'<td class="text">{escape(pair["detected_as"])}</td><td>{pair["count"]}</td></tr>'
            for pair in found["pairs"]
        )
        said = (
            f"<p><strong>{escape(entry['name'])}</strong>: with a score of at least "
            f"{found['threshold']:.2f}, {found['right']} objects are found as what they are, "
            f"{found['missed']} are missed, and {found['background']} detections are of "
            "background.</p>"
        )
        if not rows:
            parts.append(f"{said}<p>No object is taken for one of another class.</p>")
            continue
        table = scroll(
            f"Confused classes of {entry['name']}",
            '<table><thead><tr><th scope="col">object</th><th scope="col" class="text">taken for'
            f'</th><th scope="col">times</th></tr></thead>\n<tbody>{rows}</tbody></table>',
        )
        parts.append(f"{said}\n{table}")
    return (
        "<p>Objects matched with detections of any class at an IoU of at least 0.5, at the score "
        "threshold of the best F1: the pairs of classes that are confused most often.</p>\n"
        + "\n".join(parts)
    )
