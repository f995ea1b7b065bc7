"""Reports of small problems, written and read."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from corrdet.analysis.metrics import metrics
from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.measures import measure
from corrdet.report import write_report

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>&amp; '$title"
VOID = {"meta", "img", "input", "wbr", "br", "link"}


class Page(HTMLParser):
    """What tests ask of a page: elements with attributes, and texts of tables and captions."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._rows: list[list[str]] | None = None
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(attributes.get("class", ""), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "td" in self._open or "th" in self._open:
            self._rows[-1][-1] += data

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> list[str]:
        return [attributes["id"] for attributes in self.of("section")]

    def rows(self, table: str) -> dict[str, list[str]]:
        return {row[0]: row[1:] for row in self.tables[table]}


def measured(content, *results_files, iou_type="bbox"):
    gt = ground_truth_from_coco(content, iou_type)
    return [
        measure(gt, detections_from_coco(rows, gt, iou_type), iou_type=iou_type, name=f"file {n}")
        for n, rows in enumerate(results_files)
    ]


def written(path, results, samples=None, **options) -> Page:
    write_report(path, results, metrics(results, samples), **options)
    return Page(path.read_text(encoding="utf-8"))


def shifted(rows, by):
    return [{**row, "bbox": [row["bbox"][0] + by, *row["bbox"][1:]]} for row in rows]


def save_images(folder, content):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for image in content["images"]:
        pixels = rng.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / image["file_name"])


def assert_alone(page: Page) -> None:
    """The file asks for no other."""
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name, "#")
            assert value.startswith("#") or (tag == "img" and value.startswith("data:image/"))
        assert tag not in ("link", "iframe", "object", "base")
    without_images = re.sub(r"data:image/jpeg;base64,[\w+/=]*", "", page.text)
    assert not re.search(r"https?:|[\"'(=]//|@import|url\((?!#)", without_images)
    assert "default-src 'none'" in page.text


@pytest.fixture
def without_figures(monkeypatch):
    """Figures take most of a report's time; tests of other things do without."""
    monkeypatch.setattr("corrdet.report.svg._svg", lambda *_, **__: "<svg></svg>")
