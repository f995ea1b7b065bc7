"""The table of all classes."""

from collections.abc import Mapping, Sequence
from html import escape

from .html import UNDEFINED, breakable, number, scroll, undefined_note

# Key in metrics.json, heading, what it is.
COLUMNS = (
    ("ground_truths", "objects", "annotated objects"),
    ("AP", "AP", "higher is better"),
    ("beta_cls", "beta_cls", "rank correlation of score and IoU of correct detections"),
    ("oLRP", "oLRP", "lower is better"),
    ("AP50", "AP50", "higher is better"),
    ("AP75", "AP75", "higher is better"),
    ("APs", "APs", "AP of small objects"),
    ("APm", "APm", "AP of medium objects"),
    ("APl", "APl", "AP of large objects"),
    ("F1", "F1", "the best F1, in percent"),
    ("F1_threshold", "F1 at", "score from which F1 is best"),
    ("LaECE_0", "LaECE_0", "calibration error of score and IoU, lower is better"),
    ("AP_lower", "AP_lower", "AP with the correct detections ranked against their IoU"),
    ("AP_upper", "AP_upper", "AP with the correct detections ranked by their IoU"),
    ("detections", "detections", "evaluated detections"),
    ("true_positives", "correct", "detections that find an object, at IoU 0.5"),
    ("oLRP_Loc", "Loc", "oLRP_Loc: badly placed boxes, lower is better"),
    ("oLRP_FP", "FP", "oLRP_FP: wrong detections, lower is better"),
    ("oLRP_FN", "FN", "oLRP_FN: missed objects, lower is better"),
    ("oLRP_threshold", "threshold", "score from which the oLRP is lowest"),
    ("PCC", "PCC", "linear correlation of score and IoU, IoU above 0.5"),
    ("SCC", "SCC", "rank correlation of score and IoU, IoU above 0.5"),
    ("KCC", "KCC", "correlation of pairs of score and IoU, IoU above 0.5"),
)


COMPARED = ("AP", "beta_cls", "oLRP")


def chapter(entries: Sequence[Mapping]) -> str:
    per_class = [entry["per_class"] for entry in entries]
    columns = [
        column for column in COLUMNS if any(column[0] in row for row in per_class[0].values())
    ]
    is_compared = len(entries) > 1
    heads = [("class", "name of the class", True)]
    if is_compared:
        heads.append(("file", "results file", True))
    for key, label, what in columns:
        heads.append((label, what, False))
        if is_compared and key in COMPARED:
            heads.append((f"{key} diff.", f"minus that of {entries[0]['name']}", False))
    head = "".join(
        f'<th scope="col" aria-sort="none"{" class=text" if is_text else ""}>'
        f'<button type="button" title="{escape(what)}">{escape(label)}</button></th>'
        for label, what, is_text in heads
    )
    rows = []
    for name in per_class[0]:
        for file, entry in enumerate(entries):
            values = entry["per_class"][name]
            cells = [f'<td class="text">{breakable(entry["name"])}</td>'] if is_compared else []
            for key, _, _ in columns:
                value, base = values.get(key), per_class[0][name].get(key)
                cells.append(f"<td>{number(value)}</td>")
                if is_compared and key in COMPARED:
                    is_there = file and value is not None and base is not None
                    text = number(value - base, "+") if is_there else UNDEFINED if file else ""
                    cells.append(f"<td>{text}</td>")
            rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    count = len(per_class[0])
    intro = (
        "<p>The buttons in the head sort: once, again for the other direction. "
        f"{'A class' if not is_compared else 'Each class has a row for each file. A class'} with a "
        "low beta_cls and a wide gap between AP and AP_upper gains most from better agreement; one "
        "with a high Loc needs better boxes. Values of a class with few objects say little.</p>"
    )
    search = (
        '<div class="filter" hidden><label for="classes-table-filter">Show classes with</label>'
        '<input id="classes-table-filter" type="search" autocomplete="off" spellcheck="false">'
        '<output id="classes-table-status" aria-live="polite"></output></div>'
    )
    table = scroll(
        f"{count} classes",
        f'<table class="classes" id="classes-table"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n" + "\n".join(rows) + "\n</tbody></table>",
        tall=True,
    )
    return f"{intro}\n{search}\n{table}\n{undefined_note()}"
