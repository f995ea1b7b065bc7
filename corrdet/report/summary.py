"""All measures in a table, by what they answer."""

from collections.abc import Mapping, Sequence
from html import escape

from .html import breakable, cell, interval, is_significant, number, scroll, undefined_note

# Heading, and of each measure its name and what it says. What is not here comes last.
SUMMARY = (
    (
        "How good is the detector? Higher is better",
        {
            "AP": "Ranking and fit of the boxes in one number: the mean over IoU 0.50 to 0.95.",
            "AP50": "A box counts from an IoU of 0.50.",
            "AP60": "",
            "AP70": "",
            "AP75": "A box counts from an IoU of 0.75.",
            "AP80": "",
            "AP90": "Only boxes that fit almost perfectly count.",
            "APs": "AP of small objects, up to 32 x 32 pixels.",
            "APm": "AP of medium objects, up to 96 x 96 pixels.",
            "APl": "AP of large objects.",
            "APr": "AP of rare classes, in fewer than 10 training images of LVIS.",
            "APc": "AP of common classes, in fewer than 100 training images.",
            "APf": "AP of frequent classes.",
            "AR1": "Share of the objects that the best detection of each image and class finds.",
            "AR10": "",
            "AR100": "Share of the objects that are found at all.",
            "AR300": "Share of the objects that are found at all.",
            "ARs": "",
            "ARm": "",
            "ARl": "",
        },
    ),
    (
        "The error at the best score threshold. Lower is better",
        {
            "oLRP": "Badly placed, superfluous and missing boxes together.",
            "oLRP_Loc": "How badly the boxes are placed: the mean of 1 - IoU.",
            "oLRP_FP": "Share of the detections that are wrong.",
            "oLRP_FN": "Share of the objects that are missed.",
        },
    ),
    (
        "Do scores and boxes agree? Higher is better",
        {
            "beta_cls": "Do better boxes of a class score higher? 100: always, 0: no relation.",
            "beta_img": "The same within an image, before post-processing.",
            "PCC": "Linear correlation of score and IoU over all detections with an IoU above 0.5.",
            "SCC": "The same of the ranks.",
            "KCC": "The same of pairs: how many more are in order than not.",
        },
    ),
    (
        "How much does agreement matter here?",
        {
            "AP_upper": "AP if the correct detections of each class were ranked by their IoU.",
            "AP_lower": "AP if they were ranked against their IoU.",
            "AP75_upper": "",
            "AP75_lower": "",
            "AP_img_upper": "AP if the predictions of each image had scores in the order of IoU, "
            "before post-processing.",
            "AP_img_lower": "AP if they had scores against the order of IoU.",
            "AP50_img_upper": "",
            "AP50_img_lower": "",
            "AP75_img_upper": "",
            "AP75_img_lower": "",
        },
    ),
    (
        "Can a score be read as an IoU? Lower is better",
        {
            "AIC-mean": "Mean distance of score and IoU of the positives, before post-processing.",
            "AIC": "Their sum. Not in percent; it grows with the number of positives.",
        },
    ),
    (
        "Counts",
        {
            "images": "",
            "ground_truths": "Annotated objects, without crowds.",
            "detections": "In the results file.",
            "detections_left_out": "Beyond the best of an image and class.",
            "beta_cls-classes": "Classes that beta_cls is the mean of.",
            "beta_img-images": "Images that beta_img is the mean of.",
            "correlated-detections": "Detections that PCC, SCC and KCC are over.",
        },
    ),
)


NOT_MEASURES = {
    "name", "iou_type", "lrp_thresholds", "max_detections", "per_class", "bootstrap", "errors",
    "differences", "calibration", "confusion", "operating_points", "made", "others", "notes",
}  # fmt: skip


def notes_on(entries: Sequence[Mapping], notes: Sequence[str]) -> str:
    """What to know before the numbers are read, as a list."""
    sentences = [*notes]
    if "bootstrap" in entries[0]:
        sentences.append(
            "The intervals say what another choice of images would have given, not what another "
            "training would have given."
        )
    lines = "".join(f"<li>{escape(line)}</li>\n" for line in sentences)
    return f'<ul class="note">\n{lines}</ul>\n' if sentences else ""


def chapter(entries: Sequence[Mapping]) -> str:
    first = entries[0]
    heads = [f'<th scope="col">{breakable(entry["name"])}</th>' for entry in entries]
    heads += [
        f'<th scope="col">{breakable(entry["name"])} - {breakable(first["name"])}</th>'
        for entry in entries[1:]
    ]
    known = {key for _, group in SUMMARY for key in group}
    rest = {key: "" for key in first if key not in known and key not in NOT_MEASURES}
    rows = []
    for heading, group in (*SUMMARY, ("Further", rest)):
        present = [key for key in group if key in first]
        if present:
            rows.append(
                f'<tr class="group"><th colspan="{1 + len(heads)}" scope="colgroup">'
                f"<span>{heading}</span></th></tr>"
            )
        rows += [_summary_row(key, group[key], entries) for key in present]
    table = scroll(
        "Summary",
        f'<table class="summary"><thead><tr><th scope="col">measure</th>{"".join(heads)}</tr>'
        f"</thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table>",
    )
    return f"{table}\n{undefined_note()}"


def _summary_row(key: str, what: str, entries: Sequence[Mapping]) -> str:
    cells = []
    for entry in entries:
        bounds = entry.get("bootstrap", {}).get("intervals", {}).get(key)
        cells.append(cell(number(entry.get(key)), interval(bounds)))
    for entry in entries[1:]:
        bounds = entry.get("bootstrap", {}).get("differences", {}).get(key)
        value = entry.get("differences", {}).get(key)
        if key not in entry.get("differences", {}):
            cells.append("<td></td>")
            continue
        star = " *" if is_significant(entry, key) else ""
        cells.append(cell(number(value, "+") + star, interval(bounds, "+")))
    hint = f'<span class="what">{escape(what)}</span>' if what else ""
    return f'<tr><th scope="row">{breakable(key)}{hint}</th>{"".join(cells)}</tr>'
